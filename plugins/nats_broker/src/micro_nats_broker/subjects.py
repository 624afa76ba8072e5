"""Map topics to NATS subjects, and name JetStream streams and consumers. Pure.

    topic  orders.created  of site eu in network go.micro  <->  micro.go.micro@eu.orders.created

Names of networks, sites and topics contain no `@`, so the segment with it ends the prefix, and no two sites or networks share a
subject. NATS does not allow empty segments, but topics and networks do (`a..b`): an empty segment is sent as `%`, which no
name contains either.
"""

from __future__ import annotations

import hashlib
import re

from micro_core.contract import BadRequest
from micro_core.contract.names import check_topic

ANY_SEGMENT = "*"
ANY_REST = ">"
_EMPTY_SEGMENT = "%"
_ROOT = re.compile(r"[A-Za-z0-9_-]{1,40}(\.[A-Za-z0-9_-]{1,40}){0,4}")
_NOT_IN_SLUG = re.compile(r"[^A-Za-z0-9_-]+")
MAX_SLUG_CHARS = 40
"""Maximum length of the readable part of a stream or consumer name."""


def check_root(root: str) -> str:
    """Return `root` if it is a valid prefix of subjects. Raises ValueError otherwise."""
    if _ROOT.fullmatch(root) is None:
        raise ValueError(f"subject_root: {root!r:.60} must have one to five segments of letters, digits, _ and -")
    return root


def check_pattern(pattern: str) -> str:
    """Return `pattern` if it is a topic or a valid pattern of topics. Raises BadRequest otherwise.

    `*` matches one segment between dots, `>` at the end matches one or more segments.
    """
    if ANY_SEGMENT not in pattern and ANY_REST not in pattern:
        return check_topic(pattern)
    segments = pattern.split(".")
    for index, segment in enumerate(segments):
        is_wildcard = segment == ANY_SEGMENT or (segment == ANY_REST and index == len(segments) - 1)
        if not is_wildcard and (ANY_SEGMENT in segment or ANY_REST in segment):
            raise BadRequest(
                f"{pattern!r:.60} is not a valid pattern of topics",
                hint="* matches a whole segment, > the rest: orders.*.created, orders.>",
            )
    # Check the rest like a topic, with a letter in place of each wildcard.
    check_topic(".".join("x" if segment in (ANY_SEGMENT, ANY_REST) else segment for segment in segments))
    return pattern


class Subjects:
    """The subjects of one site of one network."""

    def __init__(self, *, network: str, site: str, root: str) -> None:
        self.prefix = f"{check_root(root)}.{_segments(network)}@{site}."
        self.all = self.prefix + ANY_REST
        self.stream = _unique_name("micro", f"{root}_{network}_{site}", self.prefix)

    def of(self, topic: str) -> str:
        """Return the subject of a topic or of a pattern of topics."""
        return self.prefix + _segments(topic)

    def topic(self, subject: str) -> str:
        """Return the topic of a subject. Raises BadRequest if it is not a subject of this site."""
        if not subject.startswith(self.prefix):
            raise BadRequest(f"{subject!r:.80} is not a subject of this site")
        rest = subject[len(self.prefix) :]
        topic = ".".join("" if segment == _EMPTY_SEGMENT else segment for segment in rest.split("."))
        if _segments(topic) != rest:
            raise BadRequest(f"{subject!r:.80} is not the subject of a topic")
        return check_topic(topic)


def group_consumer(pattern: str, queue: str) -> str:
    """Return the name of the consumer of a queue group, which is the same for all its members."""
    return _unique_name("group", queue, f"{pattern}\0{queue}")


def single_consumer(pattern: str, subscriber: str, number: int, begin: str) -> str:
    """Return the name of the consumer of a subscriber without a queue; `number` distinguishes those of one process."""
    return _unique_name("one", subscriber, f"{pattern}\0{subscriber}\0{number}\0{begin}")


def _segments(name: str) -> str:
    return ".".join(segment or _EMPTY_SEGMENT for segment in name.split("."))


def _unique_name(kind: str, text: str, exact: str) -> str:
    """Return a readable name that is a valid file name and unique for `exact`."""
    slug = _NOT_IN_SLUG.sub("_", text)[:MAX_SLUG_CHARS]
    return f"{kind}-{slug}-{hashlib.sha256(exact.encode()).hexdigest()[:16]}"
