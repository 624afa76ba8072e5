"""Tests of `load_settings`: the precedence of flag, variable, file and default, and the origin of each value."""

from __future__ import annotations

import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from micro_core.config import MAX_FILE_BYTES, Settings, load_settings
from micro_core.contract.errors import ConfigError, MicroError, OptionError

FILE = """# A site.
[node]
site = "file"
plugins = [
  "quic",
]
links_remote = 5

[plugins.quic]
port = 1
"""


def read(
    directory: Path,
    text: str | None = None,
    *,
    flags: Mapping[str, object] | None = None,
    sets: Sequence[str] = (),
    **environ: str,
) -> Settings:
    if text is not None:
        (directory / "micro.toml").write_text(text)
    return load_settings(flags, sets=sets, environ=environ, directory=directory)


def error_of(directory: Path, text: str | None = None, *, sets: Sequence[str] = (), **environ: str) -> MicroError:
    with pytest.raises(ConfigError) as caught:
        read(directory, text, flags=None, sets=sets, **environ)
    return caught.value


def test_source_with_the_highest_precedence_wins(tmp_path: Path) -> None:
    (tmp_path / "micro.toml").write_text(FILE)
    loaded = {
        "default": read(tmp_path.parent),
        "micro.toml:3": read(tmp_path),
        "env MICRO_SITE": read(tmp_path, MICRO_SITE="env"),
        "flag --set node.site": read(tmp_path, sets=["node.site=set"], MICRO_SITE="env"),
        "flag --site": read(tmp_path, flags={"node.site": "flag"}, sets=["node.site=set"], MICRO_SITE="env"),
    }
    assert [settings.origin("node.site") for settings in loaded.values()] == list(loaded)
    assert [settings.node.site for settings in loaded.values()] == ["local", "file", "env", "set", "flag"]


def test_options_of_a_plugin_follow_the_same_precedence(tmp_path: Path) -> None:
    (tmp_path / "micro.toml").write_text(FILE)
    assert read(tmp_path).origin("quic.port") == "micro.toml:10"
    assert read(tmp_path, MICRO_QUIC__PORT="2").origin("plugins.quic.port") == "env MICRO_QUIC__PORT"
    settings = read(tmp_path, sets=["quic.port=3"], MICRO_QUIC__PORT="2")
    assert settings.origin("quic.port") == "flag --set quic.port"
    assert settings.plugin_values("quic")["port"].raw == "3"
    assert settings.origin("quic.congestion") == "default"


def test_flag_that_is_not_given_has_no_effect(tmp_path: Path) -> None:
    assert read(tmp_path, flags={"node.site": None}).origin("node.site") == "default"


@pytest.mark.parametrize(
    ("variable", "raw", "field", "value"),
    [
        ("MICRO_NAME", "eu-1", "name", "eu-1"),
        ("MICRO_NETWORK", "go.test", "network", "go.test"),
        ("MICRO_NETWORK_NAME", "go.test", "network", "go.test"),
        ("MICRO_SITE", "eu", "site", "eu"),
        ("MICRO_PLUGINS", "quic, mdns", "plugins", ("quic", "mdns")),
        ("MICRO_LISTEN", ":1", "listen", ":1"),
        ("MICRO_ADDRESS", "tcp://127.0.0.1:0", "address", "tcp://127.0.0.1:0"),
        ("MICRO_NODES", "a:1,b:2", "nodes", ("a:1", "b:2")),
        ("MICRO_TOKEN", "t", "token", "t"),
        ("MICRO_TOKEN_FILE", "f", "token_file", "f"),
        ("MICRO_LINKS_REMOTE", "4", "links_remote", 4),
        ("MICRO_STATE_DIR", "/s", "state_dir", "/s"),
        ("MICRO_LOG", "debug", "log", "debug"),
        ("MICRO_TIMEOUT", "1.5", "timeout", 1.5),
        ("MICRO_PROXY", "go.micro.network", "proxy", "go.micro.network"),
    ],
)
def test_variable_sets_its_field(tmp_path: Path, variable: str, raw: str, field: str, value: object) -> None:
    settings = read(tmp_path, None, flags=None, sets=(), **{variable: raw})
    assert getattr(settings.node, field) == value
    assert settings.origin(f"node.{field}") == f"env {variable}"


def test_network_name_variable_takes_precedence_over_the_short_one(tmp_path: Path) -> None:
    for environ in (
        {"MICRO_NETWORK": "go.a", "MICRO_NETWORK_NAME": "go.b"},
        {"MICRO_NETWORK_NAME": "go.b", "MICRO_NETWORK": "go.a"},
    ):
        settings = read(tmp_path, None, flags=None, sets=(), **environ)
        assert (settings.node.network, settings.origin("node.network")) == ("go.b", "env MICRO_NETWORK_NAME")


