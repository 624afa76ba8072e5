"""The relay process: moves packets between the TUN devices of the clouds and answers DNS queries of the nodes.

    python -m benchmarks.wan.relay PLAN

PLAN is JSON: the file descriptors of the TUN devices and DNS sockets by number of the cloud, that of the control socket, and
the records of the DNS. Requests on the control socket are lines of JSON, `{"set": [[FROM, TO, CONDITIONS], ...]}` or
`{"stats": true}`; each is answered with one line. The process ends when the control socket is closed.

The address of a node is 10.CLOUD.0.NODE, so the second byte of a destination is its cloud.
"""

from __future__ import annotations

import contextlib
import heapq
import json
import os
import random
import select
import socket
import sys
import time
from dataclasses import asdict
from typing import Any

from benchmarks.wan.dns_responder import answer
from benchmarks.wan.paths import MIN_HEADER_BYTES, Conditions, Path, fragmentation_needed

MAX_PACKET_BYTES = 65_536
MAX_READS = 64
"""Packets read from one device before the others are served."""

MAX_QUEUED = 100_000
"""Packets under way; further ones are dropped."""

PRIORITY = -15
"""The relay stands for the wires, so it runs before the processes that share the cores."""


class Relay:
    """Forwards packets by destination. `tuns` are the descriptors of the devices by number of the cloud."""

    def __init__(self, tuns: dict[int, int], seed: int = 1) -> None:
        self._tuns = tuns
        draw = random.Random(seed).random
        self._paths = {(a, b): Path(Conditions(), draw) for a in tuns for b in tuns if a != b}
        self._queue: list[tuple[float, int, int, bytes]] = []
        self._number = 0
        self._packets = self._unroutable = self._overflows = self._write_failures = 0
        self._max_late_s = 0.0
        self._started = time.monotonic()

    def handle(self, request: dict[str, Any]) -> dict[str, Any]:
        """Carry out a request of the control socket and return the answer."""
        for source, target, changes in request.get("set", ()):
            path = self._paths[source, target]
            path.change(Conditions(**{**asdict(path.conditions), **changes}))
        return self._stats() if request.get("stats") else {"at": time.monotonic()}

    def _stats(self) -> dict[str, Any]:
        used = os.times()
        cpu_s = used.user + used.system
        report = {
            "packets": self._packets,
            "cpu_s": round(cpu_s, 3),
            "cpu_us_per_packet": round(cpu_s * 1e6 / max(1, self._packets), 1),
            "max_late_ms": round(self._max_late_s * 1e3, 1),
            "unroutable": self._unroutable,
            "overflows": self._overflows,
            "write_failures": self._write_failures,
            "paths": {f"{a}-{b}": dict(path.counts) for (a, b), path in self._paths.items()},
        }
        self._max_late_s = 0.0
        return report

    def receive(self, cloud: int) -> None:
        """Read packets from the device of `cloud` and schedule their arrival."""
        read, fd, now = os.read, self._tuns[cloud], time.monotonic()
        for _ in range(MAX_READS):
            try:
                packet = read(fd, MAX_PACKET_BYTES)
            except BlockingIOError:
                return
            if len(packet) < MIN_HEADER_BYTES or packet[0] >> 4 != 4:
                continue
            self._packets += 1
            path = self._paths.get((cloud, packet[17]))
            if path is None or packet[16] != 10:
                self._unroutable += 1
                continue
            size = len(packet)
            if path.is_too_large(size):
                if path.conditions.has_icmp:
                    self._write(fd, fragmentation_needed(packet, path.conditions.mtu))
                continue
            due = path.due(size, now)
            if due is None:
                continue
            if len(self._queue) >= MAX_QUEUED:
                self._overflows += 1
                continue
            self._number += 1
            heapq.heappush(self._queue, (due, self._number, self._tuns[packet[17]], packet))

    def deliver(self) -> float | None:
        """Write the packets that are due. Return the seconds until the next one, or None if there is none."""
        queue = self._queue
        while queue:
            wait_s = queue[0][0] - time.monotonic()
            if wait_s > 0:
                return wait_s
            self._max_late_s = max(self._max_late_s, -wait_s)
            _, _, fd, packet = heapq.heappop(queue)
            self._write(fd, packet)
        return None

    def _write(self, fd: int, packet: bytes) -> None:
        try:
            os.write(fd, packet)
        except OSError:
            # The device is down or its queue is full: the packet is lost, as on a wire.
            self._write_failures += 1


def answer_queries(sock: socket.socket, records: dict[str, Any]) -> None:
    """Answer the DNS queries that wait on `sock`."""
    for _ in range(MAX_READS):
        try:
            query, sender = sock.recvfrom(4_096)
        except BlockingIOError:
            return
        response = answer(query, **records)
        if response is not None:
            with contextlib.suppress(OSError):
                sock.sendto(response, sender)


def main() -> None:
    """Run until the control socket is closed."""
    plan = json.loads(sys.argv[1])
    with contextlib.suppress(OSError):
        os.nice(PRIORITY)
    tuns = {int(cloud): fd for cloud, fd in plan["tuns"].items()}
    relay = Relay(tuns)
    clouds = {fd: cloud for cloud, fd in tuns.items()}
    resolvers = {fd: socket.socket(fileno=fd) for fd in plan["dns"]}
    control = socket.socket(fileno=plan["control"])
    reader = control.makefile("rb")
    watched = [*clouds, *resolvers, control.fileno()]
    while True:
        # `select` sleeps with the precision of microseconds, `epoll` with that of milliseconds.
        ready, _, _ = select.select(watched, [], [], relay.deliver())
        for fd in ready:
            if fd in clouds:
                relay.receive(clouds[fd])
            elif fd in resolvers:
                answer_queries(resolvers[fd], plan["records"])
            else:
                # The harness writes a whole line at a time and waits for the answer.
                line = reader.readline()
                if not line:
                    return
                control.sendall(json.dumps(relay.handle(json.loads(line))).encode() + b"\n")


if __name__ == "__main__":
    main()
