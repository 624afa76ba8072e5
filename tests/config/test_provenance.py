"""Flag, environment, file, default: which one counts, and where it was said."""

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
target_links = 5

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


def refused(directory: Path, text: str | None = None, *, sets: Sequence[str] = (), **environ: str) -> MicroError:
    with pytest.raises(ConfigError) as caught:
        read(directory, text, flags=None, sets=sets, **environ)
    return caught.value


def test_the_first_source_that_says_something_counts(tmp_path: Path) -> None:
    (tmp_path / "micro.toml").write_text(FILE)
    said = {
        "default": read(tmp_path.parent),
        "micro.toml:3": read(tmp_path),
        "env MICRO_SITE": read(tmp_path, MICRO_SITE="env"),
        "flag --set node.site": read(tmp_path, sets=["node.site=set"], MICRO_SITE="env"),
        "flag --site": read(tmp_path, flags={"node.site": "flag"}, sets=["node.site=set"], MICRO_SITE="env"),
    }
    assert [settings.origin("node.site") for settings in said.values()] == list(said)
    assert [settings.node.site for settings in said.values()] == ["local", "file", "env", "set", "flag"]


def test_options_of_a_plugin_follow_the_same_order(tmp_path: Path) -> None:
    (tmp_path / "micro.toml").write_text(FILE)
    assert read(tmp_path).origin("quic.port") == "micro.toml:10"
    assert read(tmp_path, MICRO_QUIC__PORT="2").origin("plugins.quic.port") == "env MICRO_QUIC__PORT"
    settings = read(tmp_path, sets=["quic.port=3"], MICRO_QUIC__PORT="2")
    assert settings.origin("quic.port") == "flag --set quic.port"
    assert settings.plugin_values("quic")["port"].raw == "3"
    assert settings.origin("quic.congestion") == "default"


def test_a_flag_that_was_not_given_says_nothing(tmp_path: Path) -> None:
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
        ("MICRO_TARGET_LINKS", "4", "target_links", 4),
        ("MICRO_STATE_DIR", "/s", "state_dir", "/s"),
        ("MICRO_LOG", "debug", "log", "debug"),
        ("MICRO_TIMEOUT", "1.5", "timeout", 1.5),
        ("MICRO_PROXY", "go.micro.network", "proxy", "go.micro.network"),
    ],
)
def test_every_variable_sets_its_field(tmp_path: Path, variable: str, raw: str, field: str, value: object) -> None:
    settings = read(tmp_path, None, flags=None, sets=(), **{variable: raw})
    assert getattr(settings.node, field) == value
    assert settings.origin(f"node.{field}") == f"env {variable}"


def test_of_the_two_names_of_the_network_the_unmistakable_one_counts(tmp_path: Path) -> None:
    for environ in (
        {"MICRO_NETWORK": "go.a", "MICRO_NETWORK_NAME": "go.b"},
        {"MICRO_NETWORK_NAME": "go.b", "MICRO_NETWORK": "go.a"},
    ):
        settings = read(tmp_path, None, flags=None, sets=(), **environ)
        assert (settings.node.network, settings.origin("node.network")) == ("go.b", "env MICRO_NETWORK_NAME")


def test_a_slip_in_a_variable_is_refused_and_strange_variables_are_let_be(tmp_path: Path) -> None:
    error = refused(tmp_path, MICRO_NODE="a:1")
    assert (error.detail, error.hint) == ("MICRO_NODE is not a setting", "did you mean MICRO_NODES?")
    assert read(tmp_path, MICRO_K8S_POD="x", MICROSCOPE="y", MICRO_DEBUG="1").node.nodes == ()


def test_a_plugin_is_told_under_any_of_its_words(tmp_path: Path) -> None:
    for word in ("quic", "tunnel:quic", "quic_tunnel", "micro-quic-tunnel", "Quic"):
        settings = read(tmp_path, f'[plugins."{word}"]\nport = 7\n')
        assert settings.plugin_values("quic", "tunnel:quic")["port"].raw == 7, word
        assert settings.plugin_values("tls", "tunnel:tls") == {}
    settings = read(tmp_path, "[plugins.wire_guard]\nport = 7\n")
    assert settings.plugin_values("wire-guard", "tunnel:wire-guard")["port"].raw == 7


