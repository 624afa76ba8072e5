"""The export filter: which origins and services are advertised to a neighbour. Pure."""

from __future__ import annotations

from collections.abc import Callable

from micro_core.routing.entries import OriginAnnounce
from micro_core.routing.events import Effect
from micro_core.routing.neighbour import Neighbour
from micro_core.routing.origin import Origin
from micro_core.routing.policy import ExportScope
from micro_core.routing.rib import Rib
from micro_core.routing.rib_entry import RibEntry

IsVisible = Callable[[str], bool]
"""Returns whether a neighbour may see a service."""


class ExportFilter:
    """Selects what is advertised from this router (`origin`) and from the learned routes (`rib`)."""

    def __init__(self, origin: Origin, rib: Rib) -> None:
        self._origin = origin
        self._rib = rib
        self.created: list[OriginAnnounce] = []
        """The announcements that were created since the caller has emptied the list."""

    def announcement(
        self, neighbour: Neighbour, entry: RibEntry, effects: list[Effect]
    ) -> tuple[OriginAnnounce | None, IsVisible | None]:
        """Return what is to be advertised to `neighbour` about the origin of `entry`, None for nothing.

        The second value selects the visible services. It is None if the neighbour may see all of them.

        Advertising a route may make other candidates infeasible: `effects` receives the changes of the table.
        """
        if self._origin.is_draining:
            return None, None
        is_own = entry.origin == self._origin.router
        if not is_own:
            selected = entry.adjacencies.get(entry.selected)
            # Split horizon: a route is not advertised to the routers on its path. The last of them is the next hop.
            if selected is None or neighbour.peer in selected.path:
                return None, None
            if neighbour.is_unfiltered and selected.view is None:
                return self._current_export(entry, effects), None
        elif entry.export is None:
            return None, None
        site = self._origin.site if is_own else entry.site
        if not neighbour.policy.permits_export(site, is_own=is_own):
            return None, None
        is_visible = self._visible_services(neighbour, entry, is_own=is_own)
        if is_visible is not None and not self._is_any_visible(entry, is_visible):
            return None, None
        export = entry.export if is_own else self._current_export(entry, effects)
        if export is not None and neighbour.has_partial_view:
            export = export.as_partial()
        return export, is_visible

    def _current_export(self, entry: RibEntry, effects: list[Effect]) -> OriginAnnounce:
        before = entry.export
        if before is not None and entry.is_export_current:
            return before
        export = entry.refresh_export(self._origin.router, self._rib.costs)
        if export is not before:
            self.created.append(export)
            entry.select(self._rib.costs, "", effects)
        return export

    def _visible_services(self, neighbour: Neighbour, entry: RibEntry, *, is_own: bool) -> IsVisible | None:
        is_reachable = entry.is_visible if not is_own and entry.is_partial() else None
        if not neighbour.has_partial_view:
            return is_reachable
        permits = neighbour.policy.permits_export_of
        is_best_only = neighbour.policy.export is ExportScope.BEST
        return lambda service: (
            permits(service)
            and (is_reachable is None or is_reachable(service))
            and (not is_best_only or self._is_best(entry.origin, service))
        )

    @staticmethod
    def _is_any_visible(entry: RibEntry, is_visible: IsVisible) -> bool:
        return entry.offers is not None and any(map(is_visible, entry.offers.entries))

    def _is_best(self, origin: str, service: str) -> bool:
        """Return whether an origin has the lowest cost of all that offer a service. This site precedes all others."""
        if origin == self._origin.router:
            return True
        if service in self._origin.offers.entries:
            return False
        own_rank = self._rank(origin, service)
        return all(own_rank < self._rank(other, service) for other in self._rib.origins_of(service) if other != origin)

    def _rank(self, origin: str, service: str) -> tuple[float, str]:
        entry = self._rib.entries[origin]
        selected = entry.adjacencies.get(entry.selected)
        if selected is None or entry.offers is None or not entry.is_visible(service):
            return (float("inf"), origin)
        load_us = entry.offers.entries[service].offer.load_us
        return (selected.metric_us + self._rib.costs[entry.selected] + load_us, origin)
