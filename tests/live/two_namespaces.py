"""Two nodes in separate network namespaces, with a router between them that first drops UDP and then forwards it.

Started by test_fallback_live.py as `unshare --user --map-root-user --net python two_namespaces.py STATE`. Prints one line of
JSON. Needs no privileges except user namespaces.
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
TIMEOUT_S = 40.0


def run(command: str) -> None:
    subprocess.run(command.split(), check=True, capture_output=True)


class Machine:
    """A network namespace with one link to the router. The router is the namespace of this process."""

    def __init__(self, number: int) -> None:
        self.address = f"10.99.{number}.2"
        self._holder = subprocess.Popen(["unshare", "--net", "sleep", "300"])
        # Wait until `unshare` has created the namespace.
        own = Path("/proc/self/ns/net").readlink()
        end = time.monotonic() + TIMEOUT_S
        while Path(f"/proc/{self._holder.pid}/ns/net").readlink() == own and time.monotonic() < end:
            time.sleep(0.01)
        self.pid = self._holder.pid
        run(f"ip link add v{number} type veth peer name e0 netns {self.pid}")
        run(f"ip addr add 10.99.{number}.1/24 dev v{number}")
        run(f"ip link set v{number} up")
        self.run(f"ip addr add {self.address}/24 dev e0")
        self.run("ip link set e0 up")
        self.run("ip link set lo up")
        self.run(f"ip route add default via 10.99.{number}.1")

    def run(self, command: str) -> None:
        run(f"nsenter --target {self.pid} --net {command}")

    def micro(self, *arguments: str, **environment: str) -> Node:
        return Node(["nsenter", "--target", str(self.pid), "--net", *MICRO, *arguments], environment)

    def close(self) -> None:
        self._holder.kill()
        self._holder.wait()


class Node:
    """A process and its output. `lines` contains the time of each printed line and the line."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("MICRO_")}
        self.child = subprocess.Popen(
            command,
            env={**clean, "PYTHONUNBUFFERED": "1", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[tuple[float, str]] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.child.stdout is not None
        for line in self.child.stdout:
            self.lines.append((time.monotonic(), line.rstrip()))

    def wait_for(self, text: str) -> tuple[float, str]:
        """Wait for a line that contains `text`, and return its time and the line."""
        end = time.monotonic() + TIMEOUT_S
        while time.monotonic() < end:
            for printed_at, line in list(self.lines):
                if text in line:
                    return printed_at, line
            time.sleep(0.005)
        raise SystemExit(f"no process printed {text!r}:\n" + "\n".join(line for _, line in self.lines))

    def close(self) -> None:
        self.child.terminate()
        try:
            self.child.wait(10)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()


def main() -> None:
    state = Path(sys.argv[1])
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    run("ip link set lo up")
    machines = [Machine(1), Machine(2)]
    nodes: list[Node] = []
    try:
        # Like a firewall, drop forwarded UDP packets and forward TCP.
        run("ip rule add pref 10 ipproto udp table 100")
        run("ip route add blackhole default table 100")
        far, near = machines
        common = {"MICRO_PLUGINS": "quic,tls", "MICRO_TOKEN": "a token of this test", "MICRO_LOG": "warning"}
        nodes.append(
            far.micro("run", MICRO_SITE="far", MICRO_LISTEN=":8085", MICRO_STATE_DIR=str(state / "far"), **common)
        )
        nodes[0].wait_for("ready")
        own = {"MICRO_SITE": "near", "MICRO_STATE_DIR": str(state / "near"), **common}
        nodes.append(near.micro("run", MICRO_LISTEN="none", MICRO_NODES=f"{far.address}:8085", **own))
        ready_at, _ = nodes[1].wait_for("ready")
        linked_at, linked = nodes[1].wait_for("linked to")
        shown = connections(near, own)
        run("ip rule del pref 10")
        opened_at = time.monotonic()
        moved_at, moved = nodes[1].wait_for("moved to quic")
        after = connections(near, own)
        report: dict[str, Any] = {
            "linked_s": linked_at - ready_at,
            "linked": linked,
            "connections": shown,
            "moved_s": moved_at - opened_at,
            "moved": moved,
            "connections_after": after,
            "output": [line for _, line in nodes[1].lines],
        }
        sys.stdout.write(json.dumps(report) + "\n")
    finally:
        for node in nodes:
            node.close()
        for machine in machines:
            machine.close()


def connections(machine: Machine, environment: dict[str, str]) -> Any:
    node = machine.micro("network", "connections", "--json", **environment)
    node.child.wait(TIMEOUT_S)
    end = time.monotonic() + 5
    while not node.lines and time.monotonic() < end:
        time.sleep(0.01)
    return json.loads("".join(line for _, line in node.lines))["connections"]


if __name__ == "__main__":
    main()
