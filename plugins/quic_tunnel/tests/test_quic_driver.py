"""Tests of dialling, listening and closing."""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from micro_quic_tunnel import create
from micro_quic_tunnel.certificate import binding_of, make_certificate
from micro_quic_tunnel.driver import QuicTunnel
from micro_quic_tunnel.options import QuicOptions

from micro_core.contract import (
    Closed,
    Conflict,
    CountersInMemory,
    DriverContext,
    Ended,
    Link,
    MicroError,
    OptionError,
    Unreachable,
)

TIMEOUT_S = 15.0


class SystemTime:
    def now(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time()


def driver(**options: Any) -> QuicTunnel:
    context = DriverContext(
        node_id="test",
        network="go.micro",
        site="test",
        state_dir="",
        clock=SystemTime(),
        random=random.Random(1),
        logger=logging.getLogger("test"),
        counters=CountersInMemory(),
    )
    created = create(QuicOptions(**options), context)
    assert isinstance(created, QuicTunnel)
    return created


class Reader:
    def __init__(self, link: Link) -> None:
        self.link = link
        self.received = bytearray()
        self.arrived = asyncio.Event()
        self.lost: asyncio.Future[MicroError] = asyncio.get_running_loop().create_future()
        link.start(self)

    def data_received(self, lane: int, data: bytes) -> None:
        self.received += data
        self.arrived.set()

    def lane_writable(self, lane: int) -> None:
        """Ignored: these tests write little data."""

    def link_lost(self, error: MicroError) -> None:
        self.lost.set_result(error)

    async def receives_from(self, other: Reader) -> None:
        """Check that data from the other end arrives."""
        other.link.write(1, b"hello")
        await asyncio.wait_for(self.arrived.wait(), TIMEOUT_S)


class Site:
    """A driver that dials (`here`) and one that listens (`there`)."""

    def __init__(self) -> None:
        self.here, self.there = driver(), driver()
        self.accepted: asyncio.Queue[Link] = asyncio.Queue()

    async def dial(self, address: str) -> tuple[Reader, Reader]:
        near = Reader(await self.here.dial(address, timeout_s=5.0))
        return near, Reader(await asyncio.wait_for(self.accepted.get(), TIMEOUT_S))


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    site = Site()
    yield site
    await site.here.close()
    await site.there.close()


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_closed_port_is_reported_immediately() -> None:
    here = driver()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    started = time.monotonic()
    with pytest.raises(Unreachable, match="no process listens"):
        await here.dial(f"127.0.0.1:{port}", timeout_s=TIMEOUT_S)
    assert time.monotonic() - started < TIMEOUT_S / 3
    assert not here._endpoints


async def test_each_address_of_a_host_name_is_dialled(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    listener = await site.there.listen("127.0.0.1:0", site.accepted.put_nowait)
    port = port_of(listener.address)

    async def resolved(*_: Any, **__: Any) -> list[Any]:
        # The first address has a closed port, the second does not answer, the third is the listener.
        return [
            (socket.AF_INET, 2, 17, "", address)
            for address in (closed_address, silent.getsockname(), ("127.0.0.1", port))
        ]

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as closed:
            closed.bind(("127.0.0.1", 0))
            closed_address = closed.getsockname()
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolved)
        link = await site.here.dial("the.node:8085", timeout_s=2.0)
    assert link.remote == f"quic://127.0.0.1:{port}"


async def test_unknown_host_name_is_unreachable(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    async def unknown(*_: Any, **__: Any) -> list[Any]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", unknown)
    with pytest.raises(Unreachable, match="not known"):
        await site.here.dial("nowhere.invalid:1", timeout_s=1.0)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.1.1", "[::1]"])
async def test_wildcard_listener_answers_from_the_dialled_address(site: Site, host: str) -> None:
    if host == "[::1]" and not socket.has_dualstack_ipv6():
        pytest.skip("needs IPv6")
    listener = await site.there.listen(":0", site.accepted.put_nowait)
    near, far = await site.dial(f"{host}:{port_of(listener.address)}")
    await near.receives_from(far)
    await far.receives_from(near)
    assert "::ffff" not in far.link.remote
    assert far.link.remote == near.link.local


async def test_wildcard_listener_occupies_its_port_on_all_addresses(site: Site) -> None:
    listener = await site.there.listen(":0", site.accepted.put_nowait)
    with pytest.raises(Conflict):
        await site.there.listen(f"127.0.0.1:{port_of(listener.address)}", site.accepted.put_nowait)


async def test_closed_listener_accepts_no_links_and_keeps_established_ones(site: Site) -> None:
    listener = await site.there.listen("127.0.0.1:0", site.accepted.put_nowait)
    near, far = await site.dial(listener.address)
    await listener.close()
    with pytest.raises(Unreachable):
        await site.here.dial(listener.address, timeout_s=0.3)
    await far.receives_from(near)
    await near.link.close()
    assert isinstance(await asyncio.wait_for(far.lost, TIMEOUT_S), Ended)
    # The port is free when the last link is closed.
    await (await site.there.listen(listener.address, site.accepted.put_nowait)).close()


async def test_closed_driver_leaves_no_socket_task_or_link() -> None:
    before = open_files()
    site = Site()
    listener = await site.there.listen("127.0.0.1:0", site.accepted.put_nowait)
    pairs = [await site.dial(listener.address) for _ in range(3)]
    await site.here.close()
    await site.there.close()
    for near, far in pairs:
        assert isinstance(await asyncio.wait_for(near.lost, TIMEOUT_S), Closed)
        assert isinstance(await asyncio.wait_for(far.lost, TIMEOUT_S), Closed | Ended)
        near.link.write(0, b"ignored")
    assert not site.here._endpoints
    assert not site.there._endpoints
    assert open_files() == before
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_cancelled_dial_leaves_no_socket() -> None:
    before = open_files()
    here = driver()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        silent.setblocking(False)
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        dialling = asyncio.ensure_future(here.dial(address, timeout_s=TIMEOUT_S))
        await asyncio.wait_for(asyncio.get_running_loop().sock_recv(silent, 65_535), TIMEOUT_S)
        dialling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await dialling
    assert open_files() == before


async def test_dial_in_progress_ends_with_its_driver() -> None:
    here = driver()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        silent.setblocking(False)
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        dialling = asyncio.ensure_future(here.dial(address, timeout_s=TIMEOUT_S))
        await asyncio.wait_for(asyncio.get_running_loop().sock_recv(silent, 65_535), TIMEOUT_S)
        started = time.monotonic()
        await here.close()
        with pytest.raises(Unreachable):
            await dialling
        assert time.monotonic() - started < TIMEOUT_S / 3


async def test_link_reports_its_round_trip_time(site: Site) -> None:
    listener = await site.there.listen("127.0.0.1:0", site.accepted.put_nowait)
    near, far = await site.dial(listener.address)
    await far.receives_from(near)
    rtt_s = near.link.transport_rtt_s()
    assert rtt_s is not None
    assert 0 < rtt_s < TIMEOUT_S


async def test_certificate_files_are_used(tmp_path: Path, site: Site) -> None:
    certificate, key = make_certificate()
    paths = tmp_path / "certificate.pem", tmp_path / "key.pem"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    paths[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
    there = driver(certificate_file=str(paths[0]), key_file=str(paths[1]))
    listener = await there.listen("127.0.0.1:0", site.accepted.put_nowait)
    near, far = await site.dial(listener.address)
    assert near.link.channel_binding == far.link.channel_binding == binding_of(certificate)
    await there.close()


async def test_unusable_certificate_is_rejected_with_the_option_name(tmp_path: Path) -> None:
    (certificate, _), (_, key) = make_certificate(), make_certificate()
    paths = tmp_path / "certificate.pem", tmp_path / "key.pem"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(b"not a key")
    there = driver(certificate_file=str(paths[0]), key_file=str(paths[1]))
    with pytest.raises(OptionError, match="key_file"):
        await there.listen("127.0.0.1:0", lambda _: None)
    plain = serialization.NoEncryption()
    paths[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
    with pytest.raises(OptionError, match="does not belong"):
        await there.listen("127.0.0.1:0", lambda _: None)
    with pytest.raises(OptionError, match="certificate_file"):
        await driver(certificate_file="/nowhere", key_file="/nowhere").listen("127.0.0.1:0", lambda _: None)
    assert not there._endpoints


@pytest.mark.parametrize(
    "options",
    [{"max_datagram_bytes": 16_384}, {"ack_delay_s": 0.03}, {"idle_timeout_s": 0.0}, {"certificate_file": "alone"}],
)
def test_invalid_values_are_rejected_with_the_option_name(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=next(iter(options))):
        driver(**options)
