"""The state of a call that waits for a route, or has waited for one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from micro_core.contract.errors import MicroError


class Wait:
    """The wait of one call, created when it waits for the first time. Times are clock seconds."""

    __slots__ = ("due", "is_held", "on_due", "reason", "refusals", "size_bytes", "until")

    def __init__(self, until: float, on_due: Callable[[], None]) -> None:
        self.until: Final = until
        """The call is refused at this time."""
        self.due = until
        """The call is refused or sent again at this time."""
        self.on_due: Final = on_due
        self.reason: MicroError | None = None
        """Why the call could not be sent."""
        self.refusals = 0
        """Number of refusals by next hops so far."""
        self.size_bytes = 0
        """Size of all data of the call that this node keeps."""
        self.is_held = False
        """Whether the call waits now."""

    def expire(self) -> None:
        """Process that `due` was reached."""
        self.on_due()
