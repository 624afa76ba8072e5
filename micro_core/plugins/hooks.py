"""Calls the hooks of the cross-cutting plugins in use."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pluggy

from micro_core.contract import hookspecs
from micro_core.contract.driver import Counters, CountersInMemory

log = logging.getLogger(__name__)


class Hooks:
    """The cross-cutting plugins in use.

    Each plugin is called separately. If one raises, the exception is logged and counted (`hooks_failed`), and the others are
    still called.

    Args:
        plugins: Modules or objects with hooks, outermost interceptors first.
        counters: Receives `hooks_failed`.
    """

    def __init__(self, plugins: Sequence[object] = (), counters: Counters | None = None) -> None:
        self._counters: Counters = counters if counters is not None else CountersInMemory()
        self._managers: list[pluggy.PluginManager] = []
        for plugin in plugins:
            manager = pluggy.PluginManager(hookspecs.PROJECT)
            manager.add_hookspecs(hookspecs)
            manager.register(plugin)
            self._managers.append(manager)

    def interceptors(self, side: str) -> list[Callable[..., Any]]:
        """Return the interceptors for calls on `side` ("client" or "server"), outermost first."""
        return [each for found in self._call("micro_interceptors", side=side) for each in found]

    def commands(self) -> list[tuple[str, Callable[[], object]]]:
        """Return the command groups of the plugins, as (name, function that returns a typer app)."""
        return [(str(name), create) for found in self._call("micro_commands") for name, create in found]

    def node_started(self, node: object) -> None:
        """Notify every plugin that `node` accepts calls."""
        list(self._call("micro_node_started", node=node))

    def node_stopping(self, node: object) -> None:
        """Notify every plugin that `node` starts to drain."""
        list(self._call("micro_node_stopping", node=node))

    def _call(self, hook: str, **arguments: object) -> Iterator[Any]:
        for manager in self._managers:
            try:
                results = getattr(manager.hook, hook)(**arguments)
            except Exception:
                self._counters.add("hooks_failed")
                log.exception("hook of a plugin failed", extra={"hook": hook})
                continue
            yield from results
