"""The relay as a process, between network namespaces. Needs root."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

pytest.importorskip("fcntl")
dns_message = pytest.importorskip("dns.message")
dns_rdatatype = pytest.importorskip("dns.rdatatype")

from benchmarks.wan import layout  # noqa: E402 - the modules need `fcntl`
from benchmarks.wan.namespaces import skip_reason  # noqa: E402
from benchmarks.wan.relay_process import RelayProcess  # noqa: E402

PORT = 5_000
TIMEOUT_S = 10.0

REASON = skip_reason()
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON)


class Sockets:
    """A UDP socket in each of two clouds."""

    def __init__(self, relay: RelayProcess) -> None:
        self.opened = {cloud: relay.namespaces[cloud].open_udp(f"10.{cloud}.0.1", PORT) for cloud in (1, 2)}

    async def pass_on(self, payload: bytes, source: int = 1, target: int = 2, timeout_s: float = TIMEOUT_S) -> float:
        """Send `payload` and return the seconds until it arrives. Raises TimeoutError."""
        loop, started = asyncio.get_running_loop(), time.monotonic()
        self.opened[source].sendto(payload, (f"10.{target}.0.1", PORT))
        async with asyncio.timeout(timeout_s):
            while await loop.sock_recv(self.opened[target], 65_536) != payload:
                pass
        return time.monotonic() - started

    async def is_lost(self, payload: bytes, marker: bytes = b"marker") -> bool:
        """Send `payload` from 2 to 1 and then `marker`; packets of a path keep their order."""
        loop = asyncio.get_running_loop()
        for content in (payload, marker):
            self.opened[2].sendto(content, ("10.1.0.1", PORT))
        async with asyncio.timeout(TIMEOUT_S):
            first = await loop.sock_recv(self.opened[1], 65_536)
            if first == payload:
                await loop.sock_recv(self.opened[1], 65_536)
        return first == marker


@pytest.fixture
async def relay(tmp_path: Path) -> AsyncIterator[RelayProcess]:
    started = RelayProcess(tmp_path / "relay.log")
    try:
        started.start()
        yield started
    finally:
        started.close()


@pytest.fixture
async def sockets(relay: RelayProcess) -> AsyncIterator[Sockets]:
    found = Sockets(relay)
    yield found
    for opened in found.opened.values():
        opened.close()


async def test_packets_arrive_with_the_delay_of_their_direction(relay: RelayProcess, sockets: Sockets) -> None:
    await sockets.pass_on(b"warm")
    await relay.change([(1, 2)], delay_s=0.1)
    assert await sockets.pass_on(b"out") >= 0.1
    await relay.change([(2, 1)], delay_s=0.3)
    assert await sockets.pass_on(b"back", 2, 1) >= 0.3
    stats = await relay.stats()
    assert stats["paths"]["1-2"]["packets"] == 2
    assert stats["paths"]["2-1"]["packets"] == 1


async def test_cut_direction_loses_packets_and_the_other_one_does_not(relay: RelayProcess, sockets: Sockets) -> None:
    await relay.change([(1, 2)], is_cut=True)
    await sockets.pass_on(b"back", 2, 1)
    with pytest.raises(TimeoutError):
        await sockets.pass_on(b"out", timeout_s=0.2)
    await relay.change([(1, 2)], is_cut=False)
    await sockets.pass_on(b"again")


async def test_large_packets_vanish_with_or_without_an_icmp_message(relay: RelayProcess, sockets: Sockets) -> None:
    await relay.change([(2, 1)], mtu=1_000)
    assert await sockets.is_lost(b"x" * 1_200)
    assert not await sockets.is_lost(b"x" * 900)
    # The ICMP message arrives before the marker, so the kernel knows the MTU for the next packet and fragments it.
    await relay.change([(2, 1)], has_icmp=True)
    assert await sockets.is_lost(b"x" * 1_200)
    assert not await sockets.is_lost(b"y" * 1_200)


async def test_dns_answers_with_all_nodes(relay: RelayProcess) -> None:
    loop = asyncio.get_running_loop()
    with relay.namespaces[3].entered():
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        client.connect(("127.0.0.1", 53))
    client.setblocking(False)

    async def ask(name: str, kind: str) -> list[str]:
        query = dns_message.make_query(name, kind, use_edns=True, payload=4_096)
        await loop.sock_sendall(client, query.to_wire())
        async with asyncio.timeout(TIMEOUT_S):
            response = dns_message.from_wire(await loop.sock_recv(client, 65_536))
        return [record.to_text() for rrset in response.answer for record in rrset]

    with client:
        targets = await ask(f"_micro._udp.{layout.NETWORK}", "SRV")
        assert sorted(target.split()[3] for target in targets) == [f"{node.name}.wan.test." for node in layout.NODES]
        assert await ask("c4-2.wan.test", "A") == ["10.4.0.2"]
        assert await ask("c4-2.wan.test", "AAAA") == []
        assert await ask("other.wan.test", "A") == []


async def test_namespaces_and_process_end_with_close(tmp_path: Path) -> None:
    relay = RelayProcess(tmp_path / "relay.log")
    relay.start()
    child = relay._child
    assert child is not None
    relay.close()
    assert child.poll() is not None
    assert not relay.namespaces
