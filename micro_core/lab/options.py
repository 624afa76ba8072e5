"""The options of a lab."""

from __future__ import annotations

from dataclasses import dataclass, field

from micro_core.lab.process import CpuModel
from micro_core.lab.simulated_links import SCHEME
from micro_core.network.link_targets import PeerOptions
from micro_core.routing.router import RouterOptions
from micro_core.tunnel.tunnel import TunnelOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class LabOptions:
    """Options of all nodes of a lab. The defaults are those of `micro run`."""

    tunnel: TunnelOptions = field(default_factory=TunnelOptions)
    router: RouterOptions = field(default_factory=RouterOptions)
    registry_lease_s: float = 90.0
    schemes: tuple[str, ...] = (SCHEME,)
    """The link drivers of every node, in order of preference. They share the links, but each can be blocked alone."""
    cpu: CpuModel | None = None
    """Time that the work of a node takes. None means that it takes no time."""
    peers: PeerOptions = field(default_factory=PeerOptions)
    """How nodes with resolvers choose their links."""
    keep_log: bool = True
    """Keep the lines of the event log. Otherwise only their hash is computed."""
