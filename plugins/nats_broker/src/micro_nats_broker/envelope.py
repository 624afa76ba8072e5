"""Convert messages to NATS headers and payload, and back. Pure.

    Micro-Id: 4f...        Content-Type: application/json        Nats-Msg-Id: 4f...:orders.created        n: 17

Headers of the publisher keep their names and values, so that other NATS programs can read them. Characters that are not
allowed in a NATS header (control characters, non-ASCII letters, spaces at the ends) are percent-encoded, and so is the first
letter of a reserved name: a header `Nats-Rollup` of a publisher would clear the stream.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import unquote_to_bytes

from micro_core.contract import BadRequest, Malformed, Message, TooLarge, check_message

ID = "Micro-Id"
CONTENT_TYPE = "Content-Type"
DEDUPE = "Nats-Msg-Id"
"""JetStream stores each value of this header only once within its window."""

_SERVER_PREFIX = "nats-"
_RESERVED = frozenset({"micro-id", "content-type", "status", "description"})
"""Our own headers, and the two in which nats-py stores the status line of a server."""

_PLAIN_NAME = re.compile(r"[!#$&'*+\-.^_`|~0-9A-Za-z]+")
_PLAIN_VALUE = re.compile(r"(?:[!-$&-~](?:[ -$&-~]*[!-$&-~])?)?")
_NOT_IN_NAME = re.compile(rb"[^!#$&'*+\-.^_`|~0-9A-Za-z]")
_NOT_IN_VALUE = re.compile(rb"[^ -$&-~]")
_ESCAPES = re.compile(r"%(?![0-9A-Fa-f]{2})")
_EMPTY_NAME = "%"
_VERSION_LINE_BYTES = len("NATS/1.0\r\n\r\n")
_LINE_BYTES = len(": \r\n")


def encode(topic: str, message: Message) -> dict[str, str]:
    """Return the NATS headers of a message that passed `check_message`. Raises BadRequest for invalid text."""
    try:
        headers = {
            ID: _encoded_value(message.id),
            CONTENT_TYPE: _encoded_value(message.content_type),
            DEDUPE: f"{_encoded_value(message.id)}:{topic}",
        }
        for name, value in message.headers.items():
            headers[_encoded_name(name)] = _encoded_value(value)
    except UnicodeEncodeError as error:
        raise BadRequest(f"id, content type and headers of a message must be valid text: {error.reason}") from error
    return headers


def decode(headers: Mapping[str, str] | None, payload: bytes) -> Message:
    """Return the message received with `headers` and `payload`. Raises Malformed if it was not published by micro."""
    if not headers or ID not in headers:
        raise Malformed("the message has no id", hint=f"publish with the header {ID}")
    own = {
        _decoded(name) if name != _EMPTY_NAME else "": _decoded(value)
        for name, value in headers.items()
        if not _is_reserved(name)
    }
    message = Message(
        id=_decoded(headers[ID]), body=payload, content_type=_decoded(headers.get(CONTENT_TYPE, "")), headers=own
    )
    try:
        return check_message(message)
    except (BadRequest, TooLarge) as error:
        raise Malformed(error.detail) from error


def size(headers: Mapping[str, str], payload: bytes) -> int:
    """Return the size in bytes that a server compares with its `max_payload`."""
    # Encoded names and values are ASCII, and so is the topic in DEDUPE.
    lines = sum(len(name) + len(value) + _LINE_BYTES for name, value in headers.items())
    return _VERSION_LINE_BYTES + lines + len(payload)


def encode_name(text: str) -> str:
    """Encode any text as printable ASCII without spaces and dots; an empty text stays empty."""
    return _NOT_IN_NAME.sub(_escape, text.encode()).decode()


def _is_reserved(name: str) -> bool:
    lower = name.lower()
    return lower in _RESERVED or lower.startswith(_SERVER_PREFIX)


def _encoded_name(name: str) -> str:
    if _PLAIN_NAME.fullmatch(name) is None:
        name = _NOT_IN_NAME.sub(_escape, name.encode()).decode() or _EMPTY_NAME
    return f"%{ord(name[0]):02X}{name[1:]}" if _is_reserved(name) else name


def _encoded_value(value: str) -> str:
    if _PLAIN_VALUE.fullmatch(value) is not None:
        return value
    text = _NOT_IN_VALUE.sub(_escape, value.encode()).decode()
    # NATS strips spaces at the ends.
    inner = text.strip(" ")
    before, after = len(text) - len(text.lstrip(" ")), len(text) - len(text.rstrip(" "))
    return "%20" * before + inner + "%20" * after if inner else "%20" * len(text)


def _decoded(text: str) -> str:
    if "%" not in text:
        return text
    if _ESCAPES.search(text):
        raise Malformed(f"{text!r:.60} contains an invalid % escape")
    try:
        return unquote_to_bytes(text).decode()
    except UnicodeDecodeError as error:
        raise Malformed(f"{text!r:.60} is not valid text") from error


def _escape(match: re.Match[bytes]) -> bytes:
    return b"%%%02X" % match.group()[0]
