"""In which order to try the targets of SRV records (RFC 2782). Pure: randomness is an argument."""

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
    """Lowest priority first; among equals, each next one is drawn with odds by weight."""
    ordered: list[Target] = []
    for priority in sorted({target.priority for target in targets}):
        # "all those with weight 0 are placed at the beginning of the list": so they have a small chance too.
        left = sorted((target for target in targets if target.priority == priority), key=lambda one: one.weight > 0)
        while left:
            ordered.append(left.pop(_draw(left, random)))
    return ordered


def _draw(targets: Sequence[Target], random: Random) -> int:
    """RFC 2782: the first target whose running sum of weights is at least a random number from 0 to the sum."""
    number = random.randrange(0, sum(target.weight for target in targets) + 1)
    running = 0
    for index, target in enumerate(targets):
        running += target.weight
        if running >= number:
            return index
    return len(targets) - 1
