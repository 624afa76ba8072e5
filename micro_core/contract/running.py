"""The view of a running node that a cross-cutting plugin receives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from micro_core.contract.registry import Registry
from micro_core.contract.table import Table
from micro_core.contract.tunnel import Tunnel


class RunningNode(Protocol):
    """A running node, as passed to `micro_node_started` and `micro_node_stopping`. Plugins only read it."""

    @property
    def node_id(self) -> str:
        """The id of the node: 32 characters of base32."""
        ...

    @property
    def name(self) -> str:
        """The display name of the node."""
        ...

    @property
    def site(self) -> str:
        """The site of the node."""
        ...

    @property
    def network_name(self) -> str:
        """The name of the network to which the node belongs."""
        ...

    @property
    def address(self) -> str:
        """The address at which the node accepts calls from its site."""
        ...

    @property
    def registry(self) -> Registry:
        """The registry of the site."""
        ...

    @property
    def table(self) -> Table:
        """The route table of the node."""
        ...

    @property
    def tunnel(self) -> Tunnel:
        """The tunnel of the node."""
        ...

    def facts(self) -> Mapping[str, Any]:
        """Return the values that `micro network status` shows, e.g. `drivers`, `in_flight` (calls), `counters` and the identity."""
        ...

    def counted(self) -> Mapping[str, int]:
        """Return the values of all counters by name."""
        ...
