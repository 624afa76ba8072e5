"""Collects the result of each check of a kit. A pytest plugin, used by `verify`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from micro_core.testing.kit.conformance import Conformance, requirements_of

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"

MAX_REASON_CHARS = 2_000
"""Maximum length of the reason in a result."""


@dataclass(slots=True, kw_only=True)
class CheckResult:
    """The result of one run of a check. `reason` is why it was skipped, or which clause of the contract was violated."""

    kit: str
    """Name of the class, e.g. TestRedisRegistry."""
    check: str
    """Name of the method, e.g. test_registered_instance_is_listed."""
    case: str = ""
    """Parameters of this run, if the check runs several times."""
    group: str
    """The capability that the check belongs to, otherwise `faults` or `required`."""
    outcome: str = PASSED
    reason: str = ""
    duration_s: float = 0.0


class CheckReporter:
    """A pytest plugin that calls `report` with the result of each check as soon as it has ended.

    Register it with `pytest.main(plugins=[...])`.
    """

    def __init__(self, report: Callable[[CheckResult], None]) -> None:
        self._report = report
        self._running: dict[str, CheckResult] = {}
        self.collection_errors: list[str] = []
        """Errors of modules that pytest could not collect."""

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Record the error of a module that cannot be collected."""
        if report.failed:
            self.collection_errors.append(str(report.longrepr)[-MAX_REASON_CHARS:])

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
        """Add the outcome of a phase (setup, call, teardown) to the result of its check."""
        outcome: Any = yield
        report: pytest.TestReport = outcome.get_result()
        cls = getattr(item, "cls", None)
        if not (isinstance(cls, type) and issubclass(cls, Conformance)):
            return
        function = getattr(item, "originalname", item.name)
        result = self._running.setdefault(
            item.nodeid,
            CheckResult(
                kit=cls.__name__,
                check=function,
                case=item.name.removeprefix(function).strip("[]"),
                group=requirements_of(getattr(cls, function, None)).group,
            ),
        )
        result.duration_s += report.duration
        if report.failed:
            result.outcome = FAILED
            result.reason = result.reason or _reason(call)
        elif report.skipped and result.outcome == PASSED:
            result.outcome, result.reason = SKIPPED, _reason(call).removeprefix("Skipped: ")
        if report.when == "teardown":
            self._report(self._running.pop(item.nodeid))


def _reason(call: pytest.CallInfo[None]) -> str:
    """Return the text of the exception: for an assertion, its message with the compared values."""
    if call.excinfo is None:
        return ""
    error = call.excinfo.value
    text = str(error) or type(error).__name__
    if not isinstance(error, (AssertionError, pytest.fail.Exception, pytest.skip.Exception)):
        text = f"{type(error).__name__}: {text}"
    return text[:MAX_REASON_CHARS]
