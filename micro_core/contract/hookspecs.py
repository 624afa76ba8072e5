"""The hooks a plugin may implement. One a role, and a few that cut across.

A role's plugin is found through its entry point: group `micro.<role>`, name = the word users type, value = the
module that holds the hook implementation. The module is imported only when its driver is wanted.

Rules of evolution: arguments are only ever added; a hook that goes is warned about for two minor releases.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

from micro_core.contract.broker import Broker
from micro_core.contract.driver import Driver
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

HOOKS_GROUP = "micro.hooks"
"""Entry-point group of cross-cutting plugins. Their commands are there once installed; interceptors and what a node tells
are for those that are named, as a driver is: `--plugins quic,NAME`."""


@hookspec
def micro_registry() -> Driver[Registry] | None:
    """Describe a registry driver."""


@hookspec
def micro_transport() -> Driver[Transport] | None:
    """Describe a transport driver."""


@hookspec
def micro_broker() -> Driver[Broker] | None:
    """Describe a broker driver."""


@hookspec
def micro_tunnel() -> Driver[LinkDriver] | None:
    """Describe a tunnel driver: it supplies links."""


@hookspec
def micro_table() -> Driver[Table] | None:
    """Describe a table driver."""


@hookspec
def micro_resolver() -> Driver[Resolver] | None:
    """Describe a resolver driver."""


@hookspec
def micro_hooks() -> Driver[object] | None:
    """Describe a cross-cutting plugin that has options: `create(options, context)` builds an object whose methods, marked
    with `hookimpl`, are the hooks below. Built once a process (or node) that names the plugin."""


@hookspec
def micro_commands() -> Sequence[tuple[str, Callable[[], object]]]:  # type: ignore[empty-body]
    """Commands to add: (word, function that returns a typer app): `micro WORD ...`. The core's own words win.

    A hook of the module itself, not of what `micro_hooks` describes: commands are there without being named.
    """


@hookspec
def micro_node_started(node: RunningNode) -> None:
    """A node takes calls. Called in the event loop; must not block."""


@hookspec
def micro_node_stopping(node: RunningNode) -> None:
    """A node begins to drain. Called in the event loop; must not block."""


@hookspec
def micro_interceptors(side: str) -> Sequence[Interceptor]:  # type: ignore[empty-body]
    """Interceptors for `side` ("client" or "server"), outermost first. Asked once a process, in the event loop."""
