# ruff: noqa: INP001, S311, S603, T201 - a script
"""Measure echoes over one lane between two processes: this driver with several datagram sizes, and plain aioquic.asyncio.

    python plugins/quic_tunnel/benchmarks/echo.py [--seconds 2] [--rounds 2]

Prints for each case the median round-trip time of single 64 B messages, echoes per second with 64 messages in flight
(64 B and 1 KiB), and the throughput in one direction. Only the ratios within one run are meaningful.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import random
import ssl
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.asyncio.server import serve
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import QuicEvent, StreamDataReceived
from micro_quic_tunnel import create
from micro_quic_tunnel.certificate import make_certificate
from micro_quic_tunnel.options import QuicOptions

from micro_core.contract import CountersInMemory, DriverContext, Link, MicroError

ECHO, SINK = 1, 3
"""The lane on which the server echoes every byte, and the lane on which it only counts the bytes."""

PLAIN = "plain aioquic.asyncio"
CASES: dict[str, dict[str, Any]] = {
    PLAIN: {},
    "quic, 1200 B": {"max_datagram_bytes": 1200},
    "quic, 1452 B": {"max_datagram_bytes": 1452},
    "quic, automatic": {},
}
BULK_CHUNK = bytes(64 * 1024)
BULK_BYTES = 32 * 1024 * 1024


class SystemTime:
    def now(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time()


class Pipe(Protocol):
    """The common interface of both kinds of connection."""

    received: Callable[[int, bytes], None]

    def write(self, lane: int, data: bytes) -> None: ...

    def buffered(self, lane: int) -> int: ...


class LinkPipe:
    """A link of this driver. Writes once per iteration of the event loop, like core."""

    def __init__(self, link: Link) -> None:
        self.received: Callable[[int, bytes], None] = lambda _lane, _data: None
        self.buffered = link.buffered_bytes
        self._link = link
        self._queued: list[tuple[int, bytes]] = []
        link.start(self)

    def write(self, lane: int, data: bytes) -> None:
        if not self._queued:
            asyncio.get_running_loop().call_soon(self._flush)
        self._queued.append((lane, data))

    def data_received(self, lane: int, data: bytes) -> None:
        self.received(lane, data)

    def _flush(self) -> None:
        queued, self._queued = self._queued, []
        for lane in {lane for lane, _ in queued}:
            self._link.write(lane, b"".join(data for of, data in queued if of == lane))

    def lane_writable(self, lane: int) -> None:
        """Do nothing: the bulk test polls the buffer."""

    def link_lost(self, error: MicroError) -> None:
        """Do nothing: the processes end after the measurement."""


class PlainPipe(QuicConnectionProtocol):
    """A connection of aioquic.asyncio."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.received: Callable[[int, bytes], None] = lambda _lane, _data: None
        self.serves = False

    def write(self, lane: int, data: bytes) -> None:
        self._quic.send_stream_data(4 * lane, data)
        self._transmit_soon()

    def buffered(self, lane: int) -> int:
        stream = self._quic._streams.get(4 * lane)
        return 0 if stream is None else stream.sender._buffer_stop - stream.sender.highest_offset

    def quic_event_received(self, event: QuicEvent) -> None:
        if isinstance(event, StreamDataReceived):
            if self.serves and self.received.__name__ == "<lambda>":
                answer(self)
            self.received(event.stream_id // 4, event.data)


def answer(pipe: Pipe) -> None:
    """Act as the server: echo the data of one lane, count the bytes of the other."""
    counted = 0

    def received(lane: int, data: bytes) -> None:
        nonlocal counted
        if lane == ECHO:
            pipe.write(ECHO, data)
        elif lane == SINK:
            counted += len(data)
            if counted >= BULK_BYTES:
                counted -= BULK_BYTES
                pipe.write(SINK, b"!")

    pipe.received = received


def make_driver(options: dict[str, Any]) -> Any:
    context = DriverContext(
        node_id="bench",
        network="go.micro",
        site="bench",
        state_dir="",
        clock=SystemTime(),
        random=random.Random(1),
        logger=logging.getLogger("bench"),
        counters=CountersInMemory(),
    )
    return create(QuicOptions(**options), context)


async def serve_case(case: str) -> None:
    if case == PLAIN:
        certificate, key = make_certificate()
        configuration = QuicConfiguration(is_client=False, alpn_protocols=["micro/1"])
        configuration.certificate, configuration.private_key = certificate, key

        def create_protocol(*args: Any, **kwargs: Any) -> PlainPipe:
            pipe = PlainPipe(*args, **kwargs)
            pipe.serves = True
            return pipe

        server = await serve("127.0.0.1", 0, configuration=configuration, create_protocol=create_protocol)
        transport: Any = server._transport
        print(transport.get_extra_info("sockname")[1], flush=True)
    else:
        listener = await make_driver(CASES[case]).listen("127.0.0.1:0", lambda link: answer(LinkPipe(link)))
        print(listener.address.rpartition(":")[2], flush=True)
    await asyncio.Event().wait()


async def one_at_a_time(pipe: Pipe, size: int, seconds: float) -> float:
    """Return the median round-trip time in µs."""
    payload, times = bytes(size), []
    arrived = asyncio.get_running_loop().create_future()
    received_bytes, sent_at, stop = 0, 0.0, time.perf_counter() + seconds

    def received(_lane: int, data: bytes) -> None:
        nonlocal received_bytes, sent_at
        received_bytes += len(data)
        if received_bytes < size:
            return
        received_bytes = 0
        now = time.perf_counter()
        times.append(now - sent_at)
        if now > stop:
            if not arrived.done():
                arrived.set_result(None)
            return
        sent_at = time.perf_counter()
        pipe.write(ECHO, payload)

    pipe.received = received
    sent_at = time.perf_counter()
    pipe.write(ECHO, payload)
    await arrived
    return statistics.median(times) * 1e6


async def many_in_flight(pipe: Pipe, size: int, seconds: float, in_flight: int = 64) -> float:
    """Return the number of echoes per second."""
    payload = bytes(size)
    received_bytes = count = 0
    outstanding = in_flight
    ended = asyncio.get_running_loop().create_future()
    started = time.perf_counter()
    stop = started + seconds

    def received(_lane: int, data: bytes) -> None:
        nonlocal received_bytes, count, outstanding
        received_bytes += len(data)
        done, received_bytes = divmod(received_bytes, size)
        count += done
        outstanding -= done
        if time.perf_counter() < stop:
            outstanding += done
            pipe.write(ECHO, payload * done)
        elif not outstanding and not ended.done():
            ended.set_result(None)

    pipe.received = received
    pipe.write(ECHO, payload * in_flight)
    await ended
    return count / (time.perf_counter() - started)


async def bulk(pipe: Pipe) -> float:
    """Return the throughput in one direction in MB/s."""
    ended = asyncio.get_running_loop().create_future()

    def received(_lane: int, _data: bytes) -> None:
        ended.set_result(None)

    pipe.received = received
    started, remaining = time.perf_counter(), BULK_BYTES
    while remaining:
        while remaining and pipe.buffered(SINK) < 4 * len(BULK_CHUNK):
            pipe.write(SINK, BULK_CHUNK)
            remaining -= len(BULK_CHUNK)
        await asyncio.sleep(0)
    await ended
    return BULK_BYTES / (time.perf_counter() - started) / 1e6


async def measure(pipe: Pipe, seconds: float) -> dict[str, float]:
    await many_in_flight(pipe, 64, 0.3)
    return {
        "p50 us": await one_at_a_time(pipe, 64, seconds),
        "64 B /s": await many_in_flight(pipe, 64, seconds),
        "1 KiB /s": await many_in_flight(pipe, 1024, seconds),
        "bulk MB/s": await bulk(pipe),
    }


async def call_case(case: str, port: int, seconds: float) -> dict[str, float]:
    if case == PLAIN:
        configuration = QuicConfiguration(is_client=True, alpn_protocols=["micro/1"], verify_mode=ssl.CERT_NONE)
        async with connect("127.0.0.1", port, configuration=configuration, create_protocol=PlainPipe) as pipe:
            assert isinstance(pipe, PlainPipe)
            for lane in range(4):
                pipe.write(lane, bytes([lane]))
            # Wait until the echo of the first byte has arrived.
            await asyncio.sleep(0.1)
            return await measure(pipe, seconds)
    driver = make_driver(CASES[case])
    link = await driver.dial(f"127.0.0.1:{port}", timeout_s=5.0)
    found = await measure(LinkPipe(link), seconds)
    await driver.close()
    return found


def run_case(case: str, seconds: float) -> dict[str, float]:
    command = [sys.executable, __file__, "--case", case, "--seconds", str(seconds)]
    with subprocess.Popen([*command, "--serve"], stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            port = server.stdout.readline().strip()
            done = subprocess.run(
                [*command, "--port", port], stdout=subprocess.PIPE, text=True, check=True, timeout=120
            )
        finally:
            server.kill()
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--case", default="")
    parser.add_argument("--serve", action="store_true")
    parser.add_argument("--port", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.serve:
        asyncio.run(serve_case(arguments.case))
    elif arguments.port:
        print(json.dumps(asyncio.run(call_case(arguments.case, arguments.port, arguments.seconds))))
    else:
        report([arguments.case] if arguments.case else list(CASES), arguments.rounds, arguments.seconds)


def report(cases: list[str], rounds: int, seconds: float) -> None:
    runs: dict[str, list[dict[str, float]]] = {case: [] for case in cases}
    for _ in range(rounds):
        for case in cases:
            runs[case].append(run_case(case, seconds))
    medians = {
        case: {key: statistics.median(run[key] for run in done) for key in done[0]} for case, done in runs.items()
    }
    keys = list(next(iter(medians.values())))
    print(f"{'':24}" + "".join(f"{key:>20}" for key in keys))
    for case, found in medians.items():
        cells = ""
        for key in keys:
            ratio = f"({found[key] / medians[PLAIN][key]:.2f}x)" if PLAIN in medians else ""
            cells += f"{found[key]:>11,.0f} {ratio:>8}"
        print(f"{case:24}{cells}")


if __name__ == "__main__":
    main()
