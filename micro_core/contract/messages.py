"""Checks of messages and queue groups for broker drivers. A checked message is accepted by every hop. Pure."""

from __future__ import annotations

from micro_core.contract.broker import Message
from micro_core.contract.errors import BadRequest, TooLarge
from micro_core.contract.names import MAX_NAME_CHARS, RESERVED_PREFIX

MAX_MESSAGE_BYTES = 4 * 1024 * 1024
"""Maximum size of a body. It equals the limit of a message on the wire, `micro_core.wire.limits.MAX_BODY_BYTES`."""

MAX_ID_CHARS = 64
"""Maximum length of the id of a message. Ids of micro have 32 characters."""

MAX_CONTENT_TYPE_CHARS = 100
"""Maximum length of the content type of a message."""

MAX_HEADERS = 60
"""Maximum number of headers that a publisher sets. Topic, id and two headers that micro adds bring the number up to the limit
of a frame, `limits.MAX_METADATA_ENTRIES`."""

MAX_HEADERS_BYTES = 14 * 1024
"""Maximum size of all names and values together. The rest of the header of a frame (`limits.MAX_HEADER_BYTES`, 16 KiB) is for
topic, id, content type and the headers that micro adds."""

_HEADER_OVERHEAD_BYTES = 8
"""Size of an encoded header beyond name and value: the prefix of the name, and two msgpack lengths."""


def check_message(message: Message) -> Message:
    """Return `message` if every hop can forward it. Call this in `publish`.

    Raises:
        TooLarge: The body or the headers exceed a limit.
        BadRequest: The id, the content type or a header is invalid.
    """
    if len(message.body) > MAX_MESSAGE_BYTES:
        raise TooLarge(
            f"a message of {len(message.body)} bytes exceeds the limit of {MAX_MESSAGE_BYTES}",
            hint="publish a reference to the content instead",
        )
    if not 1 <= len(message.id) <= MAX_ID_CHARS:
        raise BadRequest(f"the message id {message.id!r:.80} does not have 1 to {MAX_ID_CHARS} characters")
    if len(message.content_type) > MAX_CONTENT_TYPE_CHARS:
        raise BadRequest(f"the content type {message.content_type!r:.80} exceeds {MAX_CONTENT_TYPE_CHARS} characters")
    if message.headers:
        _check_headers(message)
    return message


def check_queue(queue: str) -> str:
    """Return `queue`, the name of a queue group or an empty string. Call this in `subscribe`.

    Raises:
        BadRequest: The name has more than 253 characters.
    """
    if len(queue) > MAX_NAME_CHARS:
        raise BadRequest(f"the queue group {queue!r:.80} exceeds {MAX_NAME_CHARS} characters")
    return queue


def _check_headers(message: Message) -> None:
    own = {name: value for name, value in message.headers.items() if not name.startswith(RESERVED_PREFIX)}
    if len(own) > MAX_HEADERS or len(message.headers) > MAX_HEADERS + 2:
        raise TooLarge(
            f"a message with {len(own)} headers exceeds the limit of {MAX_HEADERS}", hint="send fewer headers"
        )
    try:
        size = sum(len(name.encode()) + len(value.encode()) + _HEADER_OVERHEAD_BYTES for name, value in own.items())
    except UnicodeEncodeError as error:
        raise BadRequest(f"a message header is not text: {error.reason}") from error
    if size > MAX_HEADERS_BYTES:
        raise TooLarge(
            f"message headers of {size} bytes exceed the limit of {MAX_HEADERS_BYTES}",
            hint="move the content of the headers to the body",
        )
