"""Headers of messages that only nodes set."""

from __future__ import annotations

from dataclasses import replace

from micro_core.contract.broker import Message
from micro_core.contract.names import RESERVED_PREFIX

DELIVERED_BY = "micro-delivered-by"
"""Header of a message that a node published on the broker of its site: it came from another site and stays here."""

ORIGIN = "micro-origin"
"""Header with the id of the node that received the message from its publisher."""


def without_node_headers(message: Message) -> Message:
    """Return `message` without the headers that only nodes may set (`micro-...`)."""
    headers = {name: value for name, value in message.headers.items() if not name.startswith(RESERVED_PREFIX)}
    return replace(message, headers=headers)
