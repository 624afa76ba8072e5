"""Tests of TLS links over TCP sockets on loopback."""

from __future__ import annotations

import asyncio
import random
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives import serialization
from micro_tls_tunnel.certificate import binding_of, make_certificate
from micro_tls_tunnel.link import LOW_WATER_BYTES

from micro_core.contract import Closed, Conflict, Ended, LinkLost, OptionError, Unreachable
from micro_core.testing import free_port

if TYPE_CHECKING:
    from plugins.tls_tunnel.tests.conftest import Node, NodeMaker

TIMEOUT_S = 15.0


async def test_data_arrives_in_order_both_ways(pair: tuple[Node, Node]) -> None:
    near, far = await pair[0].dial(pair[1])
    sent = random.Random(2).randbytes(3_000_000)
    for start in range(0, len(sent), 10_000):
        near.link.write(0, sent[start : start + 10_000])
        far.link.write(0, sent[start : start + 10_000])
    await far.until(lambda: len(far.received) == len(sent))
    await near.until(lambda: len(near.received) == len(sent))
    assert far.received == near.received == sent


async def test_channel_binding_is_shared_by_both_ends_and_unique_per_listener(
    pair: tuple[Node, Node], node: NodeMaker
) -> None:
    near, far = await pair[0].dial(pair[1])
    assert near.link.channel_binding == far.link.channel_binding
    assert len(near.link.channel_binding) == 32
    elsewhere, _ = await pair[0].dial(await node().listen())
    assert elsewhere.link.channel_binding != near.link.channel_binding


async def test_links_have_the_addresses_of_both_ends(pair: tuple[Node, Node]) -> None:
    near, far = await pair[0].dial(pair[1])
    assert near.link.remote == far.link.local == pair[1].address
    assert near.link.local == far.link.remote


async def test_data_received_before_start_is_delivered_and_limited(pair: tuple[Node, Node]) -> None:
    near = await pair[0].driver.dial(pair[1].address, timeout_s=TIMEOUT_S)
    far_link = await asyncio.wait_for(pair[1].accepted.get(), TIMEOUT_S)
    sent = random.Random(4).randbytes(8_000_000)
    far_link.write(0, sent)
    for _ in range(200):
        await asyncio.sleep(0)
    assert sum(len(chunk) for chunk in near._early) <= 128 * 1024  # type: ignore[attr-defined, misc]
    reader = pair[0].read(near)
    await reader.until(lambda: len(reader.received) == len(sent))
    assert reader.received == sent


async def test_slow_peer_fills_the_buffer_and_resuming_empties_it(
    pair: tuple[Node, Node],
) -> None:
    near, far = await pair[0].dial(pair[1])
    assert far.link._transport is not None
    far.link._transport.pause_reading()
    written = 0
    async with asyncio.timeout(TIMEOUT_S):
        # Like core, write until the buffer is full, and continue when the lane is writable.
        while True:
            before = near.writable
            while near.link.buffered_bytes(0) < 128 * 1024:
                near.link.write(0, bytes(16 * 1024))
                written += 16 * 1024
            try:
                # The kernel's buffers are full if the lane stays unwritable. A busy machine only makes the test write less.
                await asyncio.wait_for(near.until(lambda before=before: near.writable > before), 0.3)  # type: ignore[misc]
            except TimeoutError:
                break
    assert near.link.buffered_bytes(0) <= 160 * 1024
    before = near.writable
    far.link._transport.resume_reading()
    await near.until(lambda: near.writable > before)
    assert near.link.buffered_bytes(0) <= LOW_WATER_BYTES
    await far.until(lambda: len(far.received) == written)


async def test_unsent_data_in_the_kernel_is_limited(pair: tuple[Node, Node]) -> None:
    lowat = getattr(socket, "TCP_NOTSENT_LOWAT", None)
    if lowat is None:
        pytest.skip("this system has no TCP_NOTSENT_LOWAT")
    for reader in await pair[0].dial(pair[1]):
        assert reader.link._transport is not None
        sock = reader.link._transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, lowat) == 65_536
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


async def test_close_is_reported_as_closed_locally_and_as_ended_remotely(pair: tuple[Node, Node]) -> None:
    near, far = await pair[0].dial(pair[1])
    near.link.write(0, b"final data")
    await near.link.close()
    await near.link.close()
    await far.until(lambda: far.error is not None)
    assert isinstance(near.error, Closed)
    assert isinstance(far.error, Ended)
    assert far.received == b"final data"


async def test_written_data_arrives_before_the_end_although_the_peer_writes_too(pair: tuple[Node, Node]) -> None:
    near, far = await pair[0].dial(pair[1])
    far.link.write(0, bytes(1_000_000))
    near.link.write(0, bytes(1_000_000))
    await near.link.close()
    await far.until(lambda: far.error is not None)
    assert len(far.received) == 1_000_000


async def test_close_waits_at_most_one_second_for_a_slow_peer(pair: tuple[Node, Node]) -> None:
    near, far = await pair[0].dial(pair[1])
    assert far.link._transport is not None
    far.link._transport.pause_reading()
    near.link.write(0, bytes(20_000_000))
    began = time.monotonic()
    await near.link.close()
    assert 0.5 < time.monotonic() - began < 5.0
    assert isinstance(near.error, Closed)
    assert pair[0].count_of("tls_closed_with_data_unread") == 1


async def test_connection_without_close_notify_is_reported_as_lost(pair: tuple[Node, Node]) -> None:
    near, far = await pair[0].dial(pair[1])
    assert near.link._transport is not None
    near.link._transport.abort()
    await far.until(lambda: far.error is not None)
    assert isinstance(far.error, LinkLost)
    assert not isinstance(far.error, Ended)


