"""Credit-based flow control and reassembly for one direction of a call: the queue of the sender and that of the receiver.

A frame costs its body plus the 12 bytes of its head, so that empty items are limited, too. A sender starts with
`limits.STREAM_WINDOW_BYTES` of credit. The receiver grants credit again once half a window was consumed. Frames of a message
that the application waits for are consumed when they arrive, because `limits.MAX_BODY_BYTES` limits the message; complete
items are consumed when the application takes them. An application that stops reading thus holds at most one message and one
window. Pure.
"""

from __future__ import annotations

from collections import deque

from micro_core.contract.errors import Malformed, TooLarge
from micro_core.wire import frames, limits
from micro_core.wire.frames import HEAD, MORE, Frame

FRAME_COST_BYTES = HEAD.size
"""Cost of a frame in addition to its body."""

MAX_CREDIT_BYTES = 1 << 30
"""Maximum credit of one direction. A peer that grants more does not count correctly, since it cannot have received that much."""


class SendQueue:
    """The sender of one direction of a call: frames are queued here until there is credit for them."""

    __slots__ = ("_unsent", "credit_bytes")

    def __init__(self) -> None:
        self.credit_bytes = limits.STREAM_WINDOW_BYTES
        self._unsent: deque[tuple[bytes, int]] | None = None
        """Frames with their costs. None until a frame has to be queued: most calls have one frame per direction."""

    @property
    def is_empty(self) -> bool:
        """Return whether all frames were returned for sending."""
        return not self._unsent

    def push(self, kind: int, stream: int, header: bytes, body: bytes) -> bytes:
        """Queue a message and return the frames to send now.

        Raises:
            TooLarge: the header or the body exceeds its limit. Nothing was queued.
        """
        cost = len(body) + FRAME_COST_BYTES
        if len(body) <= limits.MAX_FRAME_BODY_BYTES and not self._unsent and cost <= self.credit_bytes:
            frames.check_sizes(header, body)
            self.credit_bytes -= cost
            return frames.encode(kind, stream, header, body)
        remaining = len(body)
        pieces = frames.encode_message(kind, stream, header, body)
        if self._unsent is None:
            self._unsent = deque()
        for data in pieces:
            piece = min(remaining, limits.MAX_FRAME_BODY_BYTES)
            remaining -= piece
            self._unsent.append((data, piece + FRAME_COST_BYTES))
        return self._take_sendable()

    def push_end(self, data: bytes) -> bytes:
        """Queue an END frame, which costs no credit, and return the frames to send now."""
        if not self._unsent:
            return data
        self._unsent.append((data, 0))
        return b""

    def grant(self, granted_bytes: int) -> bytes:
        """Add credit and return the frames to send now.

        Raises:
            Malformed: the credit exceeds `MAX_CREDIT_BYTES`.
        """
        self.credit_bytes += granted_bytes
        if self.credit_bytes > MAX_CREDIT_BYTES:
            raise Malformed(f"the peer granted {self.credit_bytes} bytes of credit for one call")
        return self._take_sendable()

    def clear(self) -> None:
        """Drop the queued frames."""
        self._unsent = None

    def _take_sendable(self) -> bytes:
        unsent = self._unsent
        if unsent is None:
            return b""
        sendable: list[bytes] = []
        while unsent and unsent[0][1] <= self.credit_bytes:
            data, cost = unsent.popleft()
            self.credit_bytes -= cost
            sendable.append(data)
        return b"".join(sendable)


class ReceiveQueue:
    """The receiver of one direction of a call: reassembles messages, queues complete items, and counts credit."""

    __slots__ = ("_consumed", "_items", "_partial", "_partial_cost", "window_bytes")

    def __init__(self) -> None:
        self.window_bytes = limits.STREAM_WINDOW_BYTES
        """Bytes that the peer may still send."""
        self._consumed = 0
        self._partial: bytearray | None = None
        self._partial_cost = 0
        self._items: deque[tuple[bytes, int]] | None = None
        """Complete items with their costs. None until an item was received."""

    @property
    def has_items(self) -> bool:
        """Return whether a complete item is queued."""
        return bool(self._items)

    @property
    def is_between_messages(self) -> bool:
        """Return whether no message is incomplete."""
        return self._partial is None

    @property
    def buffered_bytes(self) -> int:
        """Return the size of the queued bodies, including the incomplete message."""
        return sum(len(body) for body, _ in self._items or ()) + (
            len(self._partial) if self._partial is not None else 0
        )

    def receive(self, frame: Frame) -> bytes | None:
        """Add a frame of a message. Return the message if it is complete; it is not consumed yet.

        Raises:
            Malformed: the peer exceeded its credit. The call must be ended.
            TooLarge: the message exceeds `limits.MAX_BODY_BYTES`. The call must be ended.
        """
        body = frame.body
        cost = len(body) + FRAME_COST_BYTES
        self.window_bytes -= cost
        if self.window_bytes < 0:
            raise Malformed("the peer sent more than its credit")
        partial = self._partial
        if partial is None and not frame.flags & MORE:
            self._partial_cost = cost
            return body
        if partial is None:
            partial = self._partial = bytearray()
        if len(partial) + len(body) > limits.MAX_BODY_BYTES:
            raise TooLarge(
                f"a message exceeds {limits.MAX_BODY_BYTES} bytes",
                hint="send it as a stream of smaller items",
            )
        partial += body
        if frame.flags & MORE:
            if self._items:
                self._partial_cost += cost
            else:
                self._consumed += cost
            return None
        self._partial = None
        self._partial_cost += cost
        return bytes(partial)

    def append(self, item: bytes) -> None:
        """Queue the message that `receive` has just returned as an item."""
        if self._items is None:
            self._items = deque()
        self._items.append((item, self._partial_cost))
        self._partial_cost = 0

    def pop(self) -> bytes:
        """Remove and return the oldest item, which is thereby consumed. Only while `has_items`."""
        assert self._items is not None
        item, cost = self._items.popleft()
        self._consumed += cost
        if not self._items and self._partial is not None:
            # The application now waits for the incomplete message, so its frames count as consumed.
            self._consumed += self._partial_cost
            self._partial_cost = 0
        return item

    def due_grant(self) -> int:
        """Return the bytes to grant now; 0 until half a window was consumed."""
        if self._consumed * 2 < limits.STREAM_WINDOW_BYTES:
            return 0
        granted, self._consumed = self._consumed, 0
        self.window_bytes += granted
        return granted

    def clear(self) -> None:
        """Drop the queued items and the incomplete message."""
        self._items = None
        self._partial = None
