"""The protocol between a broker host and its clients, over frames. Pure.

publish      REQUEST Broker.Publish, metadata topic, id, h-NAME; body, in several frames if large -> RESPONSE or ERROR
subscribe    REQUEST Broker.Subscribe, metadata topic, queue                                      -> RESPONSE or ERROR
deliver      EVENT with the stream number of the subscription as its only target
unsubscribe  CANCEL of the stream of the subscription
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
MAX_ID_LENGTH = 64
MAX_PARTIAL_MESSAGES = 64
"""Incomplete messages on one connection."""


def publish_frames(stream: int, topic: str, message: Message) -> list[bytes]:
    """Encode the publication of a message. Raises TooLarge."""
    metadata = {"topic": topic, "id": message.id}
    metadata |= {HEADER_PREFIX + name: value for name, value in message.headers.items()}
    header = CallHeader(BROKER_SERVICE, PUBLISH, content_type=message.content_type, metadata=metadata)
    return encode_message(Kind.REQUEST, stream, encode_header(header), message.body)


def published_message(header: CallHeader, body: bytes) -> tuple[str, Message]:
    """Return the topic and the message of a publication.

    Raises:
        Malformed: The topic or the id is missing, or the id is too long.
    """
    topic, message_id = header.metadata.get("topic", ""), header.metadata.get("id", "")
    if not topic or not message_id or len(message_id) > MAX_ID_LENGTH:
        raise Malformed(f"a publication needs a topic, and an id of at most {MAX_ID_LENGTH} characters")
    headers = {
        name[len(HEADER_PREFIX) :]: value for name, value in header.metadata.items() if name.startswith(HEADER_PREFIX)
    }
    return topic, Message(id=message_id, body=body, content_type=header.content_type, headers=headers)


def subscribe_frame(stream: int, topic: str, queue: str) -> bytes:
    """Encode the request for a subscription."""
    header = CallHeader(BROKER_SERVICE, SUBSCRIBE, metadata={"topic": topic, "queue": queue})
    return encode(Kind.REQUEST, stream, encode_header(header))


def event_frames(topic: str, message: Message, stream: int) -> list[bytes]:
    """Encode the delivery of a message to the subscription `stream`."""
    header = EventHeader(topic, message.id, message.content_type, message.headers, (str(stream),))
    return encode_message(Kind.EVENT, 0, encode_header(header), message.body)


class MessageAssembly:
    """Assembles the messages of one connection that are split into several frames. Its memory is bounded."""

    def __init__(self) -> None:
        self._partial: dict[int, tuple[Frame, bytearray]] = {}
        self._buffered_bytes = 0

    def add(self, frame: Frame) -> tuple[Frame, bytes] | None:
        """Return the first frame and the body of the message that `frame` completes, or None.

        Frames of a message whose beginning is unknown, because the message was cancelled, are ignored.

        Raises:
            Malformed: A message begins on a stream before the previous one is complete.
            TooLarge: A message is too long, or too many or too large messages are incomplete.
        """
        partial = self._partial.get(frame.stream)
        if frame.kind == Kind.REQUEST or (frame.kind == Kind.EVENT and frame.header):
            if partial is not None:
                raise Malformed(f"a message begins on stream {frame.stream} before the previous one is complete")
            return self._begin(frame)
        if partial is None:
            return None
        first, body = partial
        body += frame.body
        self._buffered_bytes += len(frame.body)
        if len(body) > limits.MAX_BODY_BYTES:
            raise TooLarge(f"the message has more than {limits.MAX_BODY_BYTES} bytes")
        self._check_buffered_bytes()
        if frame.flags & MORE:
            return None
        self.discard(frame.stream)
        return first, bytes(body)

    def discard(self, stream: int) -> None:
        """Discard an incomplete message. Unknown streams are ignored."""
        partial = self._partial.pop(stream, None)
        if partial is not None:
            self._buffered_bytes -= len(partial[1])

    def _begin(self, frame: Frame) -> tuple[Frame, bytes] | None:
        if not frame.flags & MORE:
            return frame, bytes(frame.body)
        if len(self._partial) >= MAX_PARTIAL_MESSAGES:
            raise TooLarge(f"more than {MAX_PARTIAL_MESSAGES} incomplete messages")
        self._partial[frame.stream] = (frame, bytearray(frame.body))
        self._buffered_bytes += len(frame.body)
        self._check_buffered_bytes()
        return None

    def _check_buffered_bytes(self) -> None:
        if self._buffered_bytes > limits.MAX_CONNECTION_BUFFER_BYTES:
            raise TooLarge(f"incomplete messages of more than {limits.MAX_CONNECTION_BUFFER_BYTES} bytes")
