"""Seqno requests: ask the origin for a newer sequence number (RFC 8966 section 3.8). Pure.

A router asks when none of its routes is feasible, when an infeasible route is clearly better than the selected one, which it
keeps using meanwhile, and when the next hops of all feasible routes are suspect. The request follows routes that are possibly
not free of loops. Unlike a call, it may go round in circles until its hop limit is reached or a router recognises that it has
already forwarded it.
"""

from __future__ import annotations

from micro_core.routing.entries import Seqno
from micro_core.routing.events import Count, Effect, SeqnoRequest
from micro_core.routing.neighbour import Neighbour
from micro_core.routing.rib_entry import NO_SEQNO, RibEntry
from micro_core.wire import limits

RETRY_S = 1.0
"""Minimum time in seconds before the same request is sent again. The delay doubles each time, up to the maximum."""
MAX_RETRY_S = 30.0

BETTER_RETRY_S = 10.0
"""Minimum time in seconds between two requests because of a better route."""

ENDANGERED_RETRY_S = 2.0
"""Minimum time in seconds between two requests because the next hops of all feasible routes are suspect."""

MAX_ASKED_WHILE_CLOSING = 3
"""Maximum number of neighbours that are asked when links are given up, the nearest first: the present routes work until then."""

NEVER = float("inf")


class _State:
    """The requests for one origin."""

    __slots__ = (
        "asked",
        "asked_at",
        "better_at",
        "endangered_at",
        "forwarded",
        "forwarded_at",
        "requesters",
        "retry_at",
        "retry_s",
        "seqno",
    )

    def __init__(self) -> None:
        self.seqno = NO_SEQNO
        """The sequence number that is to be exceeded."""
        self.asked_at = -NEVER
        self.asked: set[str] = set()
        """The neighbours to which the last request was sent."""
        self.retry_at = NEVER
        self.retry_s = RETRY_S
        self.better_at = self.endangered_at = -NEVER
        self.forwarded = NO_SEQNO
        self.forwarded_at = -NEVER
        self.requesters: dict[str, Seqno] = {}
        """The neighbours that wait for a sequence number, with the one to be exceeded."""


