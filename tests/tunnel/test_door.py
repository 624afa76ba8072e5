"""A tunnel used from beside: sessions, links and backpressure through its door, over a Unix socket."""

from __future__ import annotations

import asyncio
import logging
import random
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
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
from micro_core.contract.tunnel import LinkDown, LinkEvent, LinkUp
from micro_core.lifecycle.environment import Environment
from micro_core.lifecycle.system_clock import SystemClock
from micro_core.standalone.tunnel import protocol as door_wire
from micro_core.standalone.tunnel.client import RemoteTunnel
from micro_core.standalone.tunnel.ipc_server import TunnelDoor
from micro_core.tunnel.identity import NodeIdentity
from micro_core.tunnel.tunnel import TunnelHost

PATIENCE_S = 10.0
NETWORK, TOKEN = "go.micro", "secret"
LOG = logging.getLogger("test")


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.005)


@dataclass
class Reader:
    """A receiver that remembers."""

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
        assert self.error is None, "told twice"
        self.error = error


@dataclass
class Site:
    """Two linked nodes, `near` with a door; `visitor()` is another process of `near`."""

    directory: Path
    near: TunnelHost
    far: TunnelHost
    transport: UnixTransport
    counters: CountersInMemory
    door: TunnelDoor
    visitors: list[RemoteTunnel] = field(default_factory=list)

    def make_door(self) -> TunnelDoor:
        return TunnelDoor(
            tunnel=self.near,
            network=NETWORK,
            token=TOKEN,
            facts=lambda: {"name": "near"},
            clock=SystemClock(),
            random=random.SystemRandom(),
            logger=LOG,
            counters=self.counters,
        )

    async def open_door(self) -> None:
        await self.door.start(self.transport, f"unix://{self.directory}/door")

    async def visitor(self, *, token: str = TOKEN, connect: bool = True) -> RemoteTunnel:
        async def find() -> str:
            return f"unix://{self.directory}/door"

        visitor = RemoteTunnel(
            find=find,
            transport=self.transport,
            network=NETWORK,
            token=token,
            clock=SystemClock(),
            random=random.Random(1),
            logger=LOG,
            counters=CountersInMemory(),
        )
        self.visitors.append(visitor)
        if connect:
            async with asyncio.timeout(PATIENCE_S):
                await visitor.connect()
        return visitor


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
        near.set_event_handler(lambda event: site.door.handle_link_event(event))
        site.door = site.make_door()
        await site.open_door()
        await near.link_to("memory://far")
        yield site
        for visitor in site.visitors:
            await visitor.close()
        await site.door.close()
        for made in (near, far):
            await made.close()
        await transport.close()


async def test_a_visitor_knows_the_node_and_its_links(site: Site) -> None:
    visitor = await site.visitor()
    assert visitor.node_id == site.near.node_id
    assert visitor.facts["name"] == "near"
    (link,) = visitor.links()
    (own,) = site.near.links()
    assert (link.peer, link.peer_name, link.driver, link.dialed) == (own.peer, "far", "memory", True)
    assert link.up_since == pytest.approx(own.up_since, abs=5.0)


async def test_a_session_through_the_door_carries_bytes_both_ways_and_ends_with_its_reason(site: Site) -> None:
    accepted: list[Reader] = []
    site.far.listen("rpc", lambda session: accepted.append(Reader(session)))
    visitor = await site.visitor()
    here = Reader(visitor.dial("rpc", peer=site.far.node_id))
    body = bytes(range(256)) * 1_000
    here.session.write(body)
    await until(lambda: bool(accepted) and bytes(accepted[0].data) == body)
    assert accepted[0].session.peer == site.near.node_id
    accepted[0].session.write(body[::-1])
    await until(lambda: bytes(here.data) == body[::-1])
    await accepted[0].session.close()
    await until(lambda: here.error is not None)
    assert isinstance(here.error, Ended)


async def test_a_visitor_accepts_the_sessions_that_peers_open(site: Site) -> None:
    accepted: list[Reader] = []
    visitor = await site.visitor()
    visitor.listen("rpc", lambda session: accepted.append(Reader(session)))

    async def opened() -> Reader:
        # The door opens in its own time; until then peers are refused, as by any node that does not listen.
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


async def test_a_peer_that_does_not_read_holds_back_the_visitor_and_nobody_s_memory(site: Site) -> None:
    accepted: list[Reader] = []

    def accept(session: Session) -> None:
        session.pause_reading()
        accepted.append(Reader(session))

    site.far.listen("rpc", accept)
    visitor = await site.visitor()
    here = Reader(visitor.dial("rpc", peer=site.far.node_id))
    piece, written = b"x" * 65_536, 0
    async with asyncio.timeout(PATIENCE_S):
        while not here.is_paused or written < 10 * len(piece):
            if not here.is_paused:
                here.session.write(piece)
                written += len(piece)
            await asyncio.sleep(0)
            assert written < 64 * 1024 * 1024, "nothing holds the writer back"
    # It stays so while nobody reads.
    await asyncio.sleep(0.05)
    assert here.is_paused
    accepted[0].session.resume_reading()
    await until(lambda: len(accepted[0].data) == written)
    await until(lambda: not here.is_paused)


