"""The paths between the nodes of a lab: delay, loss, bandwidth and largest datagram, and where they are cut or blocked."""

from __future__ import annotations

from dataclasses import dataclass

SCHEME = "lab"

DATAGRAM_BYTES = 1_452
"""The largest datagram that a path carries unless a lab sets a smaller one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """The properties of one direction of a link."""

    delay_s: float = 0.005
    """One-way delay."""
    jitter_s: float = 0.0
    """Maximum random addition to the delay, uniformly distributed."""
    loss: float = 0.0
    """Share of packets that are lost and sent again, 0 to 1."""
    bytes_per_s: float | None = None
    """Bandwidth. None means unlimited."""


class Paths:
    """The conditions of each direction between two nodes. Nodes are named by their names in the lab."""

    def __init__(self, conditions: Conditions | None = None) -> None:
        self.default_conditions = conditions or Conditions()
        self._conditions: dict[tuple[str, str], Conditions] = {}
        self._between_sites: dict[tuple[str, str], Conditions] = {}
        self._largest: dict[tuple[str, str], int] = {}
        self._cut: set[tuple[str, str]] = set()
        self._blocked: set[tuple[str, str, str]] = set()
        """(scheme, source, target): directions in which one driver is blocked, as by a firewall."""
        self._sites: dict[str, str] = {}
        self._behind_nat: set[str] = set()
        self._names: dict[str, str] = {}
        """Name of the node at each address."""

    # ----------------------------------------------------------------------- nodes

    def add_node(self, node: str, *, site: str, address: str, is_behind_nat: bool = False) -> None:
        """Note where a node is: its site, its address, and whether other sites cannot dial it."""
        self._sites[node] = site
        self._names[address] = node
        if is_behind_nat:
            self._behind_nat.add(node)

    def node_at(self, address: str) -> str | None:
        """Return the name of the node at an address. A name is its own address. None for an address where no node ever was."""
        return self._names.get(address, None if ":" in address else address)

    def is_dialable(self, source: str, target: str) -> bool:
        """Return whether `target` is not behind a NAT, or on the site of `source`."""
        return target not in self._behind_nat or self._sites.get(source) == self._sites.get(target)

    # ------------------------------------------------------------------ conditions

    def set(self, one: str, other: str, conditions: Conditions) -> None:
        """Set the conditions of both directions between two nodes. Data in transit is not affected."""
        self._conditions[one, other] = self._conditions[other, one] = conditions

    def set_one_way(self, source: str, target: str, conditions: Conditions) -> None:
        """Set the conditions from `source` to `target`."""
        self._conditions[source, target] = conditions

    def unset(self, one: str, other: str) -> None:
        """Undo `set` and `set_one_way` between two nodes."""
        self._conditions.pop((one, other), None)
        self._conditions.pop((other, one), None)

    def set_between_sites(self, one: str, other: str, conditions: Conditions) -> None:
        """Set the conditions between all nodes of two sites, or within a site. Conditions of two nodes take precedence."""
        self._between_sites[one, other] = self._between_sites[other, one] = conditions

    def conditions(self, source: str, target: str) -> Conditions:
        """Return the conditions from `source` to `target`."""
        found = self._conditions.get((source, target))
        if found is None and self._between_sites:
            found = self._between_sites.get((self._sites.get(source, ""), self._sites.get(target, "")))
        return found or self.default_conditions

    def largest_datagram(self, source: str, target: str) -> int:
        """Return the size of the largest datagram that passes from `source` to `target`, in bytes."""
        return self._largest.get((source, target), DATAGRAM_BYTES)

    # ---------------------------------------------------------------------- faults

    def is_cut(self, source: str, target: str, scheme: str = SCHEME) -> bool:
        """Return whether data of a driver cannot pass from `source` to `target`."""
        return (source, target) in self._cut or (scheme, source, target) in self._blocked
