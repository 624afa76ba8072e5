"""Two nodes on two sites, each with its own nats-server, linked over QUIC; all are real processes."""

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

TIMEOUT_S = 30.0

LISTENER = """
import sys
from micro_core import Service

service = Service("audit." + sys.argv[1])

@service.subscriber("orders.created")
async def on_order(order: dict) -> None:
    print("single", sys.argv[1], order["n"], flush=True)

@service.subscriber("orders.created", queue="workers")
async def on_order_in_group(order: dict) -> None:
    print("group", sys.argv[1], order["n"], flush=True)

service.run()
"""

PUBLISHER = """
import asyncio
import sys
from micro_core import Client

async def main() -> None:
    async with Client() as client:
        for number in range(int(sys.argv[1]), int(sys.argv[2])):
            await client.publish("orders.created", {"n": number})

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

    def start(self, site: str, *arguments: str) -> Path:
        """Start a Python process and wait until it is ready; return the file that contains its output."""
        output = self.directory / f"output-{len(self._children)}"
        with output.open("wb") as file:
            child = subprocess.Popen(
                [sys.executable, *arguments], env=self.environment(site), stdout=file, stderr=subprocess.STDOUT
            )
        self._children.append((child, output))
        wait_until(lambda: "ready" in output.read_text() or child.poll() is not None, output.read_text)
        assert child.poll() is None, output.read_text()
        return output

    def run(self, site: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments],
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


def wait_until(condition: Callable[[], bool], report: Callable[[], str]) -> None:
    """Poll `condition`; after the timeout, fail with the text of `report`."""
    end = time.monotonic() + TIMEOUT_S
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(report())
        time.sleep(0.05)


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    processes = Processes(tmp_path)
    yield processes
    processes.stop()


@pytest.mark.timeout(120)
def test_messages_arrive_exactly_once_on_both_sites(processes: Processes, start_server: Callable[..., Any]) -> None:
    """One site uses JetStream, the other does not. Each site has a publisher."""
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
                url=start_server(jetstream=site == "eu").url,
                durable=str(site == "eu").lower(),
            )
        )
    (directory / "listener.py").write_text(LISTENER)
    (directory / "publisher.py").write_text(PUBLISHER)
    for site in ("eu", "us"):
        processes.start(site, "-m", "micro_core", "run")
    outputs = {site: processes.start(site, str(directory / "listener.py"), site) for site in ("eu", "us")}

    def services(site: str) -> str:
        return processes.run(site, "-m", "micro_core", "network", "services", "--json").stdout

    for site, other in (("us", "eu"), ("eu", "us")):
        wait_until(lambda: f"audit.{other}" in services(site), lambda: services(site))  # noqa: B023 - called at once

    def all_outputs() -> str:
        return "\n".join(f"{site}: {path.read_text()}" for site, path in outputs.items())

    def received(kind: str, site: str) -> list[int]:
        lines = [line.split() for line in outputs[site].read_text().splitlines()]
        return [int(fields[2]) for fields in lines if fields[:2] == [kind, site]]

    def publish(site: str, start: int, stop: int) -> None:
        result = processes.run(site, str(directory / "publisher.py"), str(start), str(stop))
        assert result.returncode == 0, result.stderr

    def all_received(numbers: set[int]) -> bool:
        return all(numbers <= set(received(kind, site)) for kind in ("single", "group") for site in ("eu", "us"))

    publish("us", 0, 10)
    publish("eu", 10, 20)
    wait_until(lambda: all_received(set(range(20))), all_outputs)
    # A second copy would have been sent before these two messages.
    publish("us", 20, 21)
    publish("eu", 21, 22)
    wait_until(lambda: all_received({20, 21}), all_outputs)
    for site in ("eu", "us"):
        for kind in ("single", "group"):
            numbers = received(kind, site)
            assert sorted(numbers) == list(range(22)), all_outputs()
            # Messages of each publisher arrive in order.
            assert [number for number in numbers if number < 10] == list(range(10))
            assert [number for number in numbers if 10 <= number < 20] == list(range(10, 20))
