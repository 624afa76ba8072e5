"""Tests of `micro config show`, `micro config validate` and `micro version`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

FILE = """[node]
site = "eu"
token = "s3cret"

[plugins."transport:tcp"]
max_connections = 7
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "micro.toml"
    path.write_text(FILE)
    return path


def rows(done: Any) -> dict[str, tuple[object, str]]:
    answer = json.loads(done.stdout)
    assert answer["schema"] == "micro.config/1"
    return {row["key"]: (row["value"], row["origin"]) for row in answer["settings"]}


def test_every_value_is_shown_with_its_origin(micro: Any, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MICRO_NAME", "eu-1")
    monkeypatch.setenv("MICRO_UNIX__MAX_CONNECTIONS", "8")
    found = rows(micro("config", "show", "--set", "tcp.host=::1", "-p", "no:mdns", "--json"))
    assert found["node.site"] == ("eu", "micro.toml:2")
    assert found["node.name"] == ("eu-1", "env MICRO_NAME")
    assert found["node.block"] == (["mdns"], "flag -p")
    assert found["node.network"] == ("go.micro", "default")
    assert found["plugins.transport:tcp.max_connections"] == (7, "micro.toml:6")
    assert found["plugins.transport:tcp.host"] == ("::1", "flag --set tcp.host")
    assert found["plugins.transport:unix.max_connections"] == (8, "env MICRO_UNIX__MAX_CONNECTIONS")


def test_secrets_are_masked_and_references_are_shown_unresolved(
    micro: Any, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOMEWHERE", "271828")
    for arguments in (["--json"], []):
        shown = micro("config", "show", "--set", "node.proxy=$env:SOMEWHERE", *arguments).stdout
        assert "s3cret" not in shown
        assert "271828" not in shown
        assert "***" in shown
        assert "$env:SOMEWHERE" in shown


def test_valid_settings_are_shown_beside_invalid_ones(micro: Any) -> None:
    done = micro("config", "show", "--set", "nats.password=s3cret", "--set", "tcp.prot=1", "--plugins", "redis")
    assert done.exit_code == 3
    assert "node.site" in done.stdout
    assert "s3cret" not in done.stdout + done.stderr
    assert "plugins.nats.password" in done.stdout
    assert "pip install micro-redis-registry" in done.stderr
    assert "pip install micro-nats-broker" in done.stderr
    assert "transport:tcp" in done.stdout


def test_options_of_an_unused_plugin_are_shown(micro: Any) -> None:
    found = rows(micro("config", "show", "--set", "static.ttl_s=9", "--json"))
    assert found["plugins.resolver:static.ttl_s"] == (9.0, "flag --set static.ttl_s")
    assert "plugins.resolver:static.nodes" not in found


def test_validate_lists_the_drivers_of_valid_settings(micro: Any, file: Path) -> None:
    done = micro("config", "validate")
    assert done.exit_code == 0
    assert done.stdout.startswith("valid: registry:local, transport:tcp, transport:unix, broker:node")
    answer = json.loads(micro("config", "validate", "--json").stdout)
    assert (answer["schema"], answer["valid"], answer["errors"]) == ("micro.validate/1", True, [])


def test_validate_reports_all_plugin_errors(micro: Any, file: Path) -> None:
    file.write_text(
        FILE.replace("max_connections = 7", "max_conections = 7") + "[plugins.unix]\nmax_connections = 'x'\n"
    )
    done = micro("config", "validate", "--plugins", "nats")
    assert done.exit_code == 3
    assert done.stdout == ""
    for expected in (
        "error: plugin 'nats' is not installed\n hint: pip install micro-nats-broker\n",
        "error: unknown setting 'tcp.max_conections'\n   at: micro.toml:6\n hint: did you mean 'max_connections'?\n",
        "error: unix.max_connections: 'x' is not an integer\n   at: micro.toml:8\n",
    ):
        assert expected in done.stderr
    answer = json.loads(micro("config", "validate", "--plugins", "nats", "--json").stdout)
    assert answer["valid"] is False
    assert len(answer["errors"]) == 3


def test_invalid_block_or_missing_file_is_a_configuration_error(micro: Any) -> None:
    assert "invalid option -p quic" in micro("config", "show", "-p", "quic").stderr
    assert micro("config", "show", "-p", "quic").exit_code == 3
    done = micro("config", "validate", "-c", "no.toml")
    assert (done.exit_code, "does not exist" in done.stderr) == (3, True)


def test_version_includes_contract_and_wire_protocol(micro: Any) -> None:
    assert micro("version").stdout.startswith("micro 0.1.0 (contract 1.0, wire 1")
    answer = json.loads(micro("version", "--json").stdout)
    assert (answer["schema"], answer["version"], answer["contract"]) == ("micro.version/1", "0.1.0", "1.0")


def test_validate_reports_all_node_errors(micro: Any, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text(
        "[nodee]\nx = 1\n[node]\nsiet = 'eu'\nlinks_remote = 'many'\ntimeout = -1\nsite = 'not a site'\n"
        "damping = 'perhaps'\npolicies = ['nonsense']\nlisten = 'host:port'\nnodes = ['quic://::1:8085']\n"
    )
    monkeypatch.setenv("MICRO_NETWROK", "x")
    monkeypatch.setenv("MICRO_LEASE", "soon")
    answer = json.loads(micro("config", "validate", "--json").stdout)
    reported = [(error["detail"], error["at"]) for error in answer["errors"]]
    for detail, at in (
        ("unknown table or key 'nodee'", "micro.toml:1"),
        ("unknown setting 'node.siet'", "micro.toml:4"),
        ("node.links_remote: 'many' is not an integer", "micro.toml:5"),
        ("node.timeout: -1.0 is not more than 0 seconds", "micro.toml:6"),
        ("node.site: 'not a site' is not a site", "micro.toml:7"),
        ("node.listen: 'host:port' has no valid port", "micro.toml:10"),
        ("node.nodes: '::1:8085' is ambiguous", "micro.toml:11"),
        ("unknown variable MICRO_NETWROK", "the environment"),
        ("node.lease: 'soon' is not a number", "env MICRO_LEASE"),
    ):
        assert (detail, at) in reported, reported
    for invalid_value in ("nonsense", "perhaps"):
        assert any(invalid_value in detail for detail, _ in reported)
    # A command that uses the settings reports the first error only.
    assert micro("services").stderr.count("error:") == 1
