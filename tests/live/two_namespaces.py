"""Two nodes in network namespaces of their own, a router between them that drops UDP, then lets it through.

Run as `unshare --user --map-root-user --net python two_namespaces.py STATE`; prints one JSON line. Needs no more privileges
than user namespaces give. Started by test_fallback_live.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

MICRO = [sys.executable, "-m", "micro_core"]
PATIENCE_S = 40.0


def sh(command: str) -> None:
    subprocess.run(command.split(), check=True, capture_output=True)


class Machine:
    """A namespace with one link to the router, which is this process's own namespace."""

    def __init__(self, number: int) -> None:
        self.address = f"10.99.{number}.2"
        self._holder = subprocess.Popen(["unshare", "--net", "sleep", "300"])
        # Until the namespace is another than ours.
        own = Path("/proc/self/ns/net").readlink()
        end = time.monotonic() + PATIENCE_S
        while Path(f"/proc/{self._holder.pid}/ns/net").readlink() == own and time.monotonic() < end:
            time.sleep(0.01)
        self.pid = self._holder.pid
        sh(f"ip link add v{number} type veth peer name e0 netns {self.pid}")
        sh(f"ip addr add 10.99.{number}.1/24 dev v{number}")
        sh(f"ip link set v{number} up")
        self.sh(f"ip addr add {self.address}/24 dev e0")
        self.sh("ip link set e0 up")
        self.sh("ip link set lo up")
        self.sh(f"ip route add default via 10.99.{number}.1")

    def sh(self, command: str) -> None:
        sh(f"nsenter --target {self.pid} --net {command}")

    def micro(self, *words: str, **environment: str) -> Node:
        return Node(["nsenter", "--target", str(self.pid), "--net", *MICRO, *words], environment)

    def end(self) -> None:
        self._holder.kill()
        self._holder.wait()


class Node:
    """A process, and when it said what."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("MICRO_")}
        self.child = subprocess.Popen(
            command,
            env={**clean, "PYTHONUNBUFFERED": "1", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.said: list[tuple[float, str]] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.child.stdout is not None
        for line in self.child.stdout:
            self.said.append((time.monotonic(), line.rstrip()))

    def when(self, words: str) -> tuple[float, str]:
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            for when, line in list(self.said):
                if words in line:
                    return when, line
            time.sleep(0.005)
        raise SystemExit(f"nobody said {words!r}:\n" + "\n".join(line for _, line in self.said))

    def end(self) -> None:
        self.child.terminate()
        try:
            self.child.wait(10)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()


def main() -> None:
    state = Path(sys.argv[1])
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    sh("ip link set lo up")
    machines = [Machine(1), Machine(2)]
    nodes: list[Node] = []
    try:
        # What a firewall does: forwarded UDP disappears, TCP passes.
        sh("ip rule add pref 10 ipproto udp table 100")
        sh("ip route add blackhole default table 100")
        far, near = machines
        common = {"MICRO_PLUGINS": "quic,tls", "MICRO_TOKEN": "a token of this test", "MICRO_LOG": "warning"}
        nodes.append(
            far.micro("run", MICRO_SITE="far", MICRO_LISTEN=":8085", MICRO_STATE_DIR=str(state / "far"), **common)
        )
        nodes[0].when("ready")
        own = {"MICRO_SITE": "near", "MICRO_STATE_DIR": str(state / "near"), **common}
        nodes.append(near.micro("run", MICRO_LISTEN="none", MICRO_NODES=f"{far.address}:8085", **own))
        ready_at, _ = nodes[1].when("ready")
        linked_at, linked = nodes[1].when("linked to")
        shown = connections(near, own)
        sh("ip rule del pref 10")
        opened_at = time.monotonic()
        moved_at, moved = nodes[1].when("moved to quic")
        after = connections(near, own)
        report: dict[str, Any] = {
            "linked_s": linked_at - ready_at,
            "linked": linked,
            "connections": shown,
            "moved_s": moved_at - opened_at,
            "moved": moved,
            "connections_after": after,
            "said": [line for _, line in nodes[1].said],
        }
        sys.stdout.write(json.dumps(report) + "\n")
    finally:
        for node in nodes:
            node.end()
        for machine in machines:
            machine.end()


def connections(machine: Machine, environment: dict[str, str]) -> Any:
    node = machine.micro("network", "connections", "--json", **environment)
    node.child.wait(PATIENCE_S)
    end = time.monotonic() + 5
    while not node.said and time.monotonic() < end:
        time.sleep(0.01)
    return json.loads("".join(line for _, line in node.said))["connections"]


if __name__ == "__main__":
    main()
