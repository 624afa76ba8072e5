"""`micro --peer [ADDR]`: a node that joins the network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import micro_core.cli.run
from micro_core.cli.commands.run import expand_peer


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("--peer", "run --use-peer-plugins"),
        ("--peer a:1", "run --use-peer-plugins --node a:1"),
        ("--peer=a:1", "run --use-peer-plugins --node a:1"),
        ("--peer --name b", "run --use-peer-plugins --name b"),
        ("--peer a:1 --plugins tls", "run --use-peer-plugins --node a:1 --plugins tls"),
        ("--debug --peer a:1", "--debug run --use-peer-plugins --node a:1"),
        ("", ""),
        ("--debug", "--debug"),
        ("call s e --peer", "call s e --peer"),
        ("--peers", "--peers"),
    ],
)
def test_peer_expands_to_run(line: str, expected: str) -> None:
    assert expand_peer(line.split()) == expected.split()


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    seen: list[dict[str, Any]] = []

    def run_node(flags: dict[str, Any], **options: Any) -> None:
        seen.append({**flags, **options})

    monkeypatch.setattr(micro_core.cli.run, "run_node", run_node)
    return seen


def test_peer_links_over_quic_by_default(micro: Any, runs: list[dict[str, Any]]) -> None:
    assert micro("--peer", "a:1", "--name", "b").exit_code == 0
    assert (runs[0]["node.plugins"], runs[0]["node.nodes"], runs[0]["node.name"]) == ("quic", ("a:1",), "b")


def test_peer_uses_the_plugins_of_flag_variable_or_file(
    micro: Any, runs: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    micro("--peer", "--plugins", "tls")
    (tmp_path / "eu.toml").write_text("[node]\nplugins = ['tls']\n")
    micro("--peer", "-c", "eu.toml")
    micro("--peer", "--set", "node.plugins=tls")
    micro("--peer", "-c", "missing.toml")
    monkeypatch.setenv("MICRO_PLUGINS", "tls")
    micro("--peer")
    assert [run["node.plugins"] for run in runs] == ["tls", None, None, None, None]


def test_run_without_peer_adds_no_plugin(micro: Any, runs: list[dict[str, Any]]) -> None:
    micro("run", "-p", "no:mdns", "--set", "quic.port=1")
    assert runs[0]["node.plugins"] is None
    assert (runs[0]["block"], runs[0]["sets"]) == (["no:mdns"], ["quic.port=1"])
