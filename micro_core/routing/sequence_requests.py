"""Asking an origin for a later sequence, where no way left is surely free of loops (RFC 8966 section 3.8). Pure.

The request goes along ways that are not known to be free of loops: unlike a call it may go in circles, until its hops are
used up or somebody has passed it on already.
"""

from __future__ import annotations

from dataclasses import replace

from micro_core.routing.events import Count, Effect, SendMessage, SequenceRequest
from micro_core.routing.rib_entry import Learned
from micro_core.wire import limits

AGAIN_S = 1.0
"""A request that has not helped is sent again after this, when something else happens to the service."""


def ask(key: tuple[str, str], learned: Learned, now: float) -> list[Effect]:
    """Ask for `key` (origin, service) through everybody who names a way, each once in a while.

    A neighbour that has come to name one since the others were asked may be the only one whose way is no circle.
    """
    version = learned.distance[0]
    asked, when = learned.requested
    if asked != version or now - when >= AGAIN_S:
        learned.requested = (version, now)
        learned.asked.clear()
    peers = [peer for peer in learned.candidates if peer not in learned.asked]
    if not peers:
        return []
    learned.asked.update(peers)
    request = SequenceRequest(
        origin=key[0], service=key[1], incarnation=version[0], sequence=version[1], hops_left=limits.MAX_HOPS
    )
    return [Count("routing_sequence_requests"), *(SendMessage(peer, request) for peer in peers)]


def pass_on(request: SequenceRequest, learned: Learned, sender: str, now: float) -> list[Effect]:
    """Towards the origin, once: along the way in use, or along all where there is none."""
    asked, when = learned.requested
    if request.hops_left <= 1 or (asked >= request.at and now - when < AGAIN_S):
        return []
    learned.requested = (request.at, now)
    onward = replace(request, hops_left=request.hops_left - 1)
    towards = [learned.best] if learned.best and learned.best != sender else [*learned.candidates]
    learned.asked = {peer for peer in towards if peer != sender}
    return [SendMessage(peer, onward) for peer in towards if peer != sender]
