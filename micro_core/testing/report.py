"""What became of each part of a kit, for reports: a pytest plugin that hears of every test and tells it once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from micro_core.testing.kit.conformance import Conformance, needs_of

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
MAX_REASON_CHARS = 2_000


@dataclass(slots=True, kw_only=True)
class PartResult:
    """One part, run once. `reason` says why it was skipped, or which clause of the contract was not kept."""

    kit: str
    """The class, as in TestRedisRegistry."""
    part: str
    """The method, as in test_a_record_is_seen_by_every_registry_of_the_site."""
    case: str = ""
    """The parameters of this run, where a part runs with several."""
    group: str
    """The capability that demands it, else faults or required."""
    outcome: str = PASSED
    reason: str = ""
    duration_s: float = 0.0


class PartReporter:
    """Register it with `pytest.main(plugins=[...])`; `tell` is called with each part's result when it is over."""

    def __init__(self, tell: Callable[[PartResult], None]) -> None:
        self._tell = tell
        self._running: dict[str, PartResult] = {}
        self.broken: list[str] = []
        """What could not even be collected."""

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.broken.append(str(report.longrepr)[-MAX_REASON_CHARS:])

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
        outcome: Any = yield
        report: pytest.TestReport = outcome.get_result()
        cls = getattr(item, "cls", None)
        if not (isinstance(cls, type) and issubclass(cls, Conformance)):
            return
        function = getattr(item, "originalname", item.name)
        result = self._running.setdefault(
            item.nodeid,
            PartResult(
                kit=cls.__name__,
                part=function,
                case=item.name.removeprefix(function).strip("[]"),
                group=needs_of(getattr(cls, function, None)).group,
            ),
        )
        result.duration_s += report.duration
        if report.failed:
            result.outcome = FAILED
            result.reason = result.reason or _why(call)
        elif report.skipped and result.outcome == PASSED:
            result.outcome, result.reason = SKIPPED, _why(call).removeprefix("Skipped: ")
        if report.when == "teardown":
            self._tell(self._running.pop(item.nodeid))


def _why(call: pytest.CallInfo[None]) -> str:
    """The first lines of what was raised: for an assertion its sentence, with the values compared."""
    if call.excinfo is None:
        return ""
    error = call.excinfo.value
    text = str(error) or type(error).__name__
    if not isinstance(error, (AssertionError, pytest.fail.Exception, pytest.skip.Exception)):
        text = f"{type(error).__name__}: {text}"
    return text[:MAX_REASON_CHARS]
