"""Seqno requests: ask the origin for a newer sequence number when no route is feasible (RFC 8966 section 3.8). Pure.

The request follows routes that are possibly not free of loops. Unlike a call, it may go round in circles until its hop
limit is reached or a router recognises that it has already forwarded it.
"""

from __future__ import annotations

from dataclasses import replace

from micro_core.routing.events import Count, Effect, SendMessage, SeqnoRequest
from micro_core.routing.rib_entry import RibEntry
from micro_core.wire import limits

RETRY_S = 1.0
"""Minimum time in seconds before the same request is sent again. It is sent with the next change of the service."""


def request_seqno(key: tuple[str, str], entry: RibEntry, now: float) -> list[Effect]:
    """Send a request for `key` (origin, service) to every neighbour with a candidate, to each once per `RETRY_S`.

    A neighbour whose candidate was added after the others were asked is asked as well: the routes of the others may all
    lead through this router.
    """
    seqno = entry.feasibility_distance[0]
    last_seqno, sent_at = entry.last_request
    if last_seqno != seqno or now - sent_at >= RETRY_S:
        entry.last_request = (seqno, now)
        entry.requested_from.clear()
    peers = [peer for peer in entry.candidates if peer not in entry.requested_from]
    if not peers:
        return []
    entry.requested_from.update(peers)
    request = SeqnoRequest(
        origin=key[0], service=key[1], incarnation=seqno[0], sequence=seqno[1], hops_left=limits.MAX_HOPS
    )
    return [Count("routing_seqno_requests"), *(SendMessage(peer, request) for peer in peers)]


def forward(request: SeqnoRequest, entry: RibEntry, sender: str, now: float) -> list[Effect]:
    """Forward a request towards its origin, once per `RETRY_S`: along the selected route, or along all without one.

    A request whose hops are used up is dropped.
    """
    last_seqno, sent_at = entry.last_request
    if request.hops_left <= 1 or (last_seqno >= request.seqno and now - sent_at < RETRY_S):
        return []
    entry.last_request = (request.seqno, now)
    forwarded = replace(request, hops_left=request.hops_left - 1)
    next_hops = [entry.selected] if entry.selected and entry.selected != sender else [*entry.candidates]
    entry.requested_from = {peer for peer in next_hops if peer != sender}
    return [SendMessage(peer, forwarded) for peer in next_hops if peer != sender]
