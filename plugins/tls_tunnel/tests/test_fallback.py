"""Tests of the fallback from QUIC to TLS and back, with two tunnels over sockets and a relay that blocks UDP."""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from micro_quic_tunnel import create as create_quic
from micro_quic_tunnel.options import QuicOptions
from micro_tls_tunnel import create as create_tls
from micro_tls_tunnel.options import TlsOptions

from micro_core.contract import CountersInMemory, DriverContext, LinkDown, LinkEvent, LinkMoved, MicroError, Session
from micro_core.contract.names import split_host_port
from micro_core.lifecycle.environment import Environment
from micro_core.lifecycle.system_clock import SystemClock
from micro_core.tunnel.identity import NodeIdentity
from micro_core.tunnel.path_selection import PathOptions
from micro_core.tunnel.tunnel import TunnelHost, TunnelOptions

TIMEOUT_S = 30.0


class UdpGate:
    """A UDP port that drops all datagrams while it is closed and relays them to `target` while it is open."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.target = target
        self.is_open = False
        self.dropped = 0
        self._loop = asyncio.get_running_loop()
        self._front = self._socket()
        self._loop.add_reader(self._front, self._from_dialler)
        self._back: dict[Any, socket.socket] = {}
        self.address = f"127.0.0.1:{self._front.getsockname()[1]}"

    def _socket(self) -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
        return sock

    def _from_dialler(self) -> None:
        data, dialler = self._front.recvfrom(65_535)
        if not self.is_open:
            self.dropped += 1
            return
        if dialler not in self._back:
            back = self._back[dialler] = self._socket()
            self._loop.add_reader(back, self._to_dialler, back, dialler)
        self._back[dialler].sendto(data, self.target)

    def _to_dialler(self, back: socket.socket, dialler: Any) -> None:
        data = back.recv(65_535)
        if self.is_open:
            self._front.sendto(data, dialler)

    def close(self) -> None:
        for sock in (self._front, *self._back.values()):
            self._loop.remove_reader(sock)
            sock.close()


class Echo:
    """Sends received data back."""

    def __init__(self, session: Session) -> None:
        self.session = session
        session.start(self)

    def data_received(self, data: bytes) -> None:
        self.session.write(data)

    def pause_writing(self) -> None: ...

    def resume_writing(self) -> None: ...

    def socket_lost(self, error: MicroError) -> None: ...


class Caller:
    """Records received data."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.received = bytearray()
        self.error: MicroError | None = None
        session.start(self)

    def data_received(self, data: bytes) -> None:
        self.received += data

    def pause_writing(self) -> None: ...

    def resume_writing(self) -> None: ...

    def socket_lost(self, error: MicroError) -> None:
        self.error = error


class Site:
    """The tunnel of a node with both drivers."""

    def __init__(self, name: str, listen: str | None) -> None:
        self.counters = CountersInMemory()
        source = random.Random(name)
        context = DriverContext(
            node_id=name,
            network="go.micro",
            site=name,
            state_dir="",
            clock=SystemClock(),
            random=source,
            logger=logging.getLogger("test"),
            counters=self.counters,
        )
        self.tunnel = TunnelHost(
            identity=NodeIdentity.from_private_bytes(name.encode().ljust(32, b"\0")),
            name=name,
            site=name,
            network="go.micro",
            token="secret",
            listeners=[
                (create_quic(QuicOptions(), context), listen),
                (create_tls(TlsOptions(), context), listen),
            ],
            environment=Environment.from_context(context),
            incarnation=1,
            options=TunnelOptions(paths=PathOptions(probe_initial_s=0.5, probe_max_s=2.0)),
        )
        self.moved: list[str] = []
        self.lost: list[MicroError] = []
        self.tunnel.set_event_handler(self._link_changed)

    def _link_changed(self, event: LinkEvent) -> None:
        if isinstance(event, LinkMoved):
            self.moved.append(event.link.driver)
        elif isinstance(event, LinkDown):
            self.lost.append(event.error)

    @property
    def drivers(self) -> list[str]:
        return [link.driver for link in self.tunnel.links()]

    async def links_over(self, driver: str) -> float:
        """Wait until the only link uses this driver, and return how many seconds that took."""
        return await until(lambda: self.drivers == [driver])


async def until(condition: Callable[[], bool]) -> float:
    began = time.monotonic()
    async with asyncio.timeout(TIMEOUT_S):
        while not condition():
            await asyncio.sleep(0.002)
    return time.monotonic() - began


@pytest.fixture
async def sites() -> AsyncIterator[tuple[Site, Site]]:
    """Return a site that dials and a site that listens."""
    near, far = Site("near", None), Site("far", "127.0.0.1:0")
    await near.tunnel.connect()
    await far.tunnel.connect()
    echoes: list[Echo] = []
    far.tunnel.listen("echo", lambda session: echoes.append(Echo(session)))
    yield near, far
    await near.tunnel.close()
    await far.tunnel.close()


