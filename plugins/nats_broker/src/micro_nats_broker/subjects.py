"""Topics as NATS subjects, and the names of what JetStream keeps. Pure.

    topic  orders.created  of site eu in network go.micro  <->  micro.go.micro@eu.orders.created

No name of the house holds `@`, so the part with it ends the prefix, and no two sites or networks share a subject. NATS
allows no empty parts; topics and networks do (`a..b`): an empty part travels as `%`, which no name holds either.
"""

from __future__ import annotations

import hashlib
import re

from micro_core.contract import BadRequest
from micro_core.contract.names import check_topic

ANY_PART = "*"
ANY_REST = ">"
_EMPTY_PART = "%"
_ROOT = re.compile(r"[A-Za-z0-9_-]{1,40}(\.[A-Za-z0-9_-]{1,40}){0,4}")
_NO_WORD = re.compile(r"[^A-Za-z0-9_-]+")
MAX_SLUG_CHARS = 40


def check_root(root: str) -> str:
    """Return `root`, or raise ValueError."""
    if _ROOT.fullmatch(root) is None:
        raise ValueError(f"subject_root: {root!r:.60} is not one to five parts of letters, digits, _ and -")
    return root


def check_pattern(pattern: str) -> str:
    """Return a topic, or a pattern of topics, to subscribe to; raise BadRequest.

    `*` stands for one part between dots, `>` at the end for one part or more.
    """
    if ANY_PART not in pattern and ANY_REST not in pattern:
        return check_topic(pattern)
    parts = pattern.split(".")
    for place, part in enumerate(parts):
        is_wild = part == ANY_PART or (part == ANY_REST and place == len(parts) - 1)
        if not is_wild and (ANY_PART in part or ANY_REST in part):
            raise BadRequest(
                f"{pattern!r:.60} is not a pattern of topics",
                hint="* stands for a whole part, > for the rest: orders.*.created, orders.>",
            )
    # What is left is checked as a topic is, with a letter in the place of each wildcard.
    check_topic(".".join("x" if part in (ANY_PART, ANY_REST) else part for part in parts))
    return pattern


class Subjects:
    """The subjects of one site of one network."""

    def __init__(self, *, network: str, site: str, root: str) -> None:
        self.prefix = f"{check_root(root)}.{_parts(network)}@{site}."
        self.all = self.prefix + ANY_REST
        self.stream = _named("micro", f"{root}_{network}_{site}", self.prefix)

    def of(self, topic: str) -> str:
        """The subject of a topic, or of a pattern of topics."""
        return self.prefix + _parts(topic)

    def topic(self, subject: str) -> str:
        """The topic of a subject. Raises BadRequest for one that no topic has."""
        if not subject.startswith(self.prefix):
            raise BadRequest(f"{subject!r:.80} is not a subject of this site")
        rest = subject[len(self.prefix) :]
        topic = ".".join("" if part == _EMPTY_PART else part for part in rest.split("."))
        if _parts(topic) != rest:
            raise BadRequest(f"{subject!r:.80} is not the subject of a topic")
        return check_topic(topic)


def group_consumer(pattern: str, queue: str) -> str:
    """The name of what JetStream remembers of a queue group: the same for all its members."""
    return _named("group", queue, f"{pattern}\0{queue}")


def single_consumer(pattern: str, subscriber: str, number: int, begin: str) -> str:
    """The name of what JetStream remembers of a subscriber without queue: the `number`th of its kind in a process."""
    return _named("one", subscriber, f"{pattern}\0{subscriber}\0{number}\0{begin}")


def _parts(name: str) -> str:
    return ".".join(part or _EMPTY_PART for part in name.split("."))


def _named(kind: str, words: str, exact: str) -> str:
    """Readable, legal as a file name, and different wherever `exact` is."""
    slug = _NO_WORD.sub("_", words)[:MAX_SLUG_CHARS]
    return f"{kind}-{slug}-{hashlib.sha256(exact.encode()).hexdigest()[:16]}"