async def test_host_name_with_several_addresses_uses_the_one_that_answers(pair: tuple[Node, Node]) -> None:
    # On most systems `localhost` also resolves to ::1, where no process listens.
    near, far = await pair[0].dial(pair[1])
    link = await pair[0].driver.dial(f"localhost:{pair[1].target[1]}", timeout_s=TIMEOUT_S)
    assert link.remote == near.link.remote
    assert far.error is None


async def test_wildcard_listener_accepts_ipv4_and_ipv6(node: NodeMaker) -> None:
    if not socket.has_dualstack_ipv6():
        pytest.skip("this system has no dual-stack sockets")
    here, there = node(), await node().listen(":0")
    port = there.target[1]
    for host in ("[::1]", "127.0.0.1"):
        link = await here.driver.dial(f"tls://{host}:{port}", timeout_s=TIMEOUT_S)
        assert link.remote == f"tls://{host}:{port}"
        accepted = await asyncio.wait_for(there.accepted.get(), TIMEOUT_S)
        assert accepted.remote.startswith(f"tls://{host}:")


async def test_closed_listener_accepts_no_links_and_keeps_established_ones(node: NodeMaker) -> None:
    here, there = node(), node()
    listener = await there.driver.listen("127.0.0.1:0", there.accepted.put_nowait)
    there.address = listener.address
    near, far = await here.dial(there)
    await listener.close()
    with pytest.raises(Unreachable, match="refused"):
        await here.driver.dial(there.address, timeout_s=TIMEOUT_S)
    near.link.write(0, b"still here")
    await far.until(lambda: far.received == b"still here")


@pytest.mark.skipif(not hasattr(socket, "TCP_MAXSEG"), reason="the system has no such option")
async def test_segments_fit_a_path_whose_mtu_shrinks(pair: tuple[Node, Node]) -> None:
    # Loopback would allow 65,483 bytes.
    for end in await pair[0].dial(pair[1]):
        end.link.write(0, bytes(100_000))
        connection: Any = end.link
        own = connection._transport.get_extra_info("socket")
        assert own.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) <= 1_220


async def test_occupied_port_raises_conflict(pair: tuple[Node, Node]) -> None:
    with pytest.raises(Conflict, match="another port"):
        await pair[0].driver.listen(pair[1].address, pair[0].accepted.put_nowait)


async def test_port_number_can_be_shared_with_quic(node: NodeMaker) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        port = free_port()
        udp.bind(("127.0.0.1", port))
        there = await node().listen(f"127.0.0.1:{port}")
        await node().dial(there)


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("127.0.0.1:1", "refused"),
        ("no.such.name.invalid:1", "cannot resolve"),
        ("a:b:c", "brackets"),
        ("h:99999", "port"),
    ],
)
async def test_unreachable_address_is_reported_with_the_reason(node: NodeMaker, address: str, reason: str) -> None:
    with pytest.raises(Unreachable, match=reason) as caught:
        await node().driver.dial(address, timeout_s=TIMEOUT_S)
    assert caught.value.hint


async def test_closed_driver_ends_its_links_and_refuses_to_dial(pair: tuple[Node, Node]) -> None:
    near, far = await pair[0].dial(pair[1])
    await pair[0].driver.close()
    assert isinstance(near.error, Closed)
    await far.until(lambda: far.error is not None)
    with pytest.raises(Unreachable, match="closed"):
        await pair[0].driver.dial(pair[1].address, timeout_s=TIMEOUT_S)


async def test_closed_drivers_leave_no_file_or_task(node: NodeMaker) -> None:
    def open_files() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before, tasks = open_files(), asyncio.all_tasks()
    here, there = node(), await node().listen()
    for _ in range(5):
        await here.dial(there)
    await here.driver.close()
    await there.driver.close()
    async with asyncio.timeout(TIMEOUT_S):
        while open_files() > before or asyncio.all_tasks() > tasks:
            await asyncio.sleep(0.01)


async def test_certificate_files_are_used(node: NodeMaker, tmp_path: Path) -> None:
    certificate, key = make_certificate()
    own, secret = tmp_path / "own.pem", tmp_path / "own.key"
    own.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(_pem(key, serialization.NoEncryption()))
    there = await node(certificate_file=str(own), key_file=str(secret)).listen()
    near, far = await node().dial(there)
    expected = binding_of(certificate.public_bytes(serialization.Encoding.DER))
    assert near.link.channel_binding == far.link.channel_binding == expected


async def test_unusable_certificate_files_are_rejected_with_the_option_name(node: NodeMaker, tmp_path: Path) -> None:
    certificate, key = make_certificate()
    _, other_key = make_certificate()
    own = tmp_path / "own.pem"
    own.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    for name, content in {
        "another.key": _pem(other_key, serialization.NoEncryption()),
        "locked.key": _pem(key, serialization.BestAvailableEncryption(b"secret")),
        "garbage.key": b"not a key",
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(OptionError, match=r"tls\.key_file.*" + name):
            await node(certificate_file=str(own), key_file=str(tmp_path / name)).listen()
    with pytest.raises(OptionError, match=r"tls\.certificate_file.*absent"):
        await node(certificate_file="absent.pem", key_file="absent.key").listen()


@pytest.mark.parametrize(
    "options",
    [
        {"certificate_file": "x"},
        {"max_half_open": 0},
        {"handshake_timeout_s": 0.0},
        {"unsent_bytes": 1},
        {"port": 70_000},
        {"max_segment_bytes": 100},
    ],
)
def test_invalid_options_are_rejected_by_name(node: NodeMaker, options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=next(iter(options))):
        node(**options)


def _pem(key: Any, encryption: serialization.KeySerializationEncryption) -> bytes:
    pem: bytes = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    return pem
