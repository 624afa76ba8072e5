"""The targets of the scenarios. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.wan.measure import Figures


@dataclass(frozen=True, slots=True)
class Check:
    """The outcome of one check."""

    name: str
    what: str
    value: str
    target: str
    is_met: bool


def _at_most(what: str, limit: float, value: float | None, unit: str = "") -> tuple[str, str, str, bool]:
    shown = "never" if value is None else f"{value:.4g}{unit}"
    target = f"≤ {limit:g}{unit}" if limit else "0"
    return what, shown, target, value is not None and value <= limit


CHECKS: dict[str, Callable[[Figures], tuple[str, str, str, bool]]] = {
    "failed": lambda f: _at_most("failed calls", 0, f.failed),
    "untouched": lambda f: _at_most("failed calls that the fault does not touch", 0, f.untouched),
    "late": lambda f: _at_most("failed calls later than 2 s after the heal (5 s after a kill)", 0, f.late),
    "share": lambda f: _at_most("failed calls", 1, 100 * f.failed / max(1, f.calls), " %"),
    "one": lambda f: _at_most("one component", 10, f.one_s, " s"),
    "storm": lambda f: _at_most("routing messages below 20/s per node", 3, f.calm_s, " s"),
    "elsewhere": lambda f: _at_most("routing messages of other nodes", 5, f.elsewhere_rate, "/s"),
    "lost": lambda f: _at_most("lost messages", 0, f.lost),
    "messages": lambda f: _at_most(
        "lost messages between connected clouds, 5 s after fault and heal", 0, f.lost_untouched
    ),
    "span": lambda f: _at_most("time between first and last lost message", 4, f.lost_span_s, " s"),
    "doubled": lambda f: _at_most("doubled messages", 0, f.doubled),
    "left": lambda f: _at_most("slow path left", 5, f.slow_s, " s"),
    "idle": lambda f: _at_most("CPU of a node without calls", 1, f.idle_cpu_percent, " % of a core"),
}
"""What each check measures, its value, its target, and whether it is met."""


def evaluate(names: tuple[str, ...], figures: Figures) -> list[Check]:
    """Return the outcome of each check."""
    return [Check(name, *CHECKS[name](figures)) for name in names]
