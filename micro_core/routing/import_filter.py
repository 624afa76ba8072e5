"""What is not believed of a neighbour. Pure."""

from __future__ import annotations

from micro_core.routing.events import Announce
from micro_core.routing.neighbour import Neighbour
from micro_core.routing.rib_entry import Learned
from micro_core.wire import limits


def refusal_of(
    announce: Announce, *, router: str, neighbour: Neighbour, learned: Learned | None, incarnation: int
) -> str:
    """The counter of the reason for which `router` refuses an announcement, empty where it does not.

    `learned` is what is known of the same service at the same origin, `incarnation` the origin's latest life.
    """
    if router in announce.path:
        return "routing_loops_refused"
    if announce.path[0] != announce.origin or announce.path[-1] != neighbour.peer:
        return "routing_paths_refused"
    if len(announce.path) >= limits.MAX_HOPS:
        return "routing_paths_too_long"
    if announce.incarnation < incarnation:
        return "routing_entries_outdated"
    if learned is not None and (
        announce.at < learned.newest or (announce.at == learned.newest and learned.is_withdrawn)
    ):
        return "routing_entries_outdated"
    if not neighbour.policy.takes(announce):
        return "routing_entries_refused_by_policy"
    key = (announce.origin, announce.service)
    if key not in neighbour.learned and len(neighbour.learned) >= limits.MAX_ROUTES_PER_NEIGHBOUR:
        return "routing_routes_over_the_bound"
    return ""
