"""Interceptors: what goes round every call, on either side.

    async def timing(call: CallInfo, proceed: Next) -> Any:
        ...
        answer = await proceed(call)
        ...
        return answer

The first is outermost. On the client one wraps the whole call with its retries and sees values before they are encoded;
on the server it wraps the handler and sees values after they were checked. Of a streaming call it wraps the opening
(client) or the handler's whole run (server), and `request` is None on the client. An interceptor may change
`call.metadata` and `call.request`, answer by itself, or raise a MicroError.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(slots=True, kw_only=True)
class CallInfo:
    """What an interceptor sees of a call."""

    side: Literal["client", "server"]
    service: str
    endpoint: str
    mode: int
    """`micro_core.wire.header.CallMode`."""
    metadata: dict[str, str]
    request: Any
    timeout_s: float
    peer: str = ""
    """On the server, who calls; on the client, empty."""


Next = Callable[[CallInfo], Awaitable[Any]]
Interceptor = Callable[[CallInfo, Next], Awaitable[Any]]


def chain(interceptors: Sequence[Interceptor], last: Next) -> Next:
    """One function that calls all interceptors, the first outermost, and then `last`."""
    proceed = last
    for interceptor in reversed(interceptors):
        proceed = _bind(interceptor, proceed)
    return proceed


def _bind(interceptor: Interceptor, proceed: Next) -> Next:
    def step(call: CallInfo) -> Awaitable[Any]:
        return interceptor(call, proceed)

    return step
