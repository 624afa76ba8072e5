"""Parse `replay_from`, the start of new subscriptions. Pure: the wall-clock time is an argument."""

from __future__ import annotations

import datetime as dt
import math
import re
from dataclasses import dataclass

_SPAN = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd])")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
_MAX_SPAN_S = 10_000 * 86_400.0


@dataclass(frozen=True, slots=True)
class ReplayStart:
    """The start: all stored messages, a point in time, or (neither) new messages only."""

    is_everything: bool = False
    moment: dt.datetime | None = None


def parse_replay_from(text: str, wall_s: float) -> ReplayStart:
    """Parse `replay_from`; `wall_s` is the current time in seconds since 1970. Raises ValueError if it is invalid."""
    value = text.strip()
    if not value:
        return ReplayStart()
    if value.lower() == "all":
        return ReplayStart(is_everything=True)
    span = _SPAN.fullmatch(value.lower())
    if span is not None:
        seconds = float(span[1]) * _SECONDS[span[2]]
        if not math.isfinite(seconds) or seconds > _MAX_SPAN_S:
            raise ValueError(f"replay_from: {text!r:.40} is too far in the past")
        return ReplayStart(moment=dt.datetime.fromtimestamp(wall_s - seconds, dt.UTC))
    try:
        moment = dt.datetime.fromisoformat(value)
    except ValueError as error:
        raise ValueError(
            f"replay_from: {text!r:.40} is not a time (2026-11-24T08:00:00Z), a time span (90s, 2h, 1d) or all"
        ) from error
    # A time without a zone is UTC, so that a shared file means the same on all hosts.
    return ReplayStart(moment=moment if moment.tzinfo is not None else moment.replace(tzinfo=dt.UTC))
