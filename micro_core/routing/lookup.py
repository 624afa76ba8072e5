"""Which routes of a service are preferred, for the proxy (proxy/route_choice.py) and for explanations. Pure."""

from __future__ import annotations

from micro_core.contract.table import LOCAL_LINK

LOAD_SHARING_FACTOR = 1.25
"""Routes whose cost is up to a quarter above the best one share its calls, since measurements are not more precise."""

DEFAULT_SITE = "local"
"""Name of sites without a configured name. Two sites with this name have nothing in common."""


def destination_name(site: str, origin: str) -> str:
    """Return the destination of a route: its site, or its origin (a node id) if the site has no name of its own."""
    return f"site {site}" if site not in {"", DEFAULT_SITE} else origin


def is_preferred_local(link: str, cost_us: int) -> bool:  # noqa: ARG001 - the window of this site limits the calls
    """Return whether a route leads to an instance of this site, which gets all calls that do not wait too long there."""
    return link == LOCAL_LINK