def test_a_qualified_table_is_for_its_role_alone(tmp_path: Path) -> None:
    settings = read(tmp_path, '[plugins."registry:redis"]\nurl = "r"\n[plugins.redis]\nurl = "all"\nttl = 1\n')
    registry = settings.plugin_values("redis", "registry:redis")
    assert {name: value.raw for name, value in registry.items()} == {"url": "r", "ttl": 1}
    assert settings.plugin_values("redis", "broker:redis")["url"].raw == "all"
    assert settings.plugin_tables() == ["redis", "registry:redis"]


def test_a_source_that_counts_more_wins_over_a_more_exact_word(tmp_path: Path) -> None:
    text = '[plugins."registry:redis"]\nurl = "file"\n'
    settings = read(tmp_path, text, MICRO_REDIS__URL="env")
    assert settings.plugin_values("redis", "registry:redis")["url"].origin == "env MICRO_REDIS__URL"


def test_a_variable_can_name_the_role(tmp_path: Path) -> None:
    settings = read(tmp_path, MICRO_REGISTRY__REDIS__URL="env")
    assert settings.plugin_values("redis", "registry:redis")["url"].raw == "env"
    assert settings.plugin_values("redis", "broker:redis") == {}


def test_the_driver_called_node_is_not_the_table_node(tmp_path: Path) -> None:
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
        ("nonsense", "as in --set quic.port=8085"),
        ("node.site", "as in --set quic.port=8085"),
        (".x=1", "as in --set quic.port=8085"),
        ("quic.=1", "as in --set quic.port=8085"),
        ("node.=1", "as in --set quic.port=8085"),
    ],
)
def test_a_setting_that_is_not_understood_says_how_to_write_it(tmp_path: Path, text: str, hint: str) -> None:
    error = refused(tmp_path, sets=[text])
    assert "is not understood" in error.detail
    assert error.hint == hint


def test_a_setting_that_is_not_understood_does_not_repeat_its_value(tmp_path: Path) -> None:
    assert "s3cret" not in str(refused(tmp_path, sets=["token=s3cret"]))


# --------------------------------------------------------------------------------- the file


def test_the_file_may_be_missing_unless_it_was_named(tmp_path: Path) -> None:
    assert read(tmp_path).node.site == "local"
    error = refused(tmp_path, MICRO_CONFIG="no.toml")
    assert (error.detail, error.at) == ("the settings file no.toml does not exist", "env MICRO_CONFIG")
    with pytest.raises(ConfigError, match=r"no\.toml does not exist at flag --config"):
        load_settings(config="no.toml", environ={}, directory=tmp_path)


def test_a_named_file_is_read_instead_and_named_in_origins(tmp_path: Path) -> None:
    (tmp_path / "micro.toml").write_text("[node]\nsite = 'no'\n")
    (tmp_path / "eu.toml").write_text("[node]\nsite = 'eu'\n")
    settings = load_settings(config="eu.toml", environ={"MICRO_CONFIG": "other.toml"}, directory=tmp_path)
    assert (settings.node.site, settings.origin("node.site")) == ("eu", "eu.toml:2")


@pytest.mark.parametrize(
    ("text", "detail", "at", "hint"),
    [
        ("[nodes]\nsite = 'eu'\n", "unknown table or key 'nodes'", "micro.toml:1", "did you mean [node]?"),
        ("\nport = 1\n", "unknown table or key 'port'", "micro.toml:2", "tables are [node] and [plugins.NAME]"),
        ("[plugins]\nquic = 1\n", "plugins.quic is not a table", "micro.toml:2", "[plugins.quic]"),
        ("[node]\n\nsit = 'eu'\n", "node: unknown option 'sit'", "micro.toml:3", "did you mean 'site'?"),
        ("[node]\ntarget_links = 'x'\n", "node.target_links: 'x' is not a whole number", "micro.toml:2", ""),
        ("[node]\ntarget_links = -1\n", "node.target_links: -1 is not 0 or more", "micro.toml:2", ""),
        ("[node]\nlog = 'loud'\n", "node.log: 'loud' is not one of debug, info", "micro.toml:2", ""),
        ("[node]\ntimeout = 0\n", "node.timeout: 0.0 is not more than 0 seconds", "micro.toml:2", ""),
        ("[node]\nlease = 0.0\n", "node.lease: 0.0 is not more than 0 seconds", "micro.toml:2", ""),
        ("[node]\nsite = 'E U'\n", "node.site: 'E U' is not a site", "micro.toml:2", "e.g. eu-west-1"),
        ("[node]\nnetwork = '~'\n", "node.network: '~' is not a network name", "micro.toml:2", "e.g. go.micro"),
    ],
)
def test_what_the_file_says_wrong_is_told_with_its_line(
    tmp_path: Path, text: str, detail: str, at: str, hint: str
) -> None:
    error = refused(tmp_path, text)
    assert isinstance(error, OptionError)
    assert error.detail.startswith(detail)
    assert error.at == at
    assert hint in error.hint


