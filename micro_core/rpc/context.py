"""What a handler may know about the call it serves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(slots=True, kw_only=True)
class CallContext:
    """The second parameter of a handler, when it wants one: `async def hello(self, request, context: CallContext)`.

    `metadata` is what the caller sent. What a handler puts into `response_metadata` goes back with the answer of a
    unary or client-streaming call. Safe to read from the thread of a synchronous handler.
    """

    service: str
    endpoint: str
    metadata: Mapping[str, str]
    peer: str
    """Who is at the other end of the socket: its node id, or its address for a plain client."""
    deadline: float
    """Clock seconds at which the caller stops waiting."""
    clock: Callable[[], float]
    via: tuple[str, ...] = ()
    """The nodes the call has passed, first to last."""
    cancelled: bool = False
    """The caller went away or the time ran out. An asynchronous handler is also cancelled; a thread looks here."""
    response_metadata: dict[str, str] = field(default_factory=dict)

    @property
    def remaining_s(self) -> float:
        """Seconds until the deadline, never negative: pass it on as `timeout_s` of what you call."""
        return max(0.0, self.deadline - self.clock())
