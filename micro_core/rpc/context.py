"""The information about a call that its handler can read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(slots=True, kw_only=True)
class CallContext:
    """Describes the call that a handler serves: its caller, its metadata and its deadline.

    A handler receives it by declaring a parameter with this type or with the name `context`:

        async def hello(self, request: HelloRequest, context: CallContext) -> HelloReply:
            trace_id = context.metadata.get("trace-id", "")
            context.response_metadata["server"] = "blue"
            ...

    Synchronous handlers run in a thread, and may read all attributes there.
    """

    service: str
    """Name of the called service, e.g. `go.micro.srv.greeter`."""
    endpoint: str
    """Name of the called endpoint, e.g. `Say.Hello`. For a subscriber, the topic of the message."""
    metadata: Mapping[str, str]
    """The metadata that the caller sent with the call. For a subscriber, the headers of the message."""
    peer: str
    """The other end of the connection: the id of a node, or the remote address of any other client. Empty for a message."""
    deadline: float
    """The time at which the caller stops waiting, in seconds of `clock`. Infinite for a message."""
    clock: Callable[[], float]
    """Returns the current time in seconds. Its zero is arbitrary."""
    via: tuple[str, ...] = ()
    """Ids of the nodes that forwarded the call, in order."""
    cancelled: bool = False
    """Whether the caller cancelled or disconnected, or the deadline has passed.

    Asynchronous handlers are also cancelled. Synchronous handlers cannot be interrupted, so long ones should check this."""
    response_metadata: dict[str, str] = field(default_factory=dict)
    """Metadata to send with the answer. Only for endpoints with a single answer: unary and client-streaming ones."""

    @property
    def remaining_s(self) -> float:
        """Return the seconds until the deadline, at least 0. Pass it as `timeout_s` of calls that the handler makes."""
        return max(0.0, self.deadline - self.clock())
