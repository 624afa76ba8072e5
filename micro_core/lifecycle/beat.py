"""When periodic work is due, so that all components of a node do theirs together. Pure.

A calm node does little, but each wake-up of its process costs more than the work. Components whose work need not be
exactly on time do it at the beats of their node. The beats of different nodes are at different times.
"""

from __future__ import annotations

import math
import zlib


def next_beat(now: float, interval_s: float, node_id: str) -> float:
    """Return the time of the first beat that is at least half an interval after `now`.

    Beats of `interval_s` seconds are also beats of each shorter interval by which it is divisible.
    """
    offset_s = zlib.crc32(node_id.encode()) / 2**32
    earliest = now + interval_s / 2
    return offset_s + math.ceil((earliest - offset_s) / interval_s) * interval_s
