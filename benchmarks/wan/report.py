"""The table of a run. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.wan.measure import Figures
from benchmarks.wan.targets import Check

COLUMNS = (
    ("fault", ()),
    ("calls", ()),
    ("failed", ("failed", "share", "untouched")),
    ("last failure after heal", ("late",)),
    ("one component", ("one",)),
    ("messages", ()),
    ("lost", ("lost", "messages", "span")),
    ("doubled", ("doubled",)),
    ("routing msg/s max", ("elsewhere",)),
    ("calm after", ("storm",)),
    ("cpu mean/max %", ("idle",)),
    ("load", ()),
)
"""The columns, and the checks whose outcome a cell shows."""


@dataclass(slots=True, kw_only=True)
class Row:
    """The result of one scenario. `problem` is the reason if there are no figures."""

    name: str
    broker: str
    figures: Figures | None = None
    checks: list[Check] = field(default_factory=list)
    load: tuple[float, float] = (0.0, 0.0)
    """The load average of the last minute, at the begin and at the end."""
    problem: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def is_met(self) -> bool:
        return not self.problem and all(check.is_met for check in self.checks)


def table(rows: Sequence[Row]) -> str:
    """Return the table, followed by one line per check."""
    lines = [[name for name, _ in COLUMNS], *(_cells(row) for row in rows)]
    widths = [max(len(line[index]) for line in lines) for index in range(len(COLUMNS))]
    shown = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    shown.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join([*shown, "", *check_lines(rows)])


def check_lines(rows: Sequence[Row]) -> list[str]:
    """Return one line per scenario and check, with its target, and the reasons of failed calls."""
    lines = []
    for row in rows:
        title = _title(row)
        if row.problem:
            lines.append(f"FAIL {title}: {row.problem}")
        lines += [
            f"{'ok  ' if check.is_met else 'FAIL'} {title}: {check.what}: {check.value} (target {check.target})"
            for check in row.checks
        ]
        if row.figures is not None and row.figures.reasons:
            reasons = ", ".join(f"{count} {reason}" for reason, count in row.figures.reasons.items())
            lines.append(f"     {title}: failed calls: {reasons}")
        if row.figures is not None and row.figures.not_one_s:
            reasons = ", ".join(f"{seconds:g} s {reason}" for reason, seconds in row.figures.not_one_s.items())
            lines.append(f"     {title}: not one component after the heal: {reasons}")
    met = sum(check.is_met for row in rows for check in row.checks)
    lines += ["", f"{met} of {sum(len(row.checks) for row in rows)} targets met"]
    return lines


def _title(row: Row) -> str:
    return row.name if row.broker == "node" else f"{row.name} ({row.broker})"


def _cells(row: Row) -> list[str]:
    figures = row.figures
    if figures is None:
        return [_title(row), "FAIL", *[""] * (len(COLUMNS) - 2)]
    never = "never"
    idle = "" if figures.idle_cpu_percent is None else f", idle {figures.idle_cpu_percent:.1f}"
    values = [
        _title(row),
        f"{figures.calls:,}",
        f"{figures.failed:,}",
        "none" if figures.last_failure_s is None else f"{figures.last_failure_s:.1f} s",
        never if figures.one_s is None else f"{figures.one_s:.1f} s",
        f"{figures.expected:,}",
        f"{figures.lost:,}",
        f"{figures.doubled:,}",
        f"{figures.max_rate:.0f}",
        f"{figures.calm_s:.1f} s",
        f"{figures.cpu_mean_percent:.1f}/{figures.cpu_max_percent:.1f}{idle}",
        f"{row.load[0]:.1f}-{row.load[1]:.1f}",
    ]
    outcomes = {check.name: check.is_met for check in row.checks}
    return [
        value + _verdict([outcomes[name] for name in names if name in outcomes])
        for value, (_, names) in zip(values, COLUMNS, strict=True)
    ]


def _verdict(outcomes: Sequence[bool]) -> str:
    if not outcomes:
        return ""
    return " ok" if all(outcomes) else " FAIL"
