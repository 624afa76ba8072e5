"""Tests of `micro plugin list` and `micro plugin info`."""

from __future__ import annotations

import json
from typing import Any

import pytest

DRIVER = """
from dataclasses import dataclass
from micro_core.contract import Driver, hookimpl, option

@dataclass(frozen=True, kw_only=True)
class Options:
    url: str = option("tcp://x", "Address of the server.")
    password: str = option("hunter2", "Password of the server.", secret=True)
    nodes: tuple[str, ...] = option((), "Other servers.")

@hookimpl
def micro_registry():
    return Driver(
        name="acme", summary="Stores records at Acme.", options=Options, create=lambda options, context: None,
        capabilities=frozenset({"durable"}),
    )
"""
HOOKS = "from micro_core.contract import hookimpl\n@hookimpl\ndef micro_interceptors(side): return []\n"


def test_installed_plugins_are_listed_by_role(micro: Any) -> None:
    lines = micro("plugin", "list").stdout.splitlines()
    assert lines[0].split() == ["ROLE", "NAME", "DISTRIBUTION", "VERSION", "STATE"]
    assert ["transport", "tcp", "micro-network", "0.1.0", "installed"] in [line.split() for line in lines]
    answer = json.loads(micro("plugin", "list", "--json").stdout)
    assert answer["schema"] == "micro.plugins/1"
    assert {"role", "name", "distribution", "version", "state"} == set(answer["plugins"][0])
    assert answer["broken"] == answer["unreadable"] == []


def test_list_all_includes_plugins_that_are_not_installed(micro: Any) -> None:
    rows = json.loads(micro("plugin", "list", "--all", "--json").stdout)["plugins"]
    states = {row["distribution"]: row["state"] for row in rows}
    assert states["micro-nats-broker"] == "not installed"
    assert states["micro-network"] == "installed"


def test_list_check_reports_broken_plugins_with_a_hint(micro: Any, install: Any, monkeypatch: Any) -> None:
    monkeypatch.syspath_prepend(str(install("acme-bad", "micro.tunnel", "bad", "1 / 0")))
    assert "broken" not in micro("plugin", "list").stdout
    done = micro("plugin", "list", "--check")
    assert done.exit_code == 3
    assert "broken" in next(line for line in done.stdout.splitlines() if "acme-bad" in line)
    assert "ZeroDivisionError" in done.stderr
    assert "hint: pip install --upgrade acme-bad" in done.stderr
    (found,) = json.loads(micro("plugin", "list", "--check", "--json").stdout)["broken"]
    assert (found["distribution"], found["version"], found["group"]) == ("acme-bad", "1.2.3", "micro.tunnel")


def test_name_of_two_distributions_is_listed_as_a_conflict(micro: Any, install: Any, monkeypatch: Any) -> None:
    monkeypatch.syspath_prepend(str(install("acme-tcp", "micro.transport", "tcp", "")))
    rows = json.loads(micro("plugin", "list", "--json").stdout)["plugins"]
    assert {row["distribution"] for row in rows if row["state"] == "conflict"} == {"acme-tcp", "micro-network"}


def test_info_shows_options_with_defaults_types_and_variables(micro: Any, install: Any, monkeypatch: Any) -> None:
    monkeypatch.syspath_prepend(str(install("acme-store", "micro.registry", "acme", DRIVER)))
    text = micro("plugin", "info", "acme").stdout
    for part in (
        "Stores records at Acme.",
        "acme-store 1.2.3",
        "contract >= 1.0",
        "durable",
        "MICRO_ACME__URL",
        "tcp://x",
    ):
        assert part in text
    assert "hunter2" not in text
    answer = json.loads(micro("plugin", "info", "registry:acme", "--json").stdout)
    assert answer["schema"] == "micro.plugin/1"
    assert answer["contract"] == ["1.0", "2.0"]
    url, password, nodes = answer["options"]
    assert url == {
        "name": "url",
        "type": "str",
        "default": "tcp://x",
        "secret": False,
        "variable": "MICRO_ACME__URL",
        "help": "Address of the server.",
    }
    assert (password["default"], password["secret"]) == ("***", True)
    assert nodes["type"] == "tuple[str, ...]"


def test_variable_contains_the_role_if_the_name_is_shared(micro: Any) -> None:
    answer = json.loads(micro("plugin", "info", "tunnel:memory", "--json").stdout)
    assert answer["options"][0]["variable"] == "MICRO_TUNNEL__MEMORY__LANES"


def test_info_shows_options_of_hooks(micro: Any, install: Any, monkeypatch: Any) -> None:
    source = DRIVER.replace("def micro_registry", "def micro_hooks")
    monkeypatch.syspath_prepend(str(install("acme-described", "micro.hooks", "acme", source)))
    text = micro("plugin", "info", "acme").stdout
    assert "MICRO_ACME__PASSWORD" in text
    assert "hunter2" not in text
    answer = json.loads(micro("plugin", "info", "acme", "--json").stdout)
    assert (answer["hooks"], answer["contract"]) == (["micro_hooks"], ["1.0", "2.0"])
    assert "verification" not in answer, "there is no kit for cross-cutting plugins"
    assert [option["name"] for option in answer["options"]] == ["url", "password", "nodes"]


def test_info_shows_the_names_of_hooks(micro: Any, install: Any, monkeypatch: Any) -> None:
    monkeypatch.syspath_prepend(str(install("acme-trace", "micro.hooks", "trace", HOOKS)))
    assert "hooks: micro_interceptors" in micro("plugin", "info", "trace").stdout
    assert json.loads(micro("plugin", "info", "trace", "--json").stdout)["hooks"] == ["micro_interceptors"]


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("nats", "plugin 'nats' is not installed", "pip install micro-nats-broker"),
        ("memroy", "unknown plugin 'memroy'", "did you mean 'memory'?"),
        ("memory", "the plugin name 'memory' is ambiguous", "broker:memory or registry:memory"),
    ],
)
def test_info_of_a_missing_plugin_shows_a_hint(micro: Any, name: str, message: str, hint: str) -> None:
    done = micro("plugin", "info", name)
    assert (done.exit_code, done.stdout) == (3, "")
    assert f"error: {message}\n" in done.stderr
    assert hint in done.stderr


def test_error_is_one_json_object(micro: Any) -> None:
    done = micro("plugin", "info", "nats", "--json")
    answer = json.loads(done.stdout)
    assert (answer["schema"], answer["error"]["id"]) == ("micro.error/1", "plugin-missing")
    assert done.exit_code == 3
