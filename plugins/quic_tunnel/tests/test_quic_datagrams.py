"""The UDP socket in the event loop."""

from __future__ import annotations

import asyncio
import socket

import pytest
from micro_quic_tunnel.datagrams import MAX_UNSENT, Datagram, DatagramSocket, open_connected, route_datagram_bytes

from micro_core.contract import CountersInMemory

PATIENCE_S = 10.0


async def test_what_the_kernel_does_not_take_waits_in_order_and_beyond_the_bound_is_counted() -> None:
    # A socket pair, because over loopback the kernel's buffer for UDP never fills.
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    counters = CountersInMemory()
    with theirs:
        sending = DatagramSocket(ours, buffer_bytes=4096, counters=counters, received=lambda _: None, peer="them")
        total = 0
        while counters.values.get("quic_datagrams_unsent", 0) < 3:
            sending.send(total.to_bytes(4, "big"), "them")
            total += 1
        theirs.setblocking(False)
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(PATIENCE_S):
            got = [int.from_bytes(await loop.sock_recv(theirs, 100), "big") for _ in range(total - 3)]
        assert got == list(range(total - 3))
        assert total - 3 >= MAX_UNSENT
        sending.close()
        sending.close()
        sending.send(b"after the end", "them")


async def test_datagrams_that_came_together_are_handed_over_together() -> None:
    batches: asyncio.Queue[list[Datagram]] = asyncio.Queue()
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    reading = DatagramSocket(sock, buffer_bytes=65_536, counters=CountersInMemory(), received=batches.put_nowait)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for number in range(10):
            sender.sendto(bytes([number]), reading.address)
        batch = await asyncio.wait_for(batches.get(), PATIENCE_S)
        assert [data for data, _, _ in batch] == [bytes([number]) for number in range(10)]
        assert {address for _, address, _ in batch} == {("127.0.0.1", sender.getsockname()[1])}
    reading.close()


async def test_a_refusal_by_the_other_host_is_told() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = nobody.getsockname()
    refused = asyncio.Event()
    sending = DatagramSocket(
        open_connected(socket.AF_INET, address),
        buffer_bytes=65_536,
        counters=CountersInMemory(),
        received=lambda _: None,
        refused=refused.set,
        peer=address,
    )
    sending.send(b"anybody?", address)
    await asyncio.wait_for(refused.wait(), PATIENCE_S)
    sending.close()


def test_the_route_s_size_is_its_mtu_without_headers() -> None:
    assert route_datagram_bytes(socket.AF_INET, ("127.0.0.1", 9)) > 1_472
    assert route_datagram_bytes(socket.AF_INET, ("not an address", 9)) == 1_280 - 28


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="needs IPv6")
def test_the_route_s_size_is_known_for_ipv6_too() -> None:
    assert route_datagram_bytes(socket.AF_INET6, ("::1", 9)) > 1_452
