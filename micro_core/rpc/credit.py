"""Credit and reassembly: the two ends of one direction of a call.

A frame costs its body plus the 12 bytes of a frame's head (so that a flood of empty items is bounded too). A sender
starts with `limits.STREAM_WINDOW_BYTES`; the receiver grants again what has been consumed, once that is half a window.
Pieces of a message that somebody waits for are consumed as they arrive (the message is bounded by
`limits.MAX_BODY_BYTES`); whole items are consumed when they are taken. A reader that stops can thus be made to hold
one message and one window, no more. Pure.
"""

from __future__ import annotations

from collections import deque

from micro_core.contract.errors import Malformed, TooLarge
from micro_core.wire import frames, limits
from micro_core.wire.frames import HEAD, MORE, Frame

FRAME_COST_BYTES = HEAD.size
"""What a frame costs beyond its body."""

MAX_CREDIT_BYTES = 1 << 30
"""More credit than this is a peer's mistake: nobody grants what it cannot have consumed."""


class Outgoing:
    """One direction's sending end: frames wait here for credit."""

    __slots__ = ("_unsent", "credit_bytes")

    def __init__(self) -> None:
        self.credit_bytes = limits.STREAM_WINDOW_BYTES
        self._unsent: deque[tuple[bytes, int]] | None = None
        """None until something has to wait: most calls are one frame each way."""

    @property
    def is_empty(self) -> bool:
        return not self._unsent

    def push(self, kind: int, stream: int, header: bytes, body: bytes) -> bytes:
        """Queue a message and return what may be sent now. Raises TooLarge, and then queues nothing."""
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
        return self._take()

    def push_last(self, data: bytes) -> bytes:
        """Queue a frame that costs nothing (END) behind what waits; return what may be sent now."""
        if not self._unsent:
            return data
        self._unsent.append((data, 0))
        return b""

    def grant(self, granted_bytes: int) -> bytes:
        """More credit; return what may be sent now. Raises Malformed when it passes all reason."""
        self.credit_bytes += granted_bytes
        if self.credit_bytes > MAX_CREDIT_BYTES:
            raise Malformed(f"credit of {self.credit_bytes} bytes for one call")
        return self._take()

    def clear(self) -> None:
        self._unsent = None

    def _take(self) -> bytes:
        unsent = self._unsent
        if unsent is None:
            return b""
        taken: list[bytes] = []
        while unsent and unsent[0][1] <= self.credit_bytes:
            data, cost = unsent.popleft()
            self.credit_bytes -= cost
            taken.append(data)
        return b"".join(taken)


class Incoming:
    """One direction's receiving end: puts messages together, keeps whole items, accounts for credit."""

    __slots__ = ("_consumed", "_items", "_partial", "_partial_cost", "window_bytes")

    def __init__(self) -> None:
        self.window_bytes = limits.STREAM_WINDOW_BYTES
        """What the peer may still send."""
        self._consumed = 0
        self._partial: bytearray | None = None
        self._partial_cost = 0
        self._items: deque[tuple[bytes, int]] | None = None
        """None until there is one."""

    @property
    def has_items(self) -> bool:
        return bool(self._items)

    @property
    def is_between_messages(self) -> bool:
        return self._partial is None

    @property
    def held_bytes(self) -> int:
        """Bytes of bodies kept here."""
        return sum(len(body) for body, _ in self._items or ()) + (
            len(self._partial) if self._partial is not None else 0
        )

    def receive(self, frame: Frame) -> bytes | None:
        """Take in a frame of a message; the message when it is whole, not yet consumed.

        Raises Malformed (over its credit) or TooLarge; the call is then beyond repair.
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
                f"a message is over the bound of {limits.MAX_BODY_BYTES} bytes",
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

    def keep(self, item: bytes) -> None:
        """Keep the message that `receive` has just returned until it is taken."""
        if self._items is None:
            self._items = deque()
        self._items.append((item, self._partial_cost))
        self._partial_cost = 0

    def take(self) -> bytes:
        """The oldest item; it counts as consumed now. Only while `has_items`."""
        assert self._items is not None
        item, cost = self._items.popleft()
        self._consumed += cost
        if not self._items and self._partial is not None:
            # Somebody waits for the message that is under way: its pieces no longer wait behind another.
            self._consumed += self._partial_cost
            self._partial_cost = 0
        return item

    def due_grant(self) -> int:
        """Bytes to grant now, or 0 while less than half a window has been consumed."""
        if self._consumed * 2 < limits.STREAM_WINDOW_BYTES:
            return 0
        granted, self._consumed = self._consumed, 0
        self.window_bytes += granted
        return granted

    def clear(self) -> None:
        self._items = None
        self._partial = None
