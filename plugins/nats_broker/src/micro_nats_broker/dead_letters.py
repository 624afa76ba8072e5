"""Dead letters: messages that could not be handled. Pure."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from micro_core.contract import Message
from micro_core.contract.messages import MAX_HEADERS, MAX_HEADERS_BYTES
from micro_core.contract.names import RESERVED_PREFIX

TOPIC = "dead-letter-topic"
ID = "dead-letter-id"
QUEUE = "dead-letter-queue"
DELIVERIES = "dead-letter-deliveries"
REASON = "dead-letter-reason"
MAX_REASON_CHARS = 500
"""Maximum length of the reason."""

_OWN_HEADERS_BYTES = 4 * MAX_REASON_CHARS + 1_500
"""Maximum size of the headers added to a dead letter."""


def make_dead_letter(topic: str, message: Message, queue: str, deliveries: int, reason: str) -> Message:
    """Return a dead letter with the body and content type of `message` and headers that describe the failure.

    Its id is derived from message, topic and queue, so that it is stored only once if publishing is repeated. If there are too
    many headers, the last headers of the publisher are omitted.
    """
    own_headers = {
        TOPIC: topic,
        ID: message.id,
        QUEUE: queue,
        DELIVERIES: str(deliveries),
        REASON: "".join(character if character.isprintable() else " " for character in reason)[:MAX_REASON_CHARS],
    }
    kept: dict[str, str] = {}
    space_bytes = MAX_HEADERS_BYTES - _OWN_HEADERS_BYTES
    for name, value in message.headers.items():
        space_bytes -= len(name.encode()) + len(value.encode()) + 8
        # Omit headers of the node, which belong to the delivered copy.
        if space_bytes < 0 or len(kept) + len(own_headers) >= MAX_HEADERS:
            break
        if name not in own_headers and not name.startswith(RESERVED_PREFIX):
            kept[name] = value
    new_id = hashlib.sha256(f"{message.id}\0{topic}\0{queue}".encode()).hexdigest()[:32]
    return replace(message, id=new_id, headers={**kept, **own_headers})
