"""What every broker asks of a message before it takes it, so that no hop after it has to refuse it. Pure."""

from __future__ import annotations

from micro_core.contract.broker import Message
from micro_core.contract.errors import BadRequest, TooLarge
from micro_core.contract.names import MAX_NAME_CHARS

MAX_MESSAGE_BYTES = 4 * 1024 * 1024
"""Longest body: the bound of every message that crosses the network (`micro_core.wire.limits.MAX_BODY_BYTES`)."""

MAX_ID_CHARS = 64
MAX_CONTENT_TYPE_CHARS = 100
MAX_HEADERS = 60
"""Headers of a publisher. A publication's topic and id travel beside them, and the house adds two of its own: together
the entries that one frame's header may have (`limits.MAX_METADATA_ENTRIES`)."""

MAX_HEADERS_BYTES = 14 * 1024
"""Names and values of them. What is left of a frame's header (`limits.MAX_HEADER_BYTES`, 16 KiB) holds topic, id, content
type and the house's own."""

HOUSE_PREFIX = "micro-"
_BYTES_AROUND = 8
"""What a name and a value cost beyond their own bytes: the prefix of a name, and msgpack's two lengths."""


def check_message(message: Message) -> Message:
    """Return `message`; raise TooLarge or BadRequest for one that could not reach every subscriber. For `publish`."""
    if len(message.body) > MAX_MESSAGE_BYTES:
        raise TooLarge(
            f"a message of {len(message.body)} bytes is over the bound of {MAX_MESSAGE_BYTES}",
            hint="publish where it can be fetched, not the thing itself",
        )
    if not 1 <= len(message.id) <= MAX_ID_CHARS:
        raise BadRequest(f"the message id {message.id!r:.80} has not 1 to {MAX_ID_CHARS} characters")
    if len(message.content_type) > MAX_CONTENT_TYPE_CHARS:
        raise BadRequest(f"the content type {message.content_type!r:.80} is over {MAX_CONTENT_TYPE_CHARS} characters")
    if message.headers:
        _check_headers(message)
    return message


def check_queue(queue: str) -> str:
    """Return `queue`, the name of a queue group or "", or raise BadRequest. For `subscribe`."""
    if len(queue) > MAX_NAME_CHARS:
        raise BadRequest(f"the queue group {queue!r:.80} is over {MAX_NAME_CHARS} characters")
    return queue


def _check_headers(message: Message) -> None:
    own = {name: value for name, value in message.headers.items() if not name.startswith(HOUSE_PREFIX)}
    if len(own) > MAX_HEADERS or len(message.headers) > MAX_HEADERS + 2:
        raise TooLarge(f"a message of {len(own)} headers is over the bound of {MAX_HEADERS}", hint="send fewer")
    try:
        size = sum(len(name.encode()) + len(value.encode()) + _BYTES_AROUND for name, value in own.items())
    except UnicodeEncodeError as error:
        raise BadRequest(f"a message header is not text: {error.reason}") from error
    if size > MAX_HEADERS_BYTES:
        raise TooLarge(
            f"message headers of {size} bytes are over the bound of {MAX_HEADERS_BYTES}", hint="put it into the body"
        )
