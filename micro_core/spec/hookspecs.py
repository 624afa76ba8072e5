"""The hooks a plugin may implement. One a role, and a few that cut across.

A role's plugin is found through its entry point: group `micro.<role>`, name = the word users type, value = the
module that holds the hook implementation. The module is imported only when its driver is wanted.

Rules of evolution: arguments are only ever added; a hook that goes is warned about for two minor releases.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

from micro_core.spec.broker import Broker
from micro_core.spec.driver import Driver
from micro_core.spec.registry import Registry
from micro_core.spec.resolver import Resolver
from micro_core.spec.table import Table
from micro_core.spec.transport import Transport
from micro_core.spec.tunnel import LinkDriver

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

PROJECT = "micro"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

HOOKS_GROUP = "micro.hooks"
"""Entry-point group of cross-cutting plugins: installed means on, `-p no:NAME` turns one off."""


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
def micro_commands() -> Sequence[tuple[str, Callable[[], object]]]:  # type: ignore[empty-body]
    """CLI groups to add: (word, function that returns a typer app), each under the plugin's own word."""


@hookspec
def micro_node_started(node: object) -> None:
    """A node has started; `node` has `node_id`, `name`, `site` and `network`."""


@hookspec
def micro_node_stopping(node: object) -> None:
    """A node begins to drain."""


@hookspec
def micro_interceptors(side: str) -> Sequence[Callable[..., object]]:  # type: ignore[empty-body]
    """Interceptors for `side` ("client" or "server"), outermost first."""
