"""From where a subscription begins: `replay_from`. Pure: the wall clock's time is an argument."""

from __future__ import annotations

import datetime as dt
import math
import re
from dataclasses import dataclass

_SPAN = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd])")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
_LONGEST_S = 10_000 * 86_400.0


@dataclass(frozen=True, slots=True)
class Begin:
    """Where to begin: with everything kept, at a moment, or (neither) with what comes from now on."""

    is_everything: bool = False
    moment: dt.datetime | None = None


def parse_begin(text: str, wall_s: float) -> Begin:
    """Read `replay_from`; `wall_s` is now, in seconds since 1970. Raises ValueError."""
    word = text.strip()
    if not word:
        return Begin()
    if word.lower() == "all":
        return Begin(is_everything=True)
    span = _SPAN.fullmatch(word.lower())
    if span is not None:
        seconds = float(span[1]) * _SECONDS[span[2]]
        if not math.isfinite(seconds) or seconds > _LONGEST_S:
            raise ValueError(f"replay_from: {text!r:.40} is too long ago")
        return Begin(moment=dt.datetime.fromtimestamp(wall_s - seconds, dt.UTC))
    try:
        moment = dt.datetime.fromisoformat(word)
    except ValueError as error:
        raise ValueError(
            f"replay_from: {text!r:.40} is neither a time (2026-11-24T08:00:00Z), a span (90s, 2h, 1d), nor all"
        ) from error
    # A time without zone is UTC: two hosts that share a file mean the same moment.
    return Begin(moment=moment if moment.tzinfo is not None else moment.replace(tzinfo=dt.UTC))
