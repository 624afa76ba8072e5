"""Interceptors: what goes round every call, on either side.

    async def timing(call: CallInfo, proceed: Next) -> Any:
        ...
        answer = await proceed(call)
        ...
        return answer

The first is outermost. On the client one wraps the whole call with its retries and sees values before they are encoded;
on the server it wraps the handler and sees values after they were checked. Of a streaming call it wraps the opening
(client) or the handler's whole run (server), and `request` is None on the client. An interceptor may change
`call.metadata` and `call.request`, answer by itself, or raise a MicroError. It sits on the way of every call: whatever
waits in it, waits in all of them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(slots=True, kw_only=True)
class CallInfo:
    """What an interceptor sees of a call."""

    side: Literal["client", "server"]
    service: str
    endpoint: str
    mode: int
    """`micro_core.wire.header.CallMode`: 0 for one request and one answer, above it a stream of some kind."""
    metadata: dict[str, str]
    request: Any
    timeout_s: float
    peer: str = ""
    """On the server, who calls; on the client, empty."""


Next = Callable[[CallInfo], Awaitable[Any]]
Interceptor = Callable[[CallInfo, Next], Awaitable[Any]]
