"""What a command line costs: nothing is imported before it is needed."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest

HEAVY = {"asyncio", "aioquic", "zeroconf", "cryptography", "msgpack", "pluggy", "tomllib"}
MOST_MS, MOST_ROUNDS = 20.0, 8

UNREACHABLE = 6
"""Exit code where nobody answers."""

FOREIGN = {"aioquic", "zeroconf", "cryptography", "micro_quic_tunnel", "micro_mdns_registry", "micro_dns_resolver"}
LIGHT = {"micro_core", "micro_core.cli", "micro_core.cli.main", "micro_core.__main__"} | {
    f"micro_core.cli.{name}" for name in ("lazy_typer", "options", "network_words", "lab_words", "component_words")
}


def imported(process: Any, *words: str, code: int = 0) -> set[str]:
    done = process(*words, python=("-X", "importtime", "-m", "micro_core"))
    assert done.returncode == code, done.stderr
    return set(re.findall(r"^import time:[^|]*\|[^|]*\|\s*([\w.]+)$", done.stderr, re.MULTILINE))


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["network", "--help"], ["plugin", "list", "--help"]])
def test_help_imports_nothing_but_typer(process: Any, words: list[str]) -> None:
    found = imported(process, *words)
    assert "typer" in found, "the measure itself works"
    assert found & HEAVY == set()
    assert {name for name in found if name.startswith("micro_core")} <= LIGHT


def test_help_imports_hardly_more_than_an_empty_app_does(process: Any) -> None:
    empty = "import typer; app = typer.Typer(rich_markup_mode=None); app.command()(lambda: None); app()"
    done = process("-X", "importtime", "-c", empty, "--help", python=())
    assert done.returncode == 0
    least = set(re.findall(r"\|\s*([\w.]+)$", done.stderr, re.MULTILINE))
    ours = {name for name in imported(process, "--help") - least if not name.startswith(("micro_core", "__editable__"))}
    # `python -m` itself looks for the package; nothing else may come along.
    assert ours <= {"runpy", "pkgutil", "importlib.util", "importlib._abc", "importlib.machinery", "__future__"}


@pytest.mark.parametrize("words", [["network", "routes"], ["call", "greeter", "Say.Hello"]])
def test_asking_a_node_imports_nothing_of_what_nodes_are_made_of(process: Any, words: list[str]) -> None:
    found = imported(process, *words, "--address", "tcp://127.0.0.1:1", code=UNREACHABLE)
    assert "micro_core.rpc.client" in found
    parts = tuple(f"micro_core.{part}" for part in ("lab", "network", "node", "proxy", "routing", "tunnel"))
    assert {name for name in found if name.startswith(parts)} == set()


def test_listing_plugins_imports_none(process: Any) -> None:
    found = imported(process, "plugin", "list")
    assert "micro_core.plugins.entries" in found
    assert found & FOREIGN == set()
    assert {name for name in found if name.startswith("micro_core.builtin")} == set()


def test_a_broken_plugin_disturbs_neither_help_nor_listing(process: Any, install: Any) -> None:
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
    least: dict[str, float] = {}
    # The least of each, in CPU time: what else the machine does only ever adds. A busy one needs more of them.
    for _ in range(MOST_ROUNDS):
        costs = benchmark["measure"](5, environment)
        least = {name: min([cpu for _, cpu in costs[name]] + [least.get(name, 1e9)]) for name in costs}
        assert least["empty app"] > least["python"], "the measure itself works"
        if least["micro --help"] - least["empty app"] <= MOST_MS:
            return
    raise AssertionError(least)
