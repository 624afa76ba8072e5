"""The tunnel of another process: sessions, links and backpressure through its IPC server, over a Unix socket."""

from __future__ import annotations

import asyncio
import logging
import random
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from micro_core.builtin.transport.unix import UnixOptions, UnixTransport
from micro_core.builtin.tunnel.memory import MemoryTunnel, MemoryTunnelOptions
from micro_core.contract import (
    Closed,
    CountersInMemory,
    DriverContext,
    Ended,
    LinkLost,
    Malformed,
    MicroError,
    Session,
    Unreachable,
)
from micro_core.contract.tunnel import LinkDown, LinkEvent, LinkMeasured, LinkSuspect, LinkUp
from micro_core.lifecycle.environment import Environment
from micro_core.lifecycle.system_clock import SystemClock
from micro_core.standalone.tunnel import protocol as ipc
from micro_core.standalone.tunnel import server_requests
from micro_core.standalone.tunnel.client import RemoteTunnel
from micro_core.standalone.tunnel.server import IpcServer
from micro_core.standalone.tunnel.server_requests import ForwardedListener
from micro_core.tunnel.identity import NodeIdentity
from micro_core.tunnel.tunnel import TunnelHost

TIMEOUT_S = 10.0
NETWORK, TOKEN = "go.micro", "secret"
LOG = logging.getLogger("test")


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not condition():
            await asyncio.sleep(0.005)


@dataclass
class Reader:
    """A receiver that records what it receives."""

    session: Session
    data: bytearray = field(default_factory=bytearray)
    error: MicroError | None = None
    is_paused: bool = False

    def __post_init__(self) -> None:
        self.session.start(self)

    def data_received(self, data: bytes) -> None:
        self.data += data

    def pause_writing(self) -> None:
        self.is_paused = True

    def resume_writing(self) -> None:
        self.is_paused = False

    def socket_lost(self, error: MicroError) -> None:
        assert self.error is None, "socket_lost was called twice"
        self.error = error


@dataclass
class Site:
    """Two linked nodes. `near` has an IPC server; `client()` returns a client of it, as in another process."""

    directory: Path
    near: TunnelHost
    far: TunnelHost
    transport: UnixTransport
    counters: CountersInMemory
    server: IpcServer
    clients: list[RemoteTunnel] = field(default_factory=list)

    def make_server(self) -> IpcServer:
        return IpcServer(
            tunnel=self.near,
            network=NETWORK,
            token=TOKEN,
            facts=lambda: {"name": "near"},
            environment=Environment(
                node_id=self.near.node_id,
                clock=SystemClock(),
                random=random.SystemRandom(),
                logger=LOG,
                counters=self.counters,
            ),
        )

    async def start_server(self) -> None:
        await self.server.start(self.transport, f"unix://{self.directory}/ipc")

    async def client(self, *, token: str = TOKEN, connect: bool = True) -> RemoteTunnel:
        async def find() -> str:
            return f"unix://{self.directory}/ipc"

        client = RemoteTunnel(
            find=find,
            transport=self.transport,
            network=NETWORK,
            token=token,
            environment=Environment(
                node_id=self.near.node_id,
                clock=SystemClock(),
                random=random.Random(1),
                logger=LOG,
                counters=CountersInMemory(),
            ),
        )
        self.clients.append(client)
        if connect:
            async with asyncio.timeout(TIMEOUT_S):
                await client.connect()
        return client


def context(name: str, directory: Path) -> DriverContext:
    return DriverContext(
        node_id=name,
        network=NETWORK,
        site="test",
        state_dir=str(directory),
        clock=SystemClock(),
        random=random.Random(name),
        logger=LOG,
        counters=CountersInMemory(),
    )


