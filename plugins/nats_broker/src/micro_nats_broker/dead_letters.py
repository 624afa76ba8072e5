"""What becomes of a message that was delivered in vain. Pure."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from micro_core.contract import Message
from micro_core.contract.messages import HOUSE_PREFIX, MAX_HEADERS, MAX_HEADERS_BYTES

TOPIC = "dead-letter-topic"
ID = "dead-letter-id"
QUEUE = "dead-letter-queue"
DELIVERIES = "dead-letter-deliveries"
REASON = "dead-letter-reason"
MAX_REASON_CHARS = 500
_ROOM_BYTES = 4 * MAX_REASON_CHARS + 1_500
"""What our headers take at most."""


def letter(topic: str, message: Message, queue: str, deliveries: int, reason: str) -> Message:
    """The message as a dead letter: body and content type as they were, and headers that say what happened.

    Its id follows from message and queue, so that it is buried once, however often that is tried. Headers of the
    publisher are left out from the end where there is no room for ours.
    """
    ours = {
        TOPIC: topic,
        ID: message.id,
        QUEUE: queue,
        DELIVERIES: str(deliveries),
        REASON: "".join(letter if letter.isprintable() else " " for letter in reason)[:MAX_REASON_CHARS],
    }
    kept: dict[str, str] = {}
    room = MAX_HEADERS_BYTES - _ROOM_BYTES
    for name, value in message.headers.items():
        room -= len(name.encode()) + len(value.encode()) + 8
        # The node's own marks are about the copy that was delivered; this is a message of its own.
        if room < 0 or len(kept) + len(ours) >= MAX_HEADERS:
            break
        if name not in ours and not name.startswith(HOUSE_PREFIX):
            kept[name] = value
    identity = hashlib.sha256(f"{message.id}\0{topic}\0{queue}".encode()).hexdigest()[:32]
    return replace(message, id=identity, headers={**kept, **ours})
