"""The keys of the tables [nodes.NAME] and [services.NAME], and the process that is started for each of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from micro_core.config.settings import NodeSettings
from micro_core.contract.driver import option
from micro_core.contract.names import NETWORK_SERVICE

COMPONENTS = ("registry", "broker", "tunnel", "router", "proxy")
"""The components of a node that can run as processes of their own, in the order in which they are started."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeTable(NodeSettings):
    """A table [nodes.NAME]: every key of [node], and how the node is run. `name` and `site` default to NAME."""

    components: tuple[str, ...] = option(
        (), "Run the node as these processes: any of registry, broker, tunnel, router, proxy."
    )
    set: tuple[str, ...] = option(
        (), 'Options of plugins, for the node and the services of its site, e.g. "quic.port=8085".'
    )
    restart: bool = option(False, "Restart the process if it exits unexpectedly.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceTable:
    """A table [services.NAME]."""

    command: tuple[str, ...] | str = option("", "Command to run. `python` is the interpreter of this environment.")
    site: str = option("", "Site of the service. Optional if the file has only one site.")
    cwd: str = option("", "Working directory. Default: the directory of the file.")
    proxy: str = option(
        NETWORK_SERVICE, "Value of MICRO_PROXY for the service. Empty: its calls go directly to services of its site."
    )
    ready: str = option("ready", "Prefix of the output line that reports readiness. Empty: there is no such line.")
    ready_s: float = option(30.0, "Time limit in seconds for that line.")
    instances: int = option(1, "Number of instances to run.")
    restart: bool = option(False, "Restart the process if it exits unexpectedly.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessPlan:
    """A process to start. Processes start in ascending order of `stage` and stop in descending order."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(repr=False)
    directory: Path
    stage: int
    site: str
    ready: str = "ready"
    ready_s: float = 60.0
    restart: bool = False