async def host(name: str, directory: Path) -> TunnelHost:
    made = TunnelHost(
        identity=NodeIdentity.from_private_bytes(name.encode().ljust(32, b"\0")),
        name=name,
        site="test",
        network=NETWORK,
        token=TOKEN,
        listeners=[(MemoryTunnel(MemoryTunnelOptions(), context(name, directory)), name)],
        environment=Environment.from_context(context(name, directory)),
        incarnation=1,
    )
    await made.connect()
    return made


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    with tempfile.TemporaryDirectory(prefix="micro-") as name:
        directory = Path(name)
        near, far = await host("near", directory), await host("far", directory)
        transport = UnixTransport(UnixOptions(), context("near", directory))
        site = Site(directory, near, far, transport, CountersInMemory(), None)  # type: ignore[arg-type]
        near.set_event_handler(lambda event: site.server.handle_link_event(event))
        site.server = site.make_server()
        await site.start_server()
        await near.link_to("memory://far")
        yield site
        for client in site.clients:
            await client.close()
        await site.server.close()
        for made in (near, far):
            await made.close()
        await transport.close()


async def test_client_receives_the_node_and_its_links(site: Site) -> None:
    client = await site.client()
    assert client.node_id == site.near.node_id
    assert client.facts["name"] == "near"
    (link,) = client.links()
    (own,) = site.near.links()
    assert (link.peer, link.peer_name, link.driver, link.dialed) == (own.peer, "far", "memory", True)
    assert link.up_since == pytest.approx(own.up_since, abs=5.0)


async def test_relayed_session_carries_data_in_both_directions_and_the_reason_of_its_end(site: Site) -> None:
    accepted: list[Reader] = []
    site.far.listen("rpc", lambda session: accepted.append(Reader(session)))
    client = await site.client()
    near_end = Reader(client.dial("rpc", peer=site.far.node_id))
    body = bytes(range(256)) * 1_000
    near_end.session.write(body)
    await until(lambda: bool(accepted) and bytes(accepted[0].data) == body)
    assert accepted[0].session.peer == site.near.node_id
    accepted[0].session.write(body[::-1])
    await until(lambda: bytes(near_end.data) == body[::-1])
    await accepted[0].session.close()
    await until(lambda: near_end.error is not None)
    assert isinstance(near_end.error, Ended)


async def test_client_accepts_sessions_of_peers(site: Site) -> None:
    accepted: list[Reader] = []
    client = await site.client()
    client.listen("rpc", lambda session: accepted.append(Reader(session)))

    async def opened() -> Reader:
        # The client starts to listen in the background. Until then peers are refused.
        while True:
            there = Reader(site.far.dial("rpc", peer=site.near.node_id))
            there.session.write(b"hello")
            await until(lambda: there.error is not None or bool(accepted))  # noqa: B023 - used at once
            if accepted:
                return there

    there = await opened()
    await until(lambda: bytes(accepted[0].data) == b"hello")
    assert accepted[0].session.peer == site.far.node_id
    accepted[0].session.write(b"and back")
    await until(lambda: bytes(there.data) == b"and back")
    await accepted[0].session.close()
    await until(lambda: there.error is not None)


async def test_peer_that_does_not_read_pauses_the_client_within_a_memory_bound(site: Site) -> None:
    accepted: list[Reader] = []

    def accept(session: Session) -> None:
        session.pause_reading()
        accepted.append(Reader(session))

    site.far.listen("rpc", accept)
    client = await site.client()
    near_end = Reader(client.dial("rpc", peer=site.far.node_id))
    piece, written = b"x" * 65_536, 0
    async with asyncio.timeout(TIMEOUT_S):
        while not near_end.is_paused or written < 10 * len(piece):
            if not near_end.is_paused:
                near_end.session.write(piece)
                written += len(piece)
            await asyncio.sleep(0)
            assert written < 64 * 1024 * 1024, "the writer is not paused"
    # The writer is still paused after everything that was sent has arrived, because the peer does not read.
    client.dial("rpc", peer=site.far.node_id)
    await until(lambda: len(accepted) == 2)
    assert near_end.is_paused
    accepted[0].session.resume_reading()
    await until(lambda: len(accepted[0].data) == written)
    await until(lambda: not near_end.is_paused)


async def test_refused_session_ends_with_an_error_and_one_without_link_is_refused_at_once(site: Site) -> None:
    client = await site.client()
    near_end = Reader(client.dial("no.listener", peer=site.far.node_id))
    await until(lambda: near_end.error is not None)
    with pytest.raises(Unreachable, match="no link"):
        client.dial("rpc", peer="a" * 32)


