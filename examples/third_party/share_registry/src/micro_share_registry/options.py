"""Options of the driver."""

from __future__ import annotations

from dataclasses import dataclass

from micro_core.contract import OptionError, option


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareOptions:
    """Options of `registry:share`."""

    path: str = option("", "The directory that all hosts mount. Default: the state directory of micro.")
    poll_s: float = option(0.5, "Seconds between two reads of the directory by a watcher.")

    def __post_init__(self) -> None:
        if not 0.01 <= self.poll_s <= 60:
            raise OptionError(f"poll_s = {self.poll_s} is out of range (0.01 to 60)")
