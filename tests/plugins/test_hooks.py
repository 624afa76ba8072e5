"""Tests of `Hooks`, which calls the cross-cutting plugins in use."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from micro_core.contract import CountersInMemory, hookimpl
from micro_core.plugins import Hooks


class Recorder:
    """Implements all hooks, and records the events of nodes."""

    def __init__(self) -> None:
        self.events: list[tuple[str, object]] = []

    @hookimpl
    def micro_node_started(self, node: object) -> None:
        self.events.append(("started", node))

    @hookimpl
    def micro_node_stopping(self, node: object) -> None:
        self.events.append(("stopping", node))

    @hookimpl
    def micro_interceptors(self, side: str) -> list[Any]:
        return [(side, self)]

    @hookimpl
    def micro_commands(self) -> list[tuple[str, Any]]:
        return [("recorder", dict)]


class Broken:
    """Raises in every hook."""

    @hookimpl
    def micro_node_started(self, node: object) -> None:
        raise RuntimeError(f"broken for {node}")

    @hookimpl
    def micro_interceptors(self, side: str) -> list[Any]:
        raise RuntimeError(side)


def test_hooks_without_plugins_return_nothing() -> None:
    hooks = Hooks()
    hooks.node_started(object())
    assert not hooks.commands()
    assert not hooks.interceptors("client")


def test_plugins_receive_node_events_and_add_interceptors_and_commands() -> None:
    recorder, node = Recorder(), SimpleNamespace(name="eu")
    hooks = Hooks([recorder])
    hooks.node_started(node)
    hooks.node_stopping(node)
    assert recorder.events == [("started", node), ("stopping", node)]
    ((side, owner),) = list[Any](hooks.interceptors("server"))
    assert (side, owner) == ("server", recorder)
    assert hooks.commands() == [("recorder", dict)]


def test_plugin_that_raises_is_counted_and_logged_and_others_are_still_called(caplog: pytest.LogCaptureFixture) -> None:
    recorder, counters = Recorder(), CountersInMemory()
    hooks = Hooks([Broken(), recorder], counters)
    hooks.node_started("eu")
    assert recorder.events == [("started", "eu")]
    assert len(hooks.interceptors("client")) == 1
    assert counters.values == {"hooks_failed": 2}
    assert "hook of a plugin failed" in caplog.text
