"""Name, site and network of a node."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from micro_core.contract.names import NAME_KEY, NODE_KEY, SITE_KEY, TUNNEL_KEY, short_id


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeDescription:
    """How a node is shown, and where it belongs. All processes of a node have the same values."""

    node_id: str
    name: str
    site: str
    network: str

    @property
    def hop(self) -> str:
        """The node as errors name it, e.g. `node eu-1 (b7f3kq2a)`."""
        return f"node {self.name} ({short_id(self.node_id)})"

    def metadata(self, tunnel_addresses: Sequence[str]) -> dict[str, str]:
        """Return the metadata of the node's record in the registry. Resolvers read the addresses from it."""
        return {
            NODE_KEY: self.node_id,
            NAME_KEY: self.name,
            SITE_KEY: self.site,
            TUNNEL_KEY: ",".join(tunnel_addresses),
        }