def test_misspelled_variable_is_rejected_and_unrelated_ones_are_ignored(tmp_path: Path) -> None:
    error = error_of(tmp_path, MICRO_NODE="a:1")
    assert (error.detail, error.hint) == ("unknown variable MICRO_NODE", "did you mean MICRO_NODES?")
    assert read(tmp_path, MICRO_K8S_POD="x", MICROSCOPE="y", MICRO_DEBUG="1").node.nodes == ()


def test_options_are_read_under_any_name_of_the_plugin(tmp_path: Path) -> None:
    for name in ("quic", "tunnel:quic", "quic_tunnel", "micro-quic-tunnel", "Quic"):
        settings = read(tmp_path, f'[plugins."{name}"]\nport = 7\n')
        assert settings.plugin_values("quic", "tunnel:quic")["port"].raw == 7, name
        assert settings.plugin_values("tls", "tunnel:tls") == {}
    settings = read(tmp_path, "[plugins.wire_guard]\nport = 7\n")
    assert settings.plugin_values("wire-guard", "tunnel:wire-guard")["port"].raw == 7


def test_qualified_table_applies_to_its_role_only(tmp_path: Path) -> None:
    settings = read(tmp_path, '[plugins."registry:redis"]\nurl = "r"\n[plugins.redis]\nurl = "all"\nttl = 1\n')
    registry = settings.plugin_values("redis", "registry:redis")
    assert {name: value.raw for name, value in registry.items()} == {"url": "r", "ttl": 1}
    assert settings.plugin_values("redis", "broker:redis")["url"].raw == "all"
    assert settings.plugin_tables() == ["redis", "registry:redis"]


def test_source_with_higher_precedence_wins_over_a_qualified_name(tmp_path: Path) -> None:
    text = '[plugins."registry:redis"]\nurl = "file"\n'
    settings = read(tmp_path, text, MICRO_REDIS__URL="env")
    assert settings.plugin_values("redis", "registry:redis")["url"].origin == "env MICRO_REDIS__URL"


def test_variable_can_contain_the_role(tmp_path: Path) -> None:
    settings = read(tmp_path, MICRO_REGISTRY__REDIS__URL="env")
    assert settings.plugin_values("redis", "registry:redis")["url"].raw == "env"
    assert settings.plugin_values("redis", "broker:redis") == {}


def test_options_of_the_driver_named_node_are_separate_from_the_table_node(tmp_path: Path) -> None:
    for settings in (
        read(tmp_path, "[plugins.node]\naddress = 'a'\n"),
        read(tmp_path.parent, sets=["plugins.node.address=a"]),
        read(tmp_path.parent, sets=["broker:node.address=a"]),
        read(tmp_path.parent, MICRO_NODE__ADDRESS="a"),
    ):
        assert settings.plugin_values("node", "broker:node")["address"].raw == "a"
        assert settings.node.address == ""


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("site=eu", "--set node.site=..."),
        ("nonsense", "e.g. --set quic.port=8085"),
        ("node.site", "e.g. --set quic.port=8085"),
        (".x=1", "e.g. --set quic.port=8085"),
        ("quic.=1", "e.g. --set quic.port=8085"),
        ("node.=1", "e.g. --set quic.port=8085"),
    ],
)
def test_error_of_an_invalid_set_option_contains_the_form(tmp_path: Path, text: str, hint: str) -> None:
    error = error_of(tmp_path, sets=[text])
    assert error.detail.startswith("invalid option --set")
    assert error.hint == hint


def test_error_of_an_invalid_set_option_does_not_contain_the_value(tmp_path: Path) -> None:
    assert "s3cret" not in str(error_of(tmp_path, sets=["token=s3cret"]))


# --------------------------------------------------------------------------------- the file


def test_missing_file_is_an_error_only_if_it_was_named(tmp_path: Path) -> None:
    assert read(tmp_path).node.site == "local"
    error = error_of(tmp_path, MICRO_CONFIG="no.toml")
    assert (error.detail, error.at) == ("the settings file no.toml does not exist", "env MICRO_CONFIG")
    with pytest.raises(ConfigError, match=r"no\.toml does not exist at flag --config"):
        load_settings(config="no.toml", environ={}, directory=tmp_path)


def test_named_file_replaces_the_default_file(tmp_path: Path) -> None:
    (tmp_path / "micro.toml").write_text("[node]\nsite = 'no'\n")
    (tmp_path / "eu.toml").write_text("[node]\nsite = 'eu'\n")
    settings = load_settings(config="eu.toml", environ={"MICRO_CONFIG": "other.toml"}, directory=tmp_path)
    assert (settings.node.site, settings.origin("node.site")) == ("eu", "eu.toml:2")


