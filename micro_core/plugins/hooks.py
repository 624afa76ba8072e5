"""The cross-cutting plugins that are in use, as one object: what they add, and when they are told."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pluggy

from micro_core.contract import hookspecs
from micro_core.contract.driver import Counters, CountersInMemory

log = logging.getLogger(__name__)


class Hooks:
    """Asks each plugin on its own, so that one that raises is logged and counted, and the others still answer."""

    def __init__(self, plugins: Sequence[object] = (), counters: Counters | None = None) -> None:
        self._counters: Counters = counters if counters is not None else CountersInMemory()
        self._managers: list[pluggy.PluginManager] = []
        for plugin in plugins:
            manager = pluggy.PluginManager(hookspecs.PROJECT)
            manager.add_hookspecs(hookspecs)
            manager.register(plugin)
            self._managers.append(manager)

    def interceptors(self, side: str) -> list[Callable[..., Any]]:
        """What goes round every call on `side` ("client" or "server"), outermost first."""
        return [one for found in self._ask("micro_interceptors", side=side) for one in found]

    def commands(self) -> list[tuple[str, Callable[[], object]]]:
        """The groups of commands that plugins add: (word, function that returns a typer app)."""
        return [(str(word), make) for found in self._ask("micro_commands") for word, make in found]

    def node_started(self, node: object) -> None:
        """Tell every plugin that `node` takes calls."""
        list(self._ask("micro_node_started", node=node))

    def node_stopping(self, node: object) -> None:
        """Tell every plugin that `node` begins to drain."""
        list(self._ask("micro_node_stopping", node=node))

    def _ask(self, hook: str, **arguments: object) -> Iterator[Any]:
        for manager in self._managers:
            try:
                answers = getattr(manager.hook, hook)(**arguments)
            except Exception:
                self._counters.add("hooks_failed")
                log.exception("a plugin's hook failed", extra={"hook": hook})
                continue
            yield from answers
