"""What is this registry's own."""

from __future__ import annotations

import pytest
from micro_core.spec import OptionError

from micro_share_registry.options import ShareOptions


@pytest.mark.parametrize("poll_s", [0.0, -1.0, 1_000.0, float("nan")])
def test_a_pause_that_makes_no_sense_is_refused(poll_s: float) -> None:
    with pytest.raises(OptionError, match="poll_s"):
        ShareOptions(poll_s=poll_s)