async def test_links_that_end_and_return_are_reported(site: Site) -> None:
    events: list[str] = []

    def note(event: LinkEvent) -> None:
        match event:
            case LinkUp(link):
                events.append(f"up {link.peer_name}")
            case LinkDown(link, error):
                events.append(f"down {link.peer_name}: {error.detail}")

    client = await site.client(connect=False)
    client.set_event_handler(note)
    await client.connect()
    assert events == ["up far"]
    await client.unlink(site.far.node_id, Malformed("not an advert"))
    down = "down far: not an advert"
    await until(lambda: events == ["up far", down])
    assert client.links() == []
    await site.near.link_to("memory://far")
    await until(lambda: events == ["up far", down, "up far"])


async def test_first_measurement_and_suspicion_of_a_link_are_reported(site: Site) -> None:
    events: list[LinkEvent] = []
    client = await site.client(connect=False)
    client.set_event_handler(events.append)
    await client.connect()
    (link,) = site.near.links()
    unmeasured = replace(link, path_rtt_s=None)
    site.server.handle_link_event(LinkUp(unmeasured))
    site.server.handle_link_event(LinkMeasured(replace(link, path_rtt_s=0.08)))
    site.server.handle_link_event(LinkSuspect(replace(link, path_rtt_s=0.08, is_suspect=True), True))
    await until(lambda: isinstance(events[-1], LinkSuspect))
    expected = client.link(link.peer)
    assert expected is not None
    assert expected.is_suspect
    assert [event.link.path_rtt_s for event in events if isinstance(event, LinkMeasured)] == [0.08]
    site.server.handle_link_event(LinkSuspect(replace(link, path_rtt_s=0.08), False))
    await until(lambda: isinstance(events[-1], LinkSuspect) and not events[-1].is_suspect)
    assert client.link("a" * 32) is None


async def test_stopped_server_ends_links_and_sessions_and_is_found_again(site: Site) -> None:
    events: list[str] = []
    accepted: list[Session] = []
    client = await site.client(connect=False)
    names = {LinkUp: "up", LinkDown: "down"}
    client.set_event_handler(lambda event: events.append(names[type(event)]) if type(event) in names else None)
    client.set_availability_handler(lambda error: events.append("available" if error is None else "unavailable"))
    client.listen("rpc", accepted.append)
    await client.connect()
    there: list[Reader] = []
    site.far.listen("x", lambda session: there.append(Reader(session)))
    near_end = Reader(client.dial("x", peer=site.far.node_id))
    await until(lambda: bool(there))
    await site.server.close()
    await until(lambda: near_end.error is not None)
    assert isinstance(near_end.error, LinkLost)
    await until(lambda: events[-1] == "down")
    with pytest.raises(Unreachable):
        client.dial("x", peer=site.far.node_id)
    site.server = site.make_server()
    await site.start_server()
    await until(lambda: events[-1] == "up")
    assert events.count("available") == 2

    def opened() -> bool:
        Reader(site.far.dial("rpc", peer=site.near.node_id))
        return bool(accepted)

    await until(opened)


async def test_client_with_another_token_is_refused(site: Site) -> None:
    reasons: list[MicroError | None] = []
    client = await site.client(token="another", connect=False)
    client.set_availability_handler(reasons.append)
    connecting = asyncio.get_running_loop().create_task(client.connect())
    await until(lambda: bool(reasons))
    assert "token" in str(reasons[0])
    assert client.links() == []
    assert site.counters.values["tunnel_ipc_requests_refused"] >= 1
    connecting.cancel()
    await asyncio.gather(connecting, return_exceptions=True)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        ipc.encode(ipc.Kind.DATA, b"early"),
        b"\x01\xff\xff\xff\xff",
        ipc.encode(ipc.Kind.REQUEST, b"\xc1"),
        ipc.encode_map(ipc.Kind.REQUEST, {"verb": "watch"}),
    ],
)
async def test_invalid_request_ends_the_connection(site: Site, data: bytes) -> None:
    socket: Any = await site.transport.dial(site.server.address, timeout_s=3)
    reader = Reader(socket)
    await until(lambda: bool(reader.data))
    socket.write(data)
    await until(lambda: reader.error is not None)
    assert site.counters.values["tunnel_ipc_requests_refused"] == 1


