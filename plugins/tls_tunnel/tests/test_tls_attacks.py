"""Tests of a listener with invalid peers, and of its behaviour under load."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import ssl
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest

from micro_core.contract import LinkLost, Unreachable

if TYPE_CHECKING:
    from plugins.tls_tunnel.tests.conftest import Node, NodeMaker, Reader

TIMEOUT_S = 15.0


async def check_new_link(here: Node, there: Node) -> None:
    near, far = await here.dial(there)
    near.link.write(0, b"fine")
    await far.until(lambda: far.received == b"fine")


async def read_until_closed(reader: asyncio.StreamReader) -> None:
    """Wait until the listener closes the connection."""
    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(TIMEOUT_S):
            while await reader.read(65_536):
                pass


@pytest.fixture
async def sockets() -> AsyncIterator[list[socket.socket]]:
    opened: list[socket.socket] = []
    yield opened
    for sock in opened:
        sock.close()


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        random.Random(1).randbytes(3000),
        b"\x16\x03\x01\xff\xff" + bytes(70_000),
        b"\x00" * 9,
    ],
    ids=["http", "noise", "overlong-record", "zeroes"],
)
async def test_garbage_is_rejected_and_counted(pair: tuple[Node, Node], data: bytes) -> None:
    near, far = await pair[0].dial(pair[1])
    reader, writer = await asyncio.open_connection(*pair[1].target)
    writer.write(data)
    await read_until_closed(reader)
    writer.close()
    await pair[1].wait_for_count("tls_handshakes_failed")
    near.link.write(0, b"still here")
    await far.until(lambda: far.received == b"still here")
    await check_new_link(*pair)


async def test_tls_with_another_alpn_is_rejected(pair: tuple[Node, Node]) -> None:
    browser = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    browser.check_hostname, browser.verify_mode = False, ssl.CERT_NONE
    browser.set_alpn_protocols(["h2", "http/1.1"])
    with contextlib.suppress(OSError):
        reader, writer = await asyncio.open_connection(*pair[1].target, ssl=browser)
        await read_until_closed(reader)
        writer.close()
    await pair[1].wait_for_count("tls_handshakes_failed")
    assert pair[1].accepted.empty()
    await check_new_link(*pair)


async def test_silent_handshake_expires(node: NodeMaker, sockets: list[socket.socket]) -> None:
    here, there = node(), await node(handshake_timeout_s=0.2).listen()
    sockets.append(socket.create_connection(there.target))
    reader, writer = await asyncio.open_connection(*there.target)
    writer.write(b"\x16\x03\x01\x02\x00\x01")
    await read_until_closed(reader)
    writer.close()
    await there.wait_for_count("tls_handshakes_expired", 2)
    assert not there.driver._links
    await check_new_link(here, there)


async def test_half_open_connections_are_limited_and_do_not_block_nodes(
    node: NodeMaker, sockets: list[socket.socket]
) -> None:
    here, there = node(), await node(max_half_open=20, handshake_timeout_s=60.0).listen()
    for _ in range(200):
        sock = socket.socket()
        sockets.append(sock)
        sock.setblocking(False)
        sock.connect_ex(there.target)
    await there.wait_for_count("tls_handshakes_displaced", 180)
    await check_new_link(here, there)
    assert len(there.driver._links) <= 21


async def test_listener_without_tls_is_detected_immediately(node: NodeMaker) -> None:
    async def greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example.org ESMTP\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(Unreachable, match="invalid TLS data") as caught:
        await node().driver.dial(f"127.0.0.1:{port}", timeout_s=TIMEOUT_S)
    assert "a node" in caught.value.hint
    server.close()


async def test_silent_listener_is_reported_after_the_timeout(node: NodeMaker) -> None:
    here = node()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        with pytest.raises(
            Unreachable, match=r"accepted the connection, but did not complete the TLS handshake within 0\.3 s"
        ):
            await here.driver.dial(f"127.0.0.1:{silent.getsockname()[1]}", timeout_s=0.3)
        assert time.monotonic() - began < 3.0
    assert not here.driver._links


async def test_modified_data_ends_the_link(pair: tuple[Node, Node]) -> None:
    near, far = await pair[0].dial(pair[1])
    transport = near.link._transport
    assert transport is not None
    transport.write(b"\x17\x03\x03\x00\x20" + bytes(32))
    await far.until(lambda: far.error is not None)
    assert isinstance(far.error, LinkLost)
    assert pair[1].count_of("tls_protocol_violations") == 1
    await near.until(lambda: near.error is not None)


async def test_machine_in_the_middle_changes_the_channel_binding(node: NodeMaker) -> None:
    """The machine must use another certificate, so the handshake of core, in which the nodes sign the binding, fails."""
    here, middle, there = node(), await node().listen(), await node().listen()
    near, inner = await here.dial(middle)
    outer, far = await middle.dial(there)

    class Relay:
        def __init__(self, target: Reader) -> None:
            self.target = target

        def data_received(self, lane: int, data: bytes) -> None:
            self.target.link.write(lane, data)

        def lane_writable(self, lane: int) -> None: ...

        def link_lost(self, error: object) -> None: ...

    inner.link._receiver, outer.link._receiver = Relay(outer), Relay(inner)
    near.link.write(0, b"through")
    await far.until(lambda: far.received == b"through")
    assert near.link.channel_binding != far.link.channel_binding
