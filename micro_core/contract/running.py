"""What a cross-cutting plugin sees of a node that runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from micro_core.contract.registry import Registry
from micro_core.contract.table import Table
from micro_core.contract.tunnel import Tunnel


class RunningNode(Protocol):
    """A node, as `micro_node_started` and `micro_node_stopping` are told of it: to be read, not to be changed."""

    @property
    def node_id(self) -> str: ...

    @property
    def name(self) -> str:
        """The node's name for people."""
        ...

    @property
    def site(self) -> str: ...

    @property
    def network_name(self) -> str: ...

    @property
    def address(self) -> str:
        """Where it takes calls."""
        ...

    @property
    def registry(self) -> Registry: ...

    @property
    def table(self) -> Table: ...

    @property
    def tunnel(self) -> Tunnel: ...

    def facts(self) -> Mapping[str, Any]:
        """What `micro network status` shows: `drivers`, `in_flight` (calls), `counters`, and who it is."""
        ...

    def counted(self) -> Mapping[str, int]:
        """All counters, by name."""
        ...
