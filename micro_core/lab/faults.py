"""The faults of a run: which node or path was faulty, from when to when."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

Subject = str | tuple[str, str]
"""The name of a node, or the names of the two nodes of a path in ascending order."""


@dataclass(slots=True)
class Fault:
    """One fault of one node or path."""

    kind: str
    subject: Subject
    began_at: float
    ended_at: float | None = None
    """None while it lasts."""


def path_between(one: str, other: str) -> tuple[str, str]:
    """Return the subject for the path between two nodes."""
    return (one, other) if one < other else (other, one)


class FaultLog:
    """All faults of a lab, in the order in which they began. `now()` returns virtual seconds."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.faults: list[Fault] = []
        self._now = now
        self._by_subject: dict[Subject, list[Fault]] = defaultdict(list)

    def begin(self, kind: str, subject: Subject) -> None:
        """Record the begin of a fault. A fault of this kind that lasts already continues."""
        if self._open(kind, subject) is None:
            fault = Fault(kind, subject, self._now())
            self.faults.append(fault)
            self._by_subject[subject].append(fault)

    def end(self, kind: str, subject: Subject) -> None:
        """Record the end of a fault. Unknown faults are ignored."""
        fault = self._open(kind, subject)
        if fault is not None:
            fault.ended_at = self._now()

    def at_once(self, kind: str, subject: Subject, *, lasts_s: float = 0.0) -> None:
        """Record a fault whose end is known."""
        fault = Fault(kind, subject, self._now(), self._now() + lasts_s)
        self.faults.append(fault)
        self._by_subject[subject].append(fault)

    @property
    def last_change_at(self) -> float:
        """When the last fault began or ended. 0 without faults."""
        return max((max(fault.began_at, fault.ended_at or 0.0) for fault in self.faults), default=0.0)

    def has_changed(self, since: float, until: float) -> bool:
        """Return whether any fault began or ended in an interval."""
        return any(
            since <= fault.began_at <= until or (fault.ended_at is not None and since <= fault.ended_at <= until)
            for fault in self.faults
        )

    def touch(self, subjects: Iterable[Subject], since: float, until: float, grace_s: float) -> bool:
        """Return whether one of the nodes and paths was faulty in an interval, or until `grace_s` before it."""
        return any(
            fault.began_at <= until and (fault.ended_at is None or fault.ended_at + grace_s >= since)
            for subject in subjects
            for fault in self._by_subject.get(subject, ())
        )

    def _open(self, kind: str, subject: Subject) -> Fault | None:
        return next(
            (one for one in self._by_subject.get(subject, ()) if one.kind == kind and one.ended_at is None), None
        )
