"""Tests of the options, and of an outage of the back end."""

from __future__ import annotations

from pathlib import Path

import pytest
from micro_core.contract import CountersInMemory, Instance, OptionError, Unreachable
from micro_core.testing import context, until

from micro_share_registry import micro_registry
from micro_share_registry.options import ShareOptions
from micro_share_registry.store import Store


@pytest.mark.parametrize("poll_s", [0.0, -1.0, 1_000.0, float("nan")])
def test_poll_interval_out_of_range_is_rejected(poll_s: float) -> None:
    with pytest.raises(OptionError, match="poll_s"):
        ShareOptions(poll_s=poll_s)


async def test_outage_and_its_end_are_logged_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    counters = CountersInMemory()
    driver_context = context(state_dir=str(tmp_path), counters=counters)
    registry = micro_registry().create(ShareOptions(poll_s=0.01), driver_context)
    await registry.start()

    async def unavailable(_: Store) -> dict[str, Instance]:
        raise Unreachable("the back end is stopped")

    with monkeypatch.context() as outage:
        outage.setattr(Store, "read", unavailable)
        name = "share_registry_polls_failed"
        await until(lambda: counters.values.get(name, 0) >= 3, 5.0, "the back end is read again")
    await until(lambda: len(caplog.messages) == 2, 5.0, "the end of the outage is logged")
    await registry.close()
    assert caplog.messages == ["registry back end is unavailable", "registry back end is available again"]
