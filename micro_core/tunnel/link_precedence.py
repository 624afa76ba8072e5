"""Which of two links to one peer is kept. Both ends keep the same one, because they apply the same rule to the same facts.

- A link of a later incarnation of the peer replaces a link of an earlier one.
- Of two links dialled by the same node, the one with the higher generation is kept.
- Of two links dialled by both nodes at once, the one dialled by the node with the smaller id is kept.

Pure.
"""

from __future__ import annotations

from typing import Protocol

from micro_core.tunnel.handshake import Hello


class _DriverLink(Protocol):
    driver: str


class RankedLink(Protocol):
    """What the rule needs of an authenticated link."""

    @property
    def peer(self) -> Hello | None:
        """What the peer stated about itself."""
        ...

    @property
    def peer_id(self) -> str:
        """Node id of the peer."""
        ...

    @property
    def own(self) -> Hello:
        """What this end stated about itself."""
        ...

    @property
    def dialed(self) -> bool:
        """Whether this end dialled the link."""
        ...

    @property
    def link(self) -> _DriverLink:
        """The link of the driver."""
        ...


def supersedes(node_id: str, new: RankedLink, old: RankedLink) -> bool:
    """Return whether `new` replaces `old` at the node `node_id`. Both are authenticated links to the same peer."""
    new_peer, old_peer = _peer(new), _peer(old)
    if new_peer.incarnation != old_peer.incarnation:
        return new_peer.incarnation > old_peer.incarnation
    if new.own.incarnation != old.own.incarnation:
        # This node was suspended since: the peer sees a later incarnation, too.
        return new.own.incarnation > old.own.incarnation
    if new.dialed == old.dialed:
        return _generation(new) > _generation(old)
    return new.dialed is (node_id < new.peer_id)


def is_move(new: RankedLink, old: RankedLink) -> bool:
    """Return whether the old link still works: the same incarnation of the peer has a new link over another driver.

    A second link over the same driver means that the old one is broken: otherwise the peer would not have dialled.
    """
    is_same = _peer(new).incarnation == _peer(old).incarnation and new.own.incarnation == old.own.incarnation
    return is_same and new.link.driver != old.link.driver


def _peer(link: RankedLink) -> Hello:
    assert link.peer is not None
    return link.peer


def _generation(link: RankedLink) -> int:
    return (link.own if link.dialed else _peer(link)).generation
