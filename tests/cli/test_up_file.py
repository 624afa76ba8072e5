"""Tests of the files that `micro up` reads."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from micro_core.cli.up_file import MAX_PROCESSES, read_plan
from micro_core.cli.up_tables import ProcessPlan
from micro_core.config import load_settings
from micro_core.contract.errors import ConfigError, MicroError, OptionError, PluginMissing

Read = Callable[..., list[ProcessPlan]]

GREETER = '[services.greeter]\ncommand = "python greeter.py"\n'
EU = '[nodes.eu]\nlisten = "none"\n'


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def reader(text: str, **environ: str) -> list[ProcessPlan]:
        path = tmp_path / "micro.toml"
        path.write_text(text)
        return read_plan(path, {"PATH": os.environ["PATH"], "MICRO_STATE_DIR": str(tmp_path / "state"), **environ})

    return reader


def names(plans: list[ProcessPlan]) -> list[str]:
    return [plan.name for plan in plans]


def test_nodes_start_before_services_and_are_named_after_their_tables(read: Read) -> None:
    plans = read(GREETER + 'site = "us"\n' + EU + '[nodes.us]\nlisten = "none"\nsite = "us"\n')
    assert names(plans) == ["eu", "us", "greeter"]
    eu, us, greeter = plans
    assert eu.environment["MICRO_SITE"] == eu.environment["MICRO_NAME"] == "eu"
    assert us.environment["MICRO_LISTEN"] == "none"
    assert greeter.environment["MICRO_SITE"] == "us"
    assert greeter.environment["MICRO_PROXY"] == "go.micro.network"
    assert "MICRO_PROXY" not in eu.environment
    assert greeter.command == ("python", "greeter.py")


def test_service_inherits_the_only_site_and_the_settings_of_its_node(read: Read) -> None:
    (node, service) = read('[nodes.eu]\nnetwork = "my.net"\nplugins = ["registry:memory"]\n' + GREETER)
    for variable in ("MICRO_SITE", "MICRO_NETWORK", "MICRO_PLUGINS", "MICRO_CONFIG"):
        assert service.environment[variable] == node.environment[variable], variable
    settings = load_settings(environ=service.environment)
    assert (settings.node.site, settings.node.network, settings.node.proxy) == ("eu", "my.net", "go.micro.network")


def test_plugin_options_of_a_node_reach_only_services_of_its_site(read: Read) -> None:
    sets = 'set = ["local.poll_s=0.5", "registry:local.check_owner=false", "node.lease=7"]\n'
    us = '[nodes.us]\nlisten = "none"\n[services.other]\ncommand = "python other.py"\nsite = "us"\n'
    own = 'site = "eu"\nenv = { MICRO_LOCAL__POLL_S = "2" }\n'
    node, _, other, greeter, late = read(
        EU + sets + us + GREETER + 'site = "eu"\n' + GREETER.replace("er]", "er2]") + own
    )
    assert node.command[-6:-4] == ("--set", "local.poll_s=0.5")
    found = load_settings(environ=greeter.environment).plugin_values("local", "registry:local")
    assert {key: value.raw for key, value in found.items()} == {"poll_s": "0.5", "check_owner": "false"}
    assert late.environment["MICRO_LOCAL__POLL_S"] == "2", "the service's own environment takes precedence"
    assert "MICRO_LOCAL__POLL_S" not in other.environment
    assert "MICRO_LEASE" not in greeter.environment, "settings of the node itself are not passed on"


def test_per_process_variables_of_the_shell_are_not_inherited(read: Read) -> None:
    (node, service) = read(EU + GREETER, MICRO_SITE="us", MICRO_LISTEN=":1", MICRO_PROXY="x", MICRO_LOG="debug")
    assert node.environment["MICRO_SITE"] == service.environment["MICRO_SITE"] == "eu"
    assert node.environment["MICRO_LISTEN"] == "none"
    assert "MICRO_LISTEN" not in service.environment
    assert node.environment["MICRO_LOG"] == service.environment["MICRO_LOG"] == "debug"


def test_secret_is_not_on_a_command_line(read: Read) -> None:
    (node,) = read(EU + 'token = "hush"\n')
    assert node.environment["MICRO_TOKEN"] == "hush"
    assert "hush" not in repr(node)
    assert not any("hush" in argument for argument in node.command)


def test_instances_are_numbered_and_env_is_added(read: Read) -> None:
    plans = read(EU + GREETER + 'instances = 3\nenv = { COLOUR = "red", LEVEL = 2 }\nproxy = ""\n')
    assert names(plans) == ["eu", "greeter.1", "greeter.2", "greeter.3"]
    assert plans[1].environment["COLOUR"] == "red"
    assert plans[1].environment["LEVEL"] == "2"
    assert "MICRO_PROXY" not in plans[1].environment


def test_components_start_in_a_fixed_order(read: Read) -> None:
    plans = read(
        '[nodes.eu]\nlisten = "none"\nplugins = ["registry:service"]\ncomponents = ["proxy", "tunnel", "router", "registry"]'
    )
    assert names(plans) == ["eu.registry", "eu.tunnel", "eu.router", "eu.proxy"]
    assert [plan.stage for plan in plans] == sorted(plan.stage for plan in plans)


def test_services_without_a_node_have_no_proxy(read: Read) -> None:
    (plan,) = read(GREETER)
    assert "MICRO_PROXY" not in plan.environment


def test_file_is_a_valid_settings_file(read: Read, tmp_path: Path) -> None:
    read("[node]\nsite = 'eu'\n" + EU + GREETER)
    assert load_settings(config=str(tmp_path / "micro.toml"), environ={}).node.site == "eu"


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("", ConfigError, "has nothing to start"),
        ("[nodes.eu\n", ConfigError, "not valid TOML"),
        ("[node.eu]\nlisten = ':1'\n", ConfigError, r"\[nodes\.eu\]"),
        ("[nods.eu]\n", OptionError, r"did you mean \[nodes\]"),
        ("[nodes.eu]\nlisen = 'none'\n", OptionError, "micro.toml:2.*did you mean 'listen'"),
        ("[nodes.eu]\nlisten = 5\n", OptionError, "micro.toml:2"),
        ("[nodes.eu]\nplugins = ['quick']\n", PluginMissing, "quick"),
        ("[nodes.eu]\ncomponents = ['proxi']\n", OptionError, "did you mean 'proxy'"),
        ("[nodes.eu]\ncomponents = ['registry']\n", OptionError, "registry:service"),
        ("[nodes.eu]\nlog = 'loud'\n", OptionError, "log"),
        ("[nodes.'a b']\n", OptionError, "not a valid name"),
        ("[nodes]\neu = 3\n", OptionError, "not a table"),
        (EU + "[services.a]\n", OptionError, "command is missing"),
        (EU + "[services.a]\ncomand = 'x'\n", OptionError, "did you mean 'command'"),
        (EU + "[services.a]\ncommand = 'no-such-program-anywhere'\n", OptionError, "not found"),
        (EU + "[services.a]\ncommand = 'python x'\nsite = 'eux'\n", OptionError, "did you mean 'eu'"),
        (EU + "[services.a]\ncommand = 'python x'\ncwd = 'nowhere'\n", OptionError, "does not exist"),
        (EU + "[services.a]\ncommand = 'python x'\ninstances = 0\n", OptionError, "1 to 64"),
        (EU + "[services.a]\ncommand = 'python x'\nready_s = 0\n", OptionError, "ready_s"),
        (EU + "[services.a]\ncommand = 'python x'\nenv = 3\n", OptionError, "env is not a table"),
        (EU + "[services.a]\ncommand = 'python x'\nenv = { A = [1] }\n", OptionError, "is not a string"),
        (EU + "[nodes.us]\nlisten='none'\n" + GREETER, OptionError, "site is missing"),
    ],
)
def test_invalid_file_is_rejected(read: Read, text: str, error: type[MicroError], message: str) -> None:
    with pytest.raises(error, match=f"(?s){message}"):
        read(text)


def test_two_nodes_cannot_listen_on_the_same_address(read: Read) -> None:
    pytest.importorskip("micro_quic_tunnel")
    with pytest.raises(OptionError, match=r"nodes\.us and nodes\.eu both have listen = ':8085'"):
        read("[node]\nplugins = ['quic']\n[nodes.eu]\n[nodes.us]\n")


def test_number_of_processes_is_limited(read: Read) -> None:
    services = "".join(
        f"[services.s{n}]\ncommand = 'python x'\ninstances = 64\n" for n in range(MAX_PROCESSES // 64 + 1)
    )
    with pytest.raises(ConfigError, match="at most"):
        read(services)
