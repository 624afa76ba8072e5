"""Cross-cutting plugins in use: what they add, when they are told, and that one that fails disturbs no other."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from micro_core.contract import CountersInMemory, hookimpl
from micro_core.plugins import Hooks


class Told:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.said: list[tuple[str, object]] = []

    @hookimpl
    def micro_node_started(self, node: object) -> None:
        self.said.append(("started", node))

    @hookimpl
    def micro_node_stopping(self, node: object) -> None:
        self.said.append(("stopping", node))

    @hookimpl
    def micro_interceptors(self, side: str) -> list[Any]:
        return [(side, self)]

    @hookimpl
    def micro_commands(self) -> list[tuple[str, Any]]:
        return [("told", dict)]


class Broken:
    """Raises whatever it is asked."""

    @hookimpl
    def micro_node_started(self, node: object) -> None:
        raise RuntimeError(f"not {node}")

    @hookimpl
    def micro_interceptors(self, side: str) -> list[Any]:
        raise RuntimeError(side)


def test_without_plugins_there_is_nothing() -> None:
    hooks = Hooks()
    hooks.node_started(object())
    assert not hooks.commands()
    assert not hooks.interceptors("client")


def test_plugins_are_told_of_a_node_and_asked_for_what_they_add() -> None:
    told, node = Told(), SimpleNamespace(name="eu")
    hooks = Hooks([told])
    hooks.node_started(node)
    hooks.node_stopping(node)
    assert told.said == [("started", node), ("stopping", node)]
    ((side, whose),) = list[Any](hooks.interceptors("server"))
    assert (side, whose) == ("server", told)
    assert hooks.commands() == [("told", dict)]


def test_one_that_raises_is_counted_and_logged_and_the_others_are_still_asked(caplog: pytest.LogCaptureFixture) -> None:
    told, counters = Told(), CountersInMemory()
    hooks = Hooks([Broken(), told], counters)
    hooks.node_started("eu")
    assert told.said == [("started", "eu")]
    assert len(hooks.interceptors("client")) == 1
    assert counters.values == {"hooks_failed": 2}
    assert "a plugin's hook failed" in caplog.text
