"""The order in which to try the targets of SRV records (RFC 2782). Pure: the random source is an argument."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from micro_core.contract import Random


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One SRV record."""

    host: str
    port: int
    priority: int
    weight: int


def order_targets(targets: Sequence[Target], random: Random) -> list[Target]:
    """Return `targets` by ascending priority; targets of equal priority in random order by weight (RFC 2782)."""
    ordered: list[Target] = []
    for priority in sorted({target.priority for target in targets}):
        # RFC 2782 puts targets with weight 0 at the beginning of the list, so that they have a small probability.
        left = sorted(
            (target for target in targets if target.priority == priority), key=lambda target: target.weight > 0
        )
        while left:
            ordered.append(left.pop(_draw(left, random)))
    return ordered


def _draw(targets: Sequence[Target], random: Random) -> int:
    """Return the index of the first target whose running sum of weights reaches a random number (RFC 2782)."""
    number = random.randrange(0, sum(target.weight for target in targets) + 1)
    running = 0
    for index, target in enumerate(targets):
        running += target.weight
        if running >= number:
            return index
    return len(targets) - 1
