"""Interceptors: functions that wrap every call of a client or a server.

    async def timing(call: CallInfo, proceed: Next) -> Any:
        ...
        answer = await proceed(call)
        ...
        return answer

The first interceptor is the outermost one. On the client, an interceptor wraps a whole call with its retries and receives
the request before it is encoded. On the server, it wraps the handler and receives the request after its validation. For a
streaming call, it wraps the opening of the stream on the client, where `request` is None, and the whole run of the handler on
the server.

An interceptor may change `call.metadata` and `call.request`, return a response without calling `proceed`, or raise a
MicroError. It runs in every call, so the time that it takes is added to every call.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(slots=True, kw_only=True)
class CallInfo:
    """A call as an interceptor receives it."""

    side: Literal["client", "server"]
    """Whether the interceptor runs in the client or in the server of the call."""
    service: str
    """Name of the called service."""
    endpoint: str
    """Name of the called endpoint."""
    mode: int
    """A value of `micro_core.wire.header.CallMode`: 0 for a unary call, more than 0 for a streaming call."""
    metadata: dict[str, str]
    """Metadata of the call, which an interceptor may change."""
    request: Any
    """The request as a value, not encoded. None for a streaming call on the client."""
    timeout_s: float
    """The remaining time until the deadline, in seconds."""
    peer: str = ""
    """On the server, the address or node id of the caller. Empty on the client."""


Next = Callable[[CallInfo], Awaitable[Any]]
"""Runs the next interceptor or the call itself, and returns the response."""

Interceptor = Callable[[CallInfo, Next], Awaitable[Any]]
"""Receives a call and the function that continues it, and returns the response."""
