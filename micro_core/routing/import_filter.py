"""The import filter: which announcements of a neighbour are rejected. Pure."""

from __future__ import annotations

from micro_core.routing.events import Announce
from micro_core.routing.neighbour import Neighbour
from micro_core.routing.rib_entry import RibEntry
from micro_core.wire import limits


def rejection_of(
    announce: Announce, *, router: str, neighbour: Neighbour, entry: RibEntry | None, incarnation: int
) -> str:
    """Return the counter of the reason for which an announcement is rejected, an empty string if it is accepted.

    Args:
        announce: The announcement.
        router: Node id of this router.
        neighbour: The neighbour that sent the announcement.
        entry: The entry of the same service at the same origin, None for a new one.
        incarnation: The latest known incarnation of the origin.
    """
    if router in announce.path:
        return "routing_loops_refused"
    if announce.path[0] != announce.origin or announce.path[-1] != neighbour.peer:
        return "routing_paths_refused"
    if len(announce.path) >= limits.MAX_HOPS:
        return "routing_paths_too_long"
    if announce.incarnation < incarnation:
        return "routing_entries_outdated"
    if entry is not None and (
        announce.seqno < entry.newest_seqno or (announce.seqno == entry.newest_seqno and entry.is_withdrawn)
    ):
        return "routing_entries_outdated"
    if not neighbour.policy.permits_import(announce):
        return "routing_entries_refused_by_policy"
    key = (announce.origin, announce.service)
    if key not in neighbour.accepted and len(neighbour.accepted) >= limits.MAX_ROUTES_PER_NEIGHBOUR:
        return "routing_routes_over_limit"
    return ""
