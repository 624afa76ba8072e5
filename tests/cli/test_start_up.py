"""The start-up time of commands: nothing is imported before it is needed."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest

HEAVY = {"asyncio", "aioquic", "zeroconf", "cryptography", "msgpack", "pluggy", "tomllib"}
MAX_MS, MAX_ROUNDS = 20.0, 8

UNREACHABLE = 6
"""Exit code for an unreachable address."""

FOREIGN = {"aioquic", "zeroconf", "cryptography", "micro_quic_tunnel", "micro_mdns_registry", "micro_dns_resolver"}
LIGHT = ("micro_core", "micro_core.__main__", "micro_core.cli", "micro_core.cli.main", "micro_core.cli.lazy_typer")
"""Modules that `--help` may import, besides the shared options and the signatures in micro_core.cli.commands."""


def imported(process: Any, *arguments: str, code: int = 0) -> set[str]:
    done = process(*arguments, python=("-X", "importtime", "-m", "micro_core"))
    assert done.returncode == code, done.stderr
    return set(re.findall(r"^import time:[^|]*\|[^|]*\|\s*([\w.]+)$", done.stderr, re.MULTILINE))


@pytest.mark.parametrize(
    "arguments", [["--help"], ["run", "--help"], ["network", "--help"], ["plugin", "list", "--help"]]
)
def test_help_imports_only_typer(process: Any, arguments: list[str]) -> None:
    found = imported(process, *arguments)
    assert "typer" in found, "the measurement works"
    assert found & HEAVY == set()
    core = {name for name in found if name.startswith("micro_core") and name not in LIGHT}
    assert {
        name for name in core if not name.startswith(("micro_core.cli.options", "micro_core.cli.commands"))
    } == set()


def test_help_imports_hardly_more_than_an_empty_app(process: Any) -> None:
    empty = "import typer; app = typer.Typer(rich_markup_mode=None); app.command()(lambda: None); app()"
    done = process("-X", "importtime", "-c", empty, "--help", python=())
    assert done.returncode == 0
    baseline = set(re.findall(r"\|\s*([\w.]+)$", done.stderr, re.MULTILINE))
    ours = {
        name for name in imported(process, "--help") - baseline if not name.startswith(("micro_core", "__editable__"))
    }
    # `python -m` imports these to find the package; nothing else may be imported.
    assert ours <= {"runpy", "pkgutil", "importlib.util", "importlib._abc", "importlib.machinery", "__future__"}


@pytest.mark.parametrize("arguments", [["network", "routes"], ["call", "greeter", "Say.Hello"]])
def test_client_commands_do_not_import_node_packages(process: Any, arguments: list[str]) -> None:
    found = imported(process, *arguments, "--address", "tcp://127.0.0.1:1", code=UNREACHABLE)
    assert "micro_core.rpc.client" in found
    packages = tuple(f"micro_core.{package}" for package in ("lab", "network", "node", "proxy", "routing", "tunnel"))
    assert {name for name in found if name.startswith(packages)} == set()


def test_plugin_list_imports_no_plugin(process: Any) -> None:
    found = imported(process, "plugin", "list")
    assert "micro_core.plugins.entries" in found
    assert found & FOREIGN == set()
    assert {name for name in found if name.startswith("micro_core.builtin")} == set()


def test_broken_plugin_affects_neither_help_nor_plugin_list(process: Any, install: Any) -> None:
    site = install("acme-bad", "micro.tunnel", "bad", "raise RuntimeError('imported')")
    assert process("--help", site=site).returncode == 0
    listed = process("plugin", "list", site=site)
    assert listed.returncode == 0
    assert "acme-bad" in listed.stdout
    assert listed.stderr == ""


@pytest.mark.timeout(120)
def test_help_costs_at_most_20_ms_more_than_an_empty_app_with_the_same_help(tmp_path: Path) -> None:
    benchmark = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "start_up.py"))
    environment = benchmark["compiled"](str(tmp_path))
    minimum: dict[str, float] = {}
    # Use the minimum CPU time of several runs, since other processes can only increase it.
    for _ in range(MAX_ROUNDS):
        costs = benchmark["measure"](5, environment)
        minimum = {name: min([cpu for _, cpu in costs[name]] + [minimum.get(name, 1e9)]) for name in costs}
        assert minimum["empty app"] > minimum["python"], "the measurement works"
        if minimum["micro --help"] - minimum["empty app"] <= MAX_MS:
            return
    raise AssertionError(minimum)
