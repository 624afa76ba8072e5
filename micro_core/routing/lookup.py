"""Which routes of a service are preferred, for the proxy (proxy/route_choice.py) and for explanations. Pure."""

from __future__ import annotations

from micro_core.contract.table import LOCAL_LINK

LOAD_SHARING_FACTOR = 1.25
"""Routes whose cost is up to a quarter above the best one share its calls, since measurements are not more precise."""

SHARED_UNDER_LOAD = 2.5
"""If calls wait on a route, those that exceed its window go to the next ones, usually to routes up to this multiple of its cost."""


def is_preferred_local(link: str, cost_us: int) -> bool:  # noqa: ARG001 - the window of this site limits the calls
    """Return whether a route leads to an instance of this site, which gets all calls that do not wait too long there."""
    return link == LOCAL_LINK