async def test_a_refused_session_is_told_and_one_without_a_link_is_refused_at_once(site: Site) -> None:
    visitor = await site.visitor()
    here = Reader(visitor.dial("nobody.listens", peer=site.far.node_id))
    await until(lambda: here.error is not None)
    with pytest.raises(Unreachable, match="no link"):
        visitor.dial("rpc", peer="a" * 32)


async def test_links_that_end_and_come_are_told(site: Site) -> None:
    told: list[str] = []

    def note(event: LinkEvent) -> None:
        match event:
            case LinkUp(link):
                told.append(f"up {link.peer_name}")
            case LinkDown(link):
                told.append(f"down {link.peer_name}")

    visitor = await site.visitor(connect=False)
    visitor.set_event_handler(note)
    await visitor.connect()
    assert told == ["up far"]
    await visitor.unlink(site.far.node_id)
    await until(lambda: told == ["up far", "down far"])
    assert visitor.links() == []
    await site.near.link_to("memory://far")
    await until(lambda: told == ["up far", "down far", "up far"])


async def test_a_door_that_goes_takes_links_and_sessions_along_and_is_found_again(site: Site) -> None:
    told: list[str] = []
    accepted: list[Session] = []
    visitor = await site.visitor(connect=False)
    visitor.set_event_handler(lambda event: told.append("up" if isinstance(event, LinkUp) else "down"))
    visitor.on_away(lambda error: told.append("here" if error is None else "away"))
    visitor.listen("rpc", accepted.append)
    await visitor.connect()
    there: list[Reader] = []
    site.far.listen("x", lambda session: there.append(Reader(session)))
    here = Reader(visitor.dial("x", peer=site.far.node_id))
    await until(lambda: bool(there))
    await site.door.close()
    await until(lambda: here.error is not None)
    assert isinstance(here.error, LinkLost)
    await until(lambda: told[-1] == "down")
    with pytest.raises(Unreachable):
        visitor.dial("x", peer=site.far.node_id)
    site.door = site.make_door()
    await site.open_door()
    await until(lambda: told[-1] == "up")
    assert told.count("here") == 2

    def asked() -> bool:
        Reader(site.far.dial("rpc", peer=site.near.node_id))
        return bool(accepted)

    await until(asked)


async def test_a_visitor_with_another_token_is_refused_and_nothing_is_done_for_it(site: Site) -> None:
    reasons: list[MicroError | None] = []
    stranger = await site.visitor(token="another", connect=False)
    stranger.on_away(reasons.append)
    connecting = asyncio.get_running_loop().create_task(stranger.connect())
    await until(lambda: bool(reasons))
    assert "token" in str(reasons[0])
    assert stranger.links() == []
    assert site.counters.values["tunnel_door_requests_refused"] >= 1
    connecting.cancel()
    await asyncio.gather(connecting, return_exceptions=True)


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        door_wire.encode(door_wire.Kind.DATA, b"early"),
        b"\x01\xff\xff\xff\xff",
        door_wire.encode(door_wire.Kind.REQUEST, b"\xc1"),
        door_wire.encode_map(door_wire.Kind.REQUEST, {"verb": "watch"}),
    ],
)
async def test_what_is_no_request_ends_the_visit(site: Site, said: bytes) -> None:
    socket: Any = await site.transport.dial(site.door.address, timeout_s=3)
    reader = Reader(socket)
    await until(lambda: bool(reader.data))
    socket.write(said)
    await until(lambda: reader.error is not None)
    assert site.counters.values["tunnel_door_requests_refused"] == 1


def test_pieces_are_put_together_wherever_they_are_cut() -> None:
    said = door_wire.encode_data(b"y" * 150_000) + door_wire.encode(door_wire.Kind.END)
    for step in (1, 7, 70_000):
        reader = door_wire.Reader()
        found = [
            message for start in range(0, len(said), step) for message in reader.receive(said[start : start + step])
        ]
        assert b"".join(payload for kind, payload in found if kind is door_wire.Kind.DATA) == b"y" * 150_000
        assert found[-1] == (door_wire.Kind.END, b"")


def test_a_length_beyond_the_bound_is_refused_before_it_is_buffered() -> None:
    with pytest.raises(Malformed):
        door_wire.Reader().receive(b"\x03\x00\x02\x00\x00")


async def test_closing_a_session_here_ends_it_there(site: Site) -> None:
    accepted: list[Reader] = []
    site.far.listen("rpc", lambda session: accepted.append(Reader(session)))
    visitor = await site.visitor()
    here = Reader(visitor.dial("rpc", peer=site.far.node_id))
    here.session.write(b"last words")
    await here.session.close()
    assert isinstance(here.error, Closed)
    await until(lambda: bool(accepted) and accepted[0].error is not None)
    assert bytes(accepted[0].data) == b"last words"
