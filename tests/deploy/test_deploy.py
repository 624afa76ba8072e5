"""Tests of the files in deploy/ without a container engine: their settings and commands are run on this machine."""

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
TIMEOUT_S = 60.0


def instructions() -> list[tuple[str, str]]:
    """Return the instructions of the Dockerfile as (name, arguments), with continuation lines joined."""
    text = re.sub(r"^\s*#.*\n", "", (DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [(line.split(None, 1)[0], line.split(None, 1)[1].strip()) for line in text.splitlines() if line.strip()]


def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return loaded


def environment_with(**extra: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MICRO_")}
    return {**kept, "PATH": f"{BIN}:{kept.get('PATH', '')}", **extra}


@pytest.fixture
def state() -> Iterator[Path]:
    """Return a directory with a short path, because `tmp_path` is too long for the path of a Unix socket."""
    with tempfile.TemporaryDirectory(prefix="micro-") as path:
        yield Path(path)


def test_sources_of_the_image_exist() -> None:
    sources = [
        source
        for name, arguments in instructions()
        if name == "COPY" and "--from" not in arguments
        for source in arguments.split()[:-1]
    ]
    assert sources
    assert [source for source in sources if not (ROOT / source).exists()] == []
    (argument,) = [arguments for name, arguments in instructions() if name == "ARG"]
    plugins = shlex.split(argument.partition("=")[2])[0].split()
    assert sorted(plugins) == sorted(
        path.parent.name
        for path in (ROOT / "plugins").glob("*/pyproject.toml")
        if not path.parent.name.endswith("_hooks")
    )


def test_image_runs_as_an_unprivileged_user_and_stops_with_sigterm() -> None:
    by_name = dict(instructions())
    assert by_name["USER"].isdigit()
    assert by_name["STOPSIGNAL"] == "SIGTERM"
    last_user = [name for name, _ in instructions()].index("USER")
    assert "CMD" in [name for name, _ in instructions()][last_user:]


def test_command_and_health_check_of_the_image_work(state: Path) -> None:
    by_name = dict(instructions())
    variables = dict(item.split("=", 1) for item in shlex.split(by_name["ENV"]))
    assert variables["MICRO_CONFIG"] == "/etc/micro/micro.toml"
    environment = environment_with(
        MICRO_CONFIG=str(DEPLOY / "node.toml"),
        MICRO_STATE_DIR=str(state),
        MICRO_LISTEN=f"127.0.0.1:{free_port()}",
        MICRO_ADDRESS=f"tcp://127.0.0.1:{free_port()}",
        PYTHONUNBUFFERED=variables["PYTHONUNBUFFERED"],
    )
    command = yaml.safe_load(by_name["CMD"])
    node = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert node.stdout is not None
        watchdog = threading.Timer(TIMEOUT_S, node.kill)
        watchdog.start()
        output = []
        for line in node.stdout:
            output.append(line)
            if line.startswith("ready"):
                break
        watchdog.cancel()
        assert output[-1:], "the node printed nothing"
        assert output[-1].startswith("ready"), "".join(output)
        check = yaml.safe_load(by_name["HEALTHCHECK"].partition("CMD")[2])
        healthy = subprocess.run(check, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        assert healthy.returncode == 0, healthy.stderr
    finally:
        node.send_signal(signal.SIGTERM)
        _, code = node.communicate(timeout=TIMEOUT_S), node.returncode
    assert code == 0
    unhealthy = subprocess.run(check, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert unhealthy.returncode != 0, "the health check fails for a stopped node"


@pytest.mark.parametrize("name", ["eu", "us", "greeter"])
def test_environment_of_each_container_is_valid(name: str, state: Path) -> None:
    environment = {key: str(value) for key, value in compose()["services"][name]["environment"].items()}
    token = state / "token"
    token.write_text("a token of about forty characters in this file\n")
    token.chmod(0o600)
    if "MICRO_TOKEN_FILE" in environment:
        environment["MICRO_TOKEN_FILE"] = str(token)
    done = subprocess.run(
        [str(BIN / "micro"), "config", "validate"],
        env=environment_with(MICRO_CONFIG=str(DEPLOY / "node.toml"), MICRO_STATE_DIR=str(state), **environment),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_containers_refer_only_to_existing_networks_volumes_secrets_and_containers() -> None:
    file = compose()
    for name, service in file["services"].items():
        assert set(service.get("networks", [])) <= set(file["networks"]), name
        assert set(service.get("secrets", [])) <= set(file["secrets"]), name
        assert set(service.get("depends_on", [])) <= set(file["services"]), name
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            known = (DEPLOY / source).exists() if source.startswith(".") else source in file["volumes"]
            assert known, volume
        for variable, url in service.get("environment", {}).items():
            if variable.endswith("__URL"):
                host = url.partition("://")[2].partition(":")[0]
                assert set(file["services"][host]["networks"]) & set(service["networks"]), f"{name} cannot reach {host}"


def test_unit_is_accepted_by_systemd(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    text = (DEPLOY / "micro.service").read_text()
    (command,) = re.findall(r"^ExecStart=(\S+) run$", text, re.MULTILINE)
    unit = tmp_path / "micro.service"
    unit.write_text(text.replace(command, str(BIN / "micro")))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--recursive-errors=no", str(unit)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    messages = [line for line in done.stderr.splitlines() if "micro.service" in line]
    assert messages == []
    assert done.returncode == 0, done.stderr


def test_unit_uses_the_shipped_settings_file() -> None:
    text = (DEPLOY / "micro.service").read_text()
    assert "MICRO_CONFIG=/etc/micro/micro.toml" in text
    assert "KillSignal=SIGTERM" in text
