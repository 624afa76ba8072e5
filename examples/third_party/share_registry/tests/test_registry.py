"""What is this registry's own."""

from __future__ import annotations

from pathlib import Path

import pytest
from micro_core.contract import CountersInMemory, Instance, OptionError, Unreachable
from micro_core.testing import context, until

from micro_share_registry import micro_registry
from micro_share_registry.options import ShareOptions
from micro_share_registry.store import Store


@pytest.mark.parametrize("poll_s", [0.0, -1.0, 1_000.0, float("nan")])
def test_a_pause_that_makes_no_sense_is_refused(poll_s: float) -> None:
    with pytest.raises(OptionError, match="poll_s"):
        ShareOptions(poll_s=poll_s)


async def test_an_outage_is_a_line_of_the_log_and_its_end_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    counters = CountersInMemory()
    lent = context(state_dir=str(tmp_path), counters=counters)
    registry = micro_registry().create(ShareOptions(poll_s=0.01), lent)
    await registry.start()

    async def away(_: Store) -> dict[str, Instance]:
        raise Unreachable("gone")

    with monkeypatch.context() as outage:
        outage.setattr(Store, "read", away)
        name = "share_registry_polls_failed"
        await until(lambda: counters.values.get(name, 0) >= 3, 5.0, "the back end is looked at again")
    await until(lambda: "the back end is back" in caplog.messages, 5.0, "the end of an outage is told")
    await registry.close()
    assert caplog.messages == ["the back end is away", "the back end is back"]
