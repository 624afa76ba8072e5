"""What stands under deploy/, as far as it can be tried without an engine: the same settings, the same commands, on this machine."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from micro_core.testing import free_port

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
BIN = Path(sys.executable).parent
PATIENCE_S = 60.0


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's (instruction, arguments), continuations joined."""
    text = re.sub(r"^\s*#.*\n", "", (DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [(line.split(None, 1)[0], line.split(None, 1)[1].strip()) for line in text.splitlines() if line.strip()]


def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return loaded


def clean(**extra: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MICRO_")}
    return {**kept, "PATH": f"{BIN}:{kept.get('PATH', '')}", **extra}


@pytest.fixture
def state() -> Iterator[Path]:
    """Not tmp_path: its length would not leave room for the name of a Unix socket."""
    with tempfile.TemporaryDirectory(prefix="micro-") as made:
        yield Path(made)


def test_the_image_is_built_of_what_is_there() -> None:
    sources = [
        word
        for name, arguments in instructions()
        if name == "COPY" and "--from" not in arguments
        for word in arguments.split()[:-1]
    ]
    assert sources
    assert [source for source in sources if not (ROOT / source).exists()] == []
    (named,) = [arguments for name, arguments in instructions() if name == "ARG"]
    plugins = shlex.split(named.partition("=")[2])[0].split()
    assert sorted(plugins) == sorted(
        path.parent.name
        for path in (ROOT / "plugins").glob("*/pyproject.toml")
        if not path.parent.name.endswith("_hooks")
    )


def test_the_image_runs_as_nobody_in_particular_and_is_told_to_stop_as_a_node_wants_it() -> None:
    said = dict(instructions())
    assert said["USER"].isdigit()
    assert said["STOPSIGNAL"] == "SIGTERM"
    last_user = [name for name, _ in instructions()].index("USER")
    assert "CMD" in [name for name, _ in instructions()][last_user:]


def test_the_image_s_command_and_health_check_work(state: Path) -> None:
    said = dict(instructions())
    variables = dict(word.split("=", 1) for word in shlex.split(said["ENV"]))
    assert variables["MICRO_CONFIG"] == "/etc/micro/micro.toml"
    environment = clean(
        MICRO_CONFIG=str(DEPLOY / "node.toml"),
        MICRO_STATE_DIR=str(state),
        MICRO_LISTEN=f"127.0.0.1:{free_port()}",
        MICRO_ADDRESS=f"tcp://127.0.0.1:{free_port()}",
        PYTHONUNBUFFERED=variables["PYTHONUNBUFFERED"],
    )
    command = yaml.safe_load(said["CMD"])
    node = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert node.stdout is not None
        watchdog = threading.Timer(PATIENCE_S, node.kill)
        watchdog.start()
        seen = []
        for line in node.stdout:
            seen.append(line)
            if line.startswith("ready"):
                break
        watchdog.cancel()
        assert seen[-1:], "it said nothing"
        assert seen[-1].startswith("ready"), "".join(seen)
        check = yaml.safe_load(said["HEALTHCHECK"].partition("CMD")[2])
        healthy = subprocess.run(
            check, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )
        assert healthy.returncode == 0, healthy.stderr
    finally:
        node.send_signal(signal.SIGTERM)
        _, code = node.communicate(timeout=PATIENCE_S), node.returncode
    assert code == 0
    unwell = subprocess.run(check, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert unwell.returncode != 0, "nobody is healthy who is not there"


@pytest.mark.parametrize("name", ["eu", "us", "greeter"])
def test_the_environment_of_each_container_is_understood(name: str, state: Path) -> None:
    environment = {key: str(value) for key, value in compose()["services"][name]["environment"].items()}
    token = state / "token"
    token.write_text("a token of forty characters or thereabouts\n")
    token.chmod(0o600)
    if "MICRO_TOKEN_FILE" in environment:
        environment["MICRO_TOKEN_FILE"] = str(token)
    done = subprocess.run(
        [str(BIN / "micro"), "config", "validate"],
        env=clean(MICRO_CONFIG=str(DEPLOY / "node.toml"), MICRO_STATE_DIR=str(state), **environment),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_containers_name_only_networks_volumes_secrets_and_each_other_that_exist() -> None:
    whole = compose()
    for name, service in whole["services"].items():
        assert set(service.get("networks", [])) <= set(whole["networks"]), name
        assert set(service.get("secrets", [])) <= set(whole["secrets"]), name
        assert set(service.get("depends_on", [])) <= set(whole["services"]), name
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            known = (DEPLOY / source).exists() if source.startswith(".") else source in whole["volumes"]
            assert known, volume
        for variable, url in service.get("environment", {}).items():
            if variable.endswith("__URL"):
                host = url.partition("://")[2].partition(":")[0]
                assert set(whole["services"][host]["networks"]) & set(service["networks"]), (
                    f"{name} cannot reach {host}"
                )


def test_the_unit_is_one_that_systemd_takes(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not on this machine")
    text = (DEPLOY / "micro.service").read_text()
    (command,) = re.findall(r"^ExecStart=(\S+) run$", text, re.MULTILINE)
    unit = tmp_path / "micro.service"
    unit.write_text(text.replace(command, str(BIN / "micro")))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--recursive-errors=no", str(unit)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    about_it = [line for line in done.stderr.splitlines() if "micro.service" in line]
    assert about_it == []
    assert done.returncode == 0, done.stderr


def test_the_unit_names_the_settings_that_are_shipped() -> None:
    text = (DEPLOY / "micro.service").read_text()
    assert "MICRO_CONFIG=/etc/micro/micro.toml" in text
    assert "KillSignal=SIGTERM" in text
