"""The whole: two nodes on two sites, each with a nats-server of its own, joined by QUIC; real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from micro_core.testing import free_port

PATIENCE_S = 30.0

LISTENER = """
import sys
from micro_core import Service

service = Service("audit." + sys.argv[1])

@service.subscriber("orders.created")
async def heard(order: dict) -> None:
    print("heard", sys.argv[1], order["n"], flush=True)

@service.subscriber("orders.created", queue="workers")
async def worked(order: dict) -> None:
    print("worked", sys.argv[1], order["n"], flush=True)

service.run()
"""

PUBLISHER = """
import asyncio
import sys
from micro_core import Client

async def main() -> None:
    async with Client() as client:
        for number in range(10):
            await client.publish("orders.created", {"n": int(sys.argv[1]) + number})

asyncio.run(main())
"""

SITE = """
[node]
name = "{site}"
site = "{site}"
listen = "127.0.0.1:{tunnel}"
address = "tcp://127.0.0.1:{address}"
nodes = [{nodes}]
plugins = ["quic", "nats"]
state_dir = "{state}"

[plugins.nats]
url = "{url}"
durable = {durable}
max_bytes = 10000000
"""


class Processes:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._children: list[tuple[subprocess.Popen[bytes], Path]] = []

    def environment(self, site: str) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("MICRO_")}
        return {**clean, "MICRO_CONFIG": str(self.directory / f"{site}.toml")}

    def start(self, site: str, *words: str) -> Path:
        """The file of what it says."""
        said = self.directory / f"said-{len(self._children)}"
        with said.open("wb") as out:
            child = subprocess.Popen(
                [sys.executable, *words], env=self.environment(site), stdout=out, stderr=subprocess.STDOUT
            )
        self._children.append((child, said))
        until(lambda: "ready" in said.read_text() or child.poll() is not None, said.read_text)
        assert child.poll() is None, said.read_text()
        return said

    def run(self, site: str, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *words],
            env=self.environment(site),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def stop(self) -> None:
        for child, _ in reversed(self._children):
            child.send_signal(signal.SIGTERM)
        for child, _ in self._children:
            try:
                child.wait(timeout=15)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def until(condition: Callable[[], bool], said: Callable[[], str]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(said())
        time.sleep(0.05)


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    made = Processes(tmp_path)
    yield made
    made.stop()


@pytest.mark.timeout(120)
def test_what_one_site_publishes_the_other_hears_exactly_once(processes: Processes, server: Callable[..., Any]) -> None:
    """One site with JetStream, one without; a publisher on each."""
    directory = processes.directory
    tunnel = free_port()
    (directory / "state").mkdir(mode=0o700)
    for site, port, nodes in (("eu", tunnel, ""), ("us", free_port(), f'"quic://127.0.0.1:{tunnel}"')):
        (directory / f"{site}.toml").write_text(
            SITE.format(
                site=site,
                tunnel=port,
                address=free_port(),
                nodes=nodes,
                state=directory / "state",
                url=server(jetstream=site == "eu").url,
                durable=str(site == "eu").lower(),
            )
        )
    (directory / "listener.py").write_text(LISTENER)
    (directory / "publisher.py").write_text(PUBLISHER)
    for site in ("eu", "us"):
        processes.start(site, "-m", "micro_core", "run")
    said = {site: processes.start(site, str(directory / "listener.py"), site) for site in ("eu", "us")}

    def services(site: str) -> str:
        return processes.run(site, "-m", "micro_core", "network", "services", "--json").stdout

    for site, other in (("us", "eu"), ("eu", "us")):
        until(lambda: f"audit.{other}" in services(site), lambda: services(site))  # noqa: B023 - called at once

    def everything() -> str:
        return "\n".join(f"{site}: {path.read_text()}" for site, path in said.items())

    for site, first in (("us", "0"), ("eu", "10")):
        done = processes.run(site, str(directory / "publisher.py"), first)
        assert done.returncode == 0, done.stderr

    def heard(kind: str, site: str) -> list[int]:
        lines = [line.split() for line in said[site].read_text().splitlines()]
        return [int(words[2]) for words in lines if words[:2] == [kind, site]]

    for kind in ("heard", "worked"):
        until(lambda: all(len(heard(kind, site)) >= 20 for site in ("eu", "us")), everything)  # noqa: B023
    time.sleep(0.5)
    for site in ("eu", "us"):
        for kind in ("heard", "worked"):
            numbers = heard(kind, site)
            assert sorted(numbers) == list(range(20)), everything()
            # In order per publisher.
            assert [number for number in numbers if number < 10] == list(range(10))
            assert [number for number in numbers if number >= 10] == list(range(10, 20))