@pytest.fixture
async def gate(sites: tuple[Site, Site]) -> AsyncIterator[UdpGate]:
    quic, _ = sites[1].tunnel.address()
    gate = UdpGate(split_host_port(quic.removeprefix("quic://")))
    yield gate
    gate.close()


async def test_ephemeral_port_is_shared_by_both_drivers(sites: tuple[Site, Site]) -> None:
    quic, tls = sites[1].tunnel.address()
    assert quic.removeprefix("quic") == tls.removeprefix("tls")


async def test_working_quic_is_used_and_tls_is_not_dialled(sites: tuple[Site, Site]) -> None:
    near, far = sites
    near.tunnel.keep_linked(far.tunnel.address()[0].removeprefix("quic://"))
    await near.links_over("quic")
    await far.links_over("quic")
    assert near.tunnel.links()[0].why == "first choice"
    assert near.tunnel.links()[0].generation == 1


async def test_blocked_udp_falls_back_to_tls_within_a_second_and_returns_to_quic(
    sites: tuple[Site, Site], gate: UdpGate
) -> None:
    near, far = sites
    near.tunnel.keep_linked(f"quic://{gate.address}|{far.tunnel.address()[1]}")
    fell_back_s = await near.links_over("tls")
    # 0.4 s of attempt delay and two handshakes on loopback. The rest is a margin for a busy machine.
    assert 0.35 < fell_back_s < 1.0 + 2.0
    assert gate.dropped > 0
    assert near.tunnel.links()[0].why == "quic did not answer within 0.4 s"

    session = Caller(near.tunnel.dial("echo", peer=far.tunnel.node_id))
    session.session.write(b"before")
    await until(lambda: session.received == b"before")
    gate.is_open = True
    moved_back_s = await near.links_over("quic")
    # Shown by `pytest -rP`.
    sys.stdout.write(f"linked over TLS in {fell_back_s:.3f} s, back on QUIC in {moved_back_s:.3f} s\n")
    await far.links_over("quic")
    assert near.tunnel.links()[0].why == "quic answers again"
    # Both ends report that the link moved. The existing session continues, and a new one uses the new link.
    assert near.lost == far.lost == []
    await until(lambda: near.moved == far.moved == ["quic"])
    session.session.write(b" and after")
    newer = Caller(near.tunnel.dial("echo", peer=far.tunnel.node_id))
    newer.session.write(b"new")
    await until(lambda: session.received == b"before and after" and newer.received == b"new")
    assert newer.session.local.startswith("quic://")
    assert near.counters.values["tunnel_paths_fallen_back"] == 1
    assert near.counters.values["tunnel_paths_restored"] == 1


async def test_refused_udp_port_causes_an_immediate_fallback(sites: tuple[Site, Site]) -> None:
    near, far = sites
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    near.tunnel.keep_linked(f"quic://127.0.0.1:{port}|{far.tunnel.address()[1]}")
    await near.links_over("tls")
    assert near.tunnel.links()[0].why.startswith("quic failed: ")


async def test_quic_outage_moves_the_link_to_tls(sites: tuple[Site, Site], gate: UdpGate) -> None:
    near, far = sites
    gate.is_open = True
    near.tunnel.keep_linked(f"quic://{gate.address}|{far.tunnel.address()[1]}")
    await near.links_over("quic")
    gate.is_open = False
    # Three missed keepalives, a pause before the redial, and 0.4 s of attempt delay.
    assert await near.links_over("tls") < 10.0
    await far.links_over("tls")
    session = Caller(near.tunnel.dial("echo", peer=far.tunnel.node_id))
    session.session.write(b"hello")
    await until(lambda: session.received == b"hello")


async def test_machine_in_the_middle_is_rejected_by_the_node_handshake(sites: tuple[Site, Site]) -> None:
    from micro_core.contract import Link, LinkReceiver, Unauthorized

    near, far = sites
    context = DriverContext(
        node_id="middle",
        network="go.micro",
        site="middle",
        state_dir="",
        clock=SystemClock(),
        random=random.Random(5),
        logger=logging.getLogger("test"),
        counters=CountersInMemory(),
    )
    middle = create_tls(TlsOptions(), context)

    class Relay(LinkReceiver):
        def __init__(self, other: Link) -> None:
            self.other = other

        def data_received(self, lane: int, data: bytes) -> None:
            self.other.write(lane, data)

        def lane_writable(self, lane: int) -> None: ...

        def link_lost(self, error: MicroError) -> None:
            closing.append(asyncio.ensure_future(self.other.close()))

    closing: list[Any] = []

    async def relay(inner: Link) -> None:
        outer = await middle.dial(far.tunnel.address()[1], timeout_s=5.0)
        inner.start(Relay(outer))
        outer.start(Relay(inner))

    listener = await middle.listen("127.0.0.1:0", lambda link: closing.append(asyncio.ensure_future(relay(link))))
    with pytest.raises(Unauthorized, match=r"signature is not valid for this link|refused the link"):
        await near.tunnel.link_to(listener.address, timeout_s=5.0)
    assert near.tunnel.links() == far.tunnel.links() == []
    await middle.close()
    await asyncio.gather(*closing, return_exceptions=True)
