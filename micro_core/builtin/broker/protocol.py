"""What the node's broker and its clients say to each other, over frames.

    publish      REQUEST Broker.Publish, metadata topic, id, h-NAME; body (several frames when large) -> RESPONSE or ERROR
    subscribe    REQUEST Broker.Subscribe, metadata topic, queue                                     -> RESPONSE or ERROR
    deliver      EVENT with the subscription's stream number as its only target
    unsubscribe  CANCEL of the subscription's stream

Pure.
"""

from __future__ import annotations

from micro_core.contract.broker import Message
from micro_core.contract.errors import Malformed, TooLarge
from micro_core.contract.names import BROKER_SERVICE
from micro_core.wire import limits
from micro_core.wire.frames import MORE, Frame, Kind, encode, encode_message
from micro_core.wire.header import CallHeader, EventHeader, encode_header

PUBLISH = "Broker.Publish"
SUBSCRIBE = "Broker.Subscribe"
HEADER_PREFIX = "h-"
MAX_PARTIAL_MESSAGES = 64
"""Messages in pieces that one connection may have under way."""


def publish_frames(stream: int, topic: str, message: Message) -> list[bytes]:
    """The frames of one publication; raises TooLarge."""
    metadata = {"topic": topic, "id": message.id}
    metadata |= {HEADER_PREFIX + name: value for name, value in message.headers.items()}
    header = CallHeader(BROKER_SERVICE, PUBLISH, content_type=message.content_type, metadata=metadata)
    return encode_message(Kind.REQUEST, stream, encode_header(header), message.body)


def published_message(header: CallHeader, body: bytes) -> tuple[str, Message]:
    """(topic, message) of a publication; raises Malformed."""
    topic, message_id = header.metadata.get("topic", ""), header.metadata.get("id", "")
    if not topic or not message_id or len(message_id) > 64:
        raise Malformed("a publication without topic or id")
    headers = {
        name[len(HEADER_PREFIX) :]: value for name, value in header.metadata.items() if name.startswith(HEADER_PREFIX)
    }
    return topic, Message(id=message_id, body=body, content_type=header.content_type, headers=headers)


def subscribe_frame(stream: int, topic: str, queue: str) -> bytes:
    header = CallHeader(BROKER_SERVICE, SUBSCRIBE, metadata={"topic": topic, "queue": queue})
    return encode(Kind.REQUEST, stream, encode_header(header))


def event_frames(topic: str, message: Message, stream: int) -> list[bytes]:
    """The frames of one delivery."""
    header = EventHeader(topic, message.id, message.content_type, message.headers, (str(stream),))
    return encode_message(Kind.EVENT, 0, encode_header(header), message.body)


class Pieces:
    """Puts messages together that came in several frames, by stream; bounded."""

    def __init__(self) -> None:
        self._partial: dict[int, tuple[Frame, bytearray]] = {}
        self._held_bytes = 0

    def whole(self, frame: Frame) -> tuple[Frame, bytes] | None:
        """(first frame, whole body) when `frame` completes a message; raises Malformed, TooLarge.

        Pieces of a message whose beginning is not held, because it was cancelled, are let go.
        """
        held = self._partial.get(frame.stream)
        if frame.kind == Kind.REQUEST or (frame.kind == Kind.EVENT and frame.header):
            return self._begin(frame, held is not None)
        if held is None:
            return None
        first, body = held
        body += frame.body
        self._held_bytes += len(frame.body)
        if len(body) > limits.MAX_BODY_BYTES:
            raise TooLarge(f"a message of more than {limits.MAX_BODY_BYTES} bytes")
        self._check_held()
        if frame.flags & MORE:
            return None
        self.forget(frame.stream)
        return first, bytes(body)

    def forget(self, stream: int) -> None:
        """Let go what is held of a message; unknown streams are ignored."""
        held = self._partial.pop(stream, None)
        if held is not None:
            self._held_bytes -= len(held[1])

    def _begin(self, frame: Frame, is_held: bool) -> tuple[Frame, bytes] | None:
        if is_held:
            raise Malformed(f"a message begins on stream {frame.stream} before another has ended")
        if not frame.flags & MORE:
            return frame, bytes(frame.body)
        if len(self._partial) >= MAX_PARTIAL_MESSAGES:
            raise TooLarge(f"more than {MAX_PARTIAL_MESSAGES} messages in pieces")
        self._partial[frame.stream] = (frame, bytearray(frame.body))
        self._held_bytes += len(frame.body)
        self._check_held()
        return None

    def _check_held(self) -> None:
        if self._held_bytes > limits.MAX_CONNECTION_BUFFER_BYTES:
            raise TooLarge(f"more than {limits.MAX_CONNECTION_BUFFER_BYTES} bytes of messages in pieces")
