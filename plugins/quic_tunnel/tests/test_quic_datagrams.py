"""Tests of the UDP socket in the event loop."""

from __future__ import annotations

import asyncio
import socket

import pytest
from micro_quic_tunnel.datagrams import MAX_UNSENT, Datagram, DatagramSocket, open_connected, route_datagram_bytes

from micro_core.contract import CountersInMemory

TIMEOUT_S = 10.0


async def test_unsent_datagrams_are_queued_in_order_up_to_a_limit() -> None:
    # A socket pair, because the kernel's UDP buffer never fills up over loopback.
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
        async with asyncio.timeout(TIMEOUT_S):
            received = [int.from_bytes(await loop.sock_recv(theirs, 100), "big") for _ in range(total - 3)]
        assert received == list(range(total - 3))
        assert total - 3 >= MAX_UNSENT
        sending.close()
        sending.close()
        sending.send(b"after the end", "them")


async def test_simultaneous_datagrams_are_delivered_in_one_batch() -> None:
    batches: asyncio.Queue[list[Datagram]] = asyncio.Queue()
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    reading = DatagramSocket(sock, buffer_bytes=65_536, counters=CountersInMemory(), received=batches.put_nowait)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for number in range(10):
            sender.sendto(bytes([number]), reading.address)
        batch = await asyncio.wait_for(batches.get(), TIMEOUT_S)
        assert [data for data, _, _ in batch] == [bytes([number]) for number in range(10)]
        assert {address for _, address, _ in batch} == {("127.0.0.1", sender.getsockname()[1])}
    reading.close()


async def test_refusal_by_the_remote_host_is_reported() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as closed:
        closed.bind(("127.0.0.1", 0))
        address = closed.getsockname()
    refused = asyncio.Event()
    sending = DatagramSocket(
        open_connected(socket.AF_INET, address),
        buffer_bytes=65_536,
        counters=CountersInMemory(),
        received=lambda _: None,
        refused=refused.set,
        peer=address,
    )
    sending.send(b"hello", address)
    await asyncio.wait_for(refused.wait(), TIMEOUT_S)
    sending.close()


def test_datagram_size_of_a_route_is_its_mtu_without_headers() -> None:
    assert route_datagram_bytes(socket.AF_INET, ("127.0.0.1", 9)) > 1_472
    assert route_datagram_bytes(socket.AF_INET, ("not an address", 9)) == 1_280 - 28


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="needs IPv6")
def test_datagram_size_is_known_for_ipv6_routes() -> None:
    assert route_datagram_bytes(socket.AF_INET6, ("::1", 9)) > 1_452