def test_a_file_that_is_no_toml_is_refused(tmp_path: Path) -> None:
    assert "is not valid TOML" in refused(tmp_path, "[node\n").detail
    assert "is not valid TOML" in refused(tmp_path, "a = " + "[" * 100_000).detail
    (tmp_path / "micro.toml").write_bytes(b"[node]\nsite = '\xff'\n")
    assert "is not UTF-8" in refused(tmp_path).detail


def test_a_file_that_is_too_large_or_no_file_is_refused(tmp_path: Path) -> None:
    assert f"larger than {MAX_FILE_BYTES} bytes" in refused(tmp_path, "#" * (MAX_FILE_BYTES + 1)).detail
    (tmp_path / "micro.toml").unlink()
    (tmp_path / "micro.toml").mkdir()
    assert "cannot read" in refused(tmp_path).detail


# -------------------------------------------------------------------------- references, state


def test_references_are_read_from_where_they_point(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("from file\n")
    assert read(tmp_path, "[node]\ntoken = '$file:token'\n").node.token == "from file"
    assert read(tmp_path, "[node]\ntoken = '$env:PW'\n", PW="from env").node.token == "from env"
    assert read(tmp_path, "[node]\ntimeout = '$env:PATIENCE'\n", PATIENCE="2.5").node.timeout == 2.5
    assert read(tmp_path, "", sets=["node.token=$env:PW"], PW="x").node.token == "x"


def test_a_reference_to_nothing_says_what_is_missing_and_where_it_was_said(tmp_path: Path) -> None:
    error = refused(tmp_path, "[node]\ntoken = '$env:PW'\n")
    assert (error.detail, error.at) == ("node.token: the variable PW is not set", "micro.toml:2")
    error = refused(tmp_path, "[node]\ntoken = '$file:nowhere'\n")
    assert error.detail.startswith("node.token: cannot read")
    assert error.at == "micro.toml:2"
    (tmp_path / "large").write_text("x" * (MAX_FILE_BYTES + 1))
    assert "is larger than" in refused(tmp_path, "[node]\ntoken = '$file:large'\n").detail


def test_a_reference_of_a_plugin_that_is_not_in_use_need_not_point_anywhere(tmp_path: Path) -> None:
    assert read(tmp_path, "[plugins.redis]\npassword = '$env:NOT_HERE'\n").plugin_tables() == ["redis"]


def test_secrets_show_in_no_representation(tmp_path: Path) -> None:
    settings = read(tmp_path, MICRO_TOKEN="s3cret")
    assert settings.node.token == "s3cret"
    assert "s3cret" not in repr(settings.node)
    assert "s3cret" not in repr(settings.value("node.token"))


def test_the_state_directory_is_the_users_own(tmp_path: Path) -> None:
    given = read(tmp_path, MICRO_STATE_DIR=str(tmp_path / "a" / "b")).state_dir()
    assert given == tmp_path / "a" / "b"
    assert stat.S_IMODE(given.stat().st_mode) == 0o700
    assert read(tmp_path, XDG_STATE_HOME=str(tmp_path / "xdg")).state_dir() == tmp_path / "xdg" / "micro"


def test_the_state_directory_is_in_the_home_directory_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    expected = tmp_path / ".local" / "state" / "micro"
    assert read(tmp_path).state_dir() == expected
    assert read(tmp_path, XDG_STATE_HOME="relative/is/ignored").state_dir() == expected


def test_a_state_directory_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot make the state directory") as caught:
        read(tmp_path, MICRO_STATE_DIR=str(tmp_path / "file" / "below")).state_dir()
    assert caught.value.at == "env MICRO_STATE_DIR"
