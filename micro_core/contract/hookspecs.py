"""The hooks that a plugin can implement: one per role, and several cross-cutting ones.

Core finds the plugin of a role by its entry point. The group is `micro.<role>`, the name is the name of the driver, and the
value is the module with the hook implementation. Core imports the module only when the driver is needed. The hook of a role
returns a description and performs no I/O. If it raises an exception or returns None, the plugin is reported as broken.

Compatibility: new versions only add arguments to a hook. Before a hook is removed, core issues warnings for two minor releases.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

from micro_core.contract.broker import Broker
from micro_core.contract.driver import HOOKS_GROUP, Driver
from micro_core.contract.interceptors import Interceptor
from micro_core.contract.registry import Registry
from micro_core.contract.resolver import Resolver
from micro_core.contract.running import RunningNode
from micro_core.contract.table import Table
from micro_core.contract.transport import Transport
from micro_core.contract.tunnel import LinkDriver

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

PROJECT = "micro"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

__all__ = [
    "HOOKS_GROUP",
    "PROJECT",
    "hookimpl",
    "hookspec",
    "micro_broker",
    "micro_commands",
    "micro_hooks",
    "micro_interceptors",
    "micro_node_started",
    "micro_node_stopping",
    "micro_registry",
    "micro_resolver",
    "micro_table",
    "micro_transport",
    "micro_tunnel",
]


@hookspec
def micro_registry() -> Driver[Registry] | None:
    """Return the description of a registry driver."""


@hookspec
def micro_transport() -> Driver[Transport] | None:
    """Return the description of a transport driver."""


@hookspec
def micro_broker() -> Driver[Broker] | None:
    """Return the description of a broker driver."""


@hookspec
def micro_tunnel() -> Driver[LinkDriver] | None:
    """Return the description of a tunnel driver, which provides links."""


@hookspec
def micro_table() -> Driver[Table] | None:
    """Return the description of a table driver."""


@hookspec
def micro_resolver() -> Driver[Resolver] | None:
    """Return the description of a resolver driver."""


@hookspec
def micro_hooks() -> Driver[object] | None:
    """Return the description of a cross-cutting plugin that has options.

    `create(options, context)` returns an object whose methods, marked with `hookimpl`, implement the other cross-cutting hooks.
    Core calls it once per process or node that selects the plugin.
    """


@hookspec
def micro_commands() -> Sequence[tuple[str, Callable[[], object]]]:  # type: ignore[empty-body]
    """Return commands to add to `micro`, each as (name, function that returns a typer app).

    Commands of core take precedence over commands of the same name. Implement this hook in the module of the entry point,
    not in the object that `micro_hooks` describes: the commands of an installed plugin are available even if the plugin
    is not selected.
    """


@hookspec
def micro_node_started(node: RunningNode) -> None:
    """React to a node that has started to accept calls. Called in the event loop; must not block."""


@hookspec
def micro_node_stopping(node: RunningNode) -> None:
    """React to a node that starts to drain. Called in the event loop; must not block."""


@hookspec
def micro_interceptors(side: str) -> Sequence[Interceptor]:  # type: ignore[empty-body]
    """Return interceptors for `side` ("client" or "server"), outermost first. Called once per process, in the event loop."""