@pytest.mark.parametrize(
    ("text", "detail", "at", "hint"),
    [
        ("[nodes]\nsite = 'eu'\n", "unknown table or key 'nodes'", "micro.toml:1", "did you mean [node]?"),
        ("\nport = 1\n", "unknown table or key 'port'", "micro.toml:2", "the tables are [node] and [plugins.NAME]"),
        ("[plugins]\nquic = 1\n", "plugins.quic is not a table", "micro.toml:2", "[plugins.quic]"),
        ("[node]\n\nsit = 'eu'\n", "unknown setting 'node.sit'", "micro.toml:3", "did you mean 'site'?"),
        ("[node]\nlinks_remote = 'x'\n", "node.links_remote: 'x' is not an integer", "micro.toml:2", ""),
        ("[node]\nlinks_remote = -1\n", "node.links_remote: -1 is not 0 or more", "micro.toml:2", ""),
        ("[node]\nlog = 'loud'\n", "node.log: 'loud' is not one of debug, info", "micro.toml:2", ""),
        ("[node]\ntimeout = 0\n", "node.timeout: 0.0 is not more than 0 seconds", "micro.toml:2", ""),
        ("[node]\nlease = 0.0\n", "node.lease: 0.0 is not more than 0 seconds", "micro.toml:2", ""),
        ("[node]\nsite = 'E U'\n", "node.site: 'E U' is not a site", "micro.toml:2", "e.g. eu-west-1"),
        ("[node]\nnetwork = '~'\n", "node.network: '~' is not a network name", "micro.toml:2", "e.g. go.micro"),
    ],
)
def test_error_in_the_file_is_reported_with_its_line(
    tmp_path: Path, text: str, detail: str, at: str, hint: str
) -> None:
    error = error_of(tmp_path, text)
    assert isinstance(error, OptionError)
    assert error.detail.startswith(detail)
    assert error.at == at
    assert hint in error.hint


def test_file_that_is_not_toml_is_rejected(tmp_path: Path) -> None:
    assert "is not valid TOML" in error_of(tmp_path, "[node\n").detail
    assert "is not valid TOML" in error_of(tmp_path, "a = " + "[" * 100_000).detail
    (tmp_path / "micro.toml").write_bytes(b"[node]\nsite = '\xff'\n")
    assert "invalid UTF-8" in error_of(tmp_path).detail


def test_file_that_is_too_large_or_a_directory_is_rejected(tmp_path: Path) -> None:
    assert f"larger than {MAX_FILE_BYTES} bytes" in error_of(tmp_path, "#" * (MAX_FILE_BYTES + 1)).detail
    (tmp_path / "micro.toml").unlink()
    (tmp_path / "micro.toml").mkdir()
    assert "cannot read" in error_of(tmp_path).detail


# -------------------------------------------------------------------------- references, state


def test_references_are_replaced_by_their_values(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("from file\n")
    assert read(tmp_path, "[node]\ntoken = '$file:token'\n").node.token == "from file"
    assert read(tmp_path, "[node]\ntoken = '$env:PW'\n", PW="from env").node.token == "from env"
    assert read(tmp_path, "[node]\ntimeout = '$env:PATIENCE'\n", PATIENCE="2.5").node.timeout == 2.5
    assert read(tmp_path, "", sets=["node.token=$env:PW"], PW="x").node.token == "x"


def test_error_of_an_invalid_reference_contains_its_target_and_origin(tmp_path: Path) -> None:
    error = error_of(tmp_path, "[node]\ntoken = '$env:PW'\n")
    assert (error.detail, error.at) == ("node.token: the variable PW is not set", "micro.toml:2")
    error = error_of(tmp_path, "[node]\ntoken = '$file:nowhere'\n")
    assert error.detail.startswith("node.token: cannot read")
    assert error.at == "micro.toml:2"
    (tmp_path / "large").write_text("x" * (MAX_FILE_BYTES + 1))
    assert "is larger than" in error_of(tmp_path, "[node]\ntoken = '$file:large'\n").detail


def test_reference_of_an_unused_plugin_is_not_resolved(tmp_path: Path) -> None:
    assert read(tmp_path, "[plugins.redis]\npassword = '$env:NOT_HERE'\n").plugin_tables() == ["redis"]


def test_secrets_are_not_in_any_repr(tmp_path: Path) -> None:
    settings = read(tmp_path, MICRO_TOKEN="s3cret")
    assert settings.node.token == "s3cret"
    assert "s3cret" not in repr(settings.node)
    assert "s3cret" not in repr(settings.value("node.token"))


def test_state_directory_has_mode_0700(tmp_path: Path) -> None:
    given = read(tmp_path, MICRO_STATE_DIR=str(tmp_path / "a" / "b")).state_dir()
    assert given == tmp_path / "a" / "b"
    assert stat.S_IMODE(given.stat().st_mode) == 0o700
    assert read(tmp_path, XDG_STATE_HOME=str(tmp_path / "xdg")).state_dir() == tmp_path / "xdg" / "micro"


def test_state_directory_is_in_the_home_directory_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    expected = tmp_path / ".local" / "state" / "micro"
    assert read(tmp_path).state_dir() == expected
    assert read(tmp_path, XDG_STATE_HOME="relative/is/ignored").state_dir() == expected


def test_error_of_the_state_directory_contains_its_origin(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot create the state directory") as caught:
        read(tmp_path, MICRO_STATE_DIR=str(tmp_path / "file" / "below")).state_dir()
    assert caught.value.at == "env MICRO_STATE_DIR"
