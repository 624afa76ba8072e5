"""Reassembly of published messages from EVENT frames: one at a time per connection, at most `limits.MAX_BODY_BYTES`. Pure."""

from __future__ import annotations

from micro_core.contract.errors import Malformed, TooLarge
from micro_core.wire import limits
from micro_core.wire.frames import MORE, Frame
from micro_core.wire.header import EventHeader, decode_event_header


class EventAssembly:
    """Turns EVENT frames into complete messages."""

    __slots__ = ("_body", "_header")

    def __init__(self) -> None:
        self._header: EventHeader | None = None
        self._body = bytearray()

    def receive(self, frame: Frame) -> tuple[EventHeader, bytes] | None:
        """Return the message that `frame` completes, or None.

        Raises:
            Malformed: the header is invalid or unexpected. The connection must be closed.
            TooLarge: the message exceeds `limits.MAX_BODY_BYTES`. The connection must be closed.
        """
        header = self._header
        if header is None:
            header = decode_event_header(frame.header)
            if not frame.flags & MORE:
                return header, frame.body
            self._header, self._body = header, bytearray(frame.body)
            return None
        if frame.header:
            raise Malformed("an EVENT frame with a header arrived before the previous message was complete")
        if len(self._body) + len(frame.body) > limits.MAX_BODY_BYTES:
            raise TooLarge(f"a published message exceeds {limits.MAX_BODY_BYTES} bytes")
        self._body += frame.body
        if frame.flags & MORE:
            return None
        body = bytes(self._body)
        self._header, self._body = None, bytearray()
        return header, body
