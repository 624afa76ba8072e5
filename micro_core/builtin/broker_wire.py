"""What the node's broker and its clients say to each other, over frames.

    publish      REQUEST Broker.Publish, metadata topic, id, h-NAME; body (several frames when large) -> RESPONSE or ERROR
    subscribe    REQUEST Broker.Subscribe, metadata topic, queue                                     -> RESPONSE or ERROR
    deliver      EVENT with the subscription's stream number as its only target
    unsubscribe  CANCEL of the subscription's stream

Pure but for the socket it is handed: `FramePipe` batches what one turn of the loop writes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from micro_core.spec.broker import Message
from micro_core.spec.errors import Malformed, TooLarge
from micro_core.spec.transport import Socket
from micro_core.wire import limits
from micro_core.wire.frames import MORE, Frame, FrameDecoder, Kind, encode, encode_message
from micro_core.wire.header import CallHeader, EventHeader, decode_hello, encode_header, encode_hello

SERVICE = "go.micro.broker"
PUBLISH = "Broker.Publish"
SUBSCRIBE = "Broker.Subscribe"
HEADER_PREFIX = "h-"
MAX_PARTIAL_MESSAGES = 64
"""Messages in pieces that one connection may have under way."""


def publish_frames(stream: int, topic: str, message: Message) -> list[bytes]:
    """The frames of one publication; raises TooLarge."""
    metadata = {"topic": topic, "id": message.id}
    metadata |= {HEADER_PREFIX + name: value for name, value in message.headers.items()}
    header = CallHeader(SERVICE, PUBLISH, content_type=message.content_type, metadata=metadata)
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
    header = CallHeader(SERVICE, SUBSCRIBE, metadata={"topic": topic, "queue": queue})
    return encode(Kind.REQUEST, stream, encode_header(header))


def event_frames(topic: str, message: Message, stream: int) -> list[bytes]:
    """The frames of one delivery."""
    header = EventHeader(topic, message.id, message.content_type, message.headers, (str(stream),))
    return encode_message(Kind.EVENT, 0, encode_header(header), message.body)


class Pieces:
    """Puts messages together that came in several frames, by stream; bounded."""

    def __init__(self) -> None:
        self._partial: dict[int, tuple[Frame, bytearray]] = {}

    def whole(self, frame: Frame) -> tuple[Frame, bytes] | None:
        """(first frame, whole body) when `frame` completes a message."""
        held = self._partial.get(frame.stream)
        if held is None:
            if not frame.flags & MORE:
                return frame, bytes(frame.body)
            if len(self._partial) >= MAX_PARTIAL_MESSAGES:
                raise TooLarge(f"more than {MAX_PARTIAL_MESSAGES} messages in pieces")
            self._partial[frame.stream] = (frame, bytearray(frame.body))
            return None
        first, body = held
        body += frame.body
        if len(body) > limits.MAX_BODY_BYTES:
            raise TooLarge(f"a message of more than {limits.MAX_BODY_BYTES} bytes")
        if frame.flags & MORE:
            return None
        del self._partial[frame.stream]
        return first, bytes(body)


class FramePipe:
    """Frames over a socket: HELLO first, one write a turn of the loop."""

    def __init__(self, socket: Socket, node_id: str) -> None:
        self.socket = socket
        self.waiting_bytes = 0
        self.waiting_count = 0
        self.is_paused = False
        self._outgoing: list[bytes] = []
        self._decoder = FrameDecoder()
        self._is_greeted = False
        self._is_scheduled = False
        self._loop = asyncio.get_running_loop()
        self.send([encode(Kind.HELLO, 0, encode_hello(node_id[:64]))])

    def send(self, frames: list[bytes]) -> None:
        self._outgoing += frames
        self.waiting_bytes += sum(map(len, frames))
        self.waiting_count += 1
        if not self._is_scheduled and not self.is_paused:
            self._is_scheduled = True
            self._loop.call_soon(self._flush)

    def pause(self) -> None:
        self.is_paused = True

    def resume(self) -> None:
        self.is_paused = False
        self._flush()

    def receive(self, data: bytes) -> Iterator[Frame]:
        """Frames after the greeting; raises Malformed, TooLarge."""
        for frame in self._decoder.receive_data(data):
            if not self._is_greeted:
                if frame.kind != Kind.HELLO:
                    raise Malformed("the first frame is not HELLO")
                decode_hello(frame.header)
                self._is_greeted = True
            else:
                yield frame

    def _flush(self) -> None:
        self._is_scheduled = False
        if self._outgoing and not self.is_paused:
            data = b"".join(self._outgoing)
            self._outgoing.clear()
            self.waiting_bytes = self.waiting_count = 0
            self.socket.write(data)