def test_messages_are_decoded_wherever_they_are_split() -> None:
    encoded = ipc.encode_data(b"y" * 150_000) + ipc.encode(ipc.Kind.END)
    for step in (1, 7, 70_000):
        reader = ipc.Reader()
        found = [
            message
            for start in range(0, len(encoded), step)
            for message in reader.receive(encoded[start : start + step])
        ]
        assert b"".join(payload for kind, payload in found if kind is ipc.Kind.DATA) == b"y" * 150_000
        assert found[-1] == (ipc.Kind.END, b"")


def test_oversized_message_is_refused_before_it_is_buffered() -> None:
    with pytest.raises(Malformed):
        ipc.Reader().receive(b"\x03\x00\x02\x00\x00")


async def test_local_close_ends_the_session_at_the_peer(site: Site) -> None:
    accepted: list[Reader] = []
    site.far.listen("rpc", lambda session: accepted.append(Reader(session)))
    client = await site.client()
    near_end = Reader(client.dial("rpc", peer=site.far.node_id))
    near_end.session.write(b"final data")
    await near_end.session.close()
    assert isinstance(near_end.error, Closed)
    await until(lambda: bool(accepted) and accepted[0].error is not None)
    assert bytes(accepted[0].data) == b"final data"


class ScriptedServer:
    """A process at the address of the IPC server that grants a watch and then sends `messages`."""

    def __init__(self, site: Site, messages: bytes) -> None:
        self.readers: list[Reader] = []
        self._site = site
        self._messages = messages
        self._listener: Any = None

    async def start(self) -> None:
        await self._site.server.close()
        self._listener = await self._site.transport.listen(f"unix://{self._site.directory}/ipc", self._accept)

    def _accept(self, socket: Any) -> None:
        self.readers.append(Reader(socket))
        socket.write(ipc.encode(ipc.Kind.NONCE, b"n" * ipc.NONCE_BYTES) + self._messages)

    async def close(self) -> None:
        await self._listener.close()


async def test_connection_is_closed_when_the_server_sends_an_invalid_node_id(site: Site) -> None:
    answer = ipc.encode_map(ipc.Kind.OPEN, {"node_id": "no id"}) + ipc.encode_map(ipc.Kind.EVENT, {"synced": True})
    server = ScriptedServer(site, answer)
    await server.start()
    client = await site.client(connect=False)
    connecting = asyncio.get_running_loop().create_task(client.connect())
    await until(lambda: bool(server.readers))
    await until(lambda: server.readers[0].error is not None)
    connecting.cancel()
    await asyncio.gather(connecting, return_exceptions=True)
    await server.close()


async def test_client_that_is_closed_while_it_connects_closes_its_connection(site: Site) -> None:
    server = ScriptedServer(site, ipc.encode_map(ipc.Kind.OPEN, {"node_id": site.near.node_id}))
    await server.start()
    client = await site.client(connect=False)
    connecting = asyncio.get_running_loop().create_task(client.connect())
    await until(lambda: bool(server.readers) and bool(server.readers[0].data))
    await client.close()
    await until(lambda: server.readers[0].error is not None)
    await asyncio.gather(connecting, return_exceptions=True)
    await server.close()


async def test_listener_that_does_not_read_has_a_limited_number_of_events(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_requests, "MAX_UNREAD_EVENTS", 5)
    client = await site.client()
    client.listen("rpc", lambda session: None)
    await until(lambda: len(site.server._connections) == 2)
    (connection,) = [c for c in site.server._connections if isinstance(c._handler, ForwardedListener)]
    sent: list[bytes] = []
    monkeypatch.setattr(connection, "send", sent.append)
    connection.pause_writing()
    opened = [Reader(site.far.dial("rpc", peer=site.near.node_id)) for _ in range(10)]
    await until(lambda: site.counters.values.get("tunnel_ipc_sessions_dropped") == 5)
    assert len(sent) == 5
    await until(lambda: sum(reader.error is not None for reader in opened) == 5)
    connection.resume_writing()
    Reader(site.far.dial("rpc", peer=site.near.node_id))
    await until(lambda: len(sent) == 6)