class SeqnoRequester:
    """The seqno requests that this router has sent and received. The neighbours collect the messages."""

    def __init__(self, neighbours: dict[str, Neighbour]) -> None:
        self._neighbours = neighbours
        self._states: dict[str, _State] = {}
        self.wake_at = NEVER

    def starved(self, entry: RibEntry, now: float) -> list[Effect]:
        """Send a request to every neighbour with a candidate, to each once per `RETRY_S`.

        A neighbour whose candidate was added after the others were asked is asked as well: the routes of the others may
        all lead through this router.
        """
        state = self._state(entry.origin)
        if state.seqno != entry.fd_seqno:
            state.retry_s = RETRY_S
        # Not `now - asked_at`: at the time of the retry, that may be a little less because of rounding, and there is no other retry.
        if state.seqno != entry.fd_seqno or now >= state.asked_at + RETRY_S:
            state.seqno, state.asked_at = entry.fd_seqno, now
            state.asked.clear()
            state.retry_at = now + state.retry_s
            state.retry_s = min(MAX_RETRY_S, 2 * state.retry_s)
            self.wake_at = min(self.wake_at, state.retry_at)
        peers = [peer for peer, one in entry.adjacencies.items() if one.path and peer not in state.asked]
        state.asked.update(peers)
        return self._ask(entry, peers)

    def better(self, entry: RibEntry, peer: str, now: float) -> list[Effect]:
        """Send a request because the infeasible candidate of `peer` is clearly better than the selected one."""
        state = self._state(entry.origin)
        may_ask_at = state.better_at + BETTER_RETRY_S
        if now < may_ask_at:
            state.retry_at = min(state.retry_at, may_ask_at)
            self.wake_at = min(self.wake_at, state.retry_at)
            return []
        state.better_at = now
        return self._ask(entry, [peer])

    def endangered(self, entry: RibEntry, now: float) -> list[Effect]:
        """Send requests if the next hops of all feasible routes are suspect, so that an infeasible one can be used, too.

        The answer comes along a way that works. The present routes remain: a neighbour that is suspect may be busy.
        """
        state = self._state(entry.origin)
        candidates = [peer for peer, one in entry.adjacencies.items() if one.path]
        reliable = [peer for peer in candidates if not self._neighbours[peer].is_suspect]
        if any(entry.adjacencies[peer].is_installed for peer in reliable):
            return []
        if not reliable or now - state.endangered_at < ENDANGERED_RETRY_S:
            return []
        state.endangered_at = now
        installed = [self._neighbours[peer] for peer in candidates if entry.adjacencies[peer].is_installed]
        if installed and all(neighbour.is_closing for neighbour in installed):
            reliable.sort(
                key=lambda peer: (entry.adjacencies[peer].metric_us + self._neighbours[peer].cost.cost_us, peer)
            )
            reliable = reliable[:MAX_ASKED_WHILE_CLOSING]
        return self._ask(entry, reliable)

    def outdated_origin(self, entry: RibEntry, peer: str, now: float) -> list[Effect]:
        """Inform an origin, which is a neighbour, that its sequence number is older than one that it has used before."""
        state = self._state(entry.origin)
        if now - state.better_at < RETRY_S:
            return []
        state.better_at = now
        incarnation, sequence = entry.newest_seqno
        self._neighbours[peer].request_seqno(SeqnoRequest(entry.origin, incarnation, sequence, 1))
        return [Count("routing_seqno_requests")]

    def forward(self, request: SeqnoRequest, entry: RibEntry, sender: str, now: float) -> list[Effect]:
        """Forward a request towards its origin, once per `RETRY_S`: along the selected route, or along all without one.

        A selected route whose next hop is suspect counts as none. A request whose hops are used up is dropped. The sender gets
        the new sequence number in any case.
        """
        state = self._state(request.origin)
        state.requesters[sender] = request.seqno
        if request.hops_left <= 1 or (state.forwarded >= request.seqno and now - state.forwarded_at < RETRY_S):
            return []
        state.forwarded, state.forwarded_at = request.seqno, now
        if entry.selected and entry.selected != sender and not self._neighbours[entry.selected].is_suspect:
            next_hops = [entry.selected]
        else:
            next_hops = [peer for peer, one in entry.adjacencies.items() if one.path and peer != sender]
        forwarded = request._replace(hops_left=request.hops_left - 1)
        for peer in next_hops:
            self._neighbours[peer].request_seqno(forwarded)
        return [Count("routing_seqno_requests_forwarded", len(next_hops))] if next_hops else []

    def answered(self, entry: RibEntry) -> list[str]:
        """Return the neighbours that wait for the sequence number of the selected route, each once."""
        state = self._states.get(entry.origin)
        if state is None or not state.requesters:
            return []
        seqno = entry.adjacencies[entry.selected].seqno
        found = [peer for peer, requested in state.requesters.items() if seqno > requested]
        for peer in found:
            del state.requesters[peer]
        return found

    def due(self, now: float) -> list[str]:
        """Return the origins for which a request may have to be repeated now."""
        if now < self.wake_at:
            return []
        found = [origin for origin, state in self._states.items() if state.retry_at <= now]
        for origin in found:
            self._states[origin].retry_at = NEVER
        self.wake_at = min((state.retry_at for state in self._states.values()), default=NEVER)
        return found

    def expire(self, now: float) -> None:
        """Delete the requests that are older than a minute."""
        for origin, state in [*self._states.items()]:
            last_at = max(state.asked_at, state.better_at, state.endangered_at, state.forwarded_at)
            if state.retry_at == NEVER and now - last_at > 2 * MAX_RETRY_S:
                del self._states[origin]

    def _state(self, origin: str) -> _State:
        state = self._states.get(origin)
        if state is None:
            state = self._states[origin] = _State()
        return state

    def _ask(self, entry: RibEntry, peers: list[str]) -> list[Effect]:
        incarnation, sequence = entry.fd_seqno
        request = SeqnoRequest(entry.origin, incarnation, sequence, limits.MAX_HOPS)
        for peer in peers:
            self._neighbours[peer].request_seqno(request)
        return [Count("routing_seqno_requests", len(peers))] if peers else []
