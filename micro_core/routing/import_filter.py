"""The import filter: which announcements of a neighbour are rejected. Pure."""

from __future__ import annotations

from micro_core.routing.entries import OriginAnnounce
from micro_core.routing.events import Count
from micro_core.routing.neighbour import Neighbour
from micro_core.routing.rib_entry import RibEntry
from micro_core.wire import limits


def rejection_of(
    announce: OriginAnnounce, *, router: str, neighbour: Neighbour, entry: RibEntry | None
) -> Count | None:
    """Return the effect that counts the reason for which an announcement is rejected, None if it is accepted.

    Args:
        announce: The announcement.
        router: Node id of this router.
        neighbour: The neighbour that sent the announcement.
        entry: The entry of the same origin, None for a new one.
    """
    path = announce.path
    if router in path:
        return Count("routing_loops_refused")
    if path[0] != announce.origin or path[-1] != neighbour.peer:
        return Count("routing_paths_refused")
    if len(path) >= limits.MAX_HOPS:
        return Count("routing_paths_too_long")
    if entry is not None and (
        announce.seqno[0] < entry.newest_seqno[0] or (entry.is_withdrawn and announce.seqno <= entry.newest_seqno)
    ):
        return Count("routing_entries_outdated")
    if not neighbour.policy.permits_import(announce.site):
        return Count("routing_entries_refused_by_policy")
    return None
