"""Invalid and hostile data from unauthenticated peers to a node and to a service, which must continue to serve others."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import time
from pathlib import Path
from typing import Any

import pytest

from micro_core.contract.errors import error_from_wire
from micro_core.wire import frames
from micro_core.wire.frames import MORE, FrameDecoder, Kind
from micro_core.wire.header import CallHeader, CallMode, decode_map, encode_header, encode_hello

pytestmark = pytest.mark.timeout(120)

GREETER = (Path(__file__).parents[2] / "examples" / "greeter.py").read_text()
HELLO = frames.encode(Kind.HELLO, 0, encode_hello("peer"))
DEEPLY_NESTED = b"\x91" * 60_000 + b"\xc0"
HUGE_ARRAY = b"\xdd\xff\xff\xff\xff"


def call(stream: int, body: bytes, flags: int = 0) -> bytes:
    header = encode_header(CallHeader("go.micro.srv.greeter", "Say.Hello", CallMode.UNARY, 5_000))
    return frames.encode(Kind.REQUEST, stream, header, body, flags)


class RawPeer:
    """A plain socket to an address."""

    def __init__(self, address: str) -> None:
        host, _, port = address.removeprefix("tcp://").rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=20.0)

    def __enter__(self) -> RawPeer:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def is_disconnected(self) -> bool:
        """Return whether the other side closes the connection within 20 s. Data that it sends before is ignored."""
        try:
            while self.socket.recv(65_536):
                pass
        except ConnectionError:
            pass
        except TimeoutError:
            return False
        return True

    def receive_error(self) -> tuple[int, str]:
        """Return the code and the origin of the first ERROR frame."""
        decoder = FrameDecoder()
        while data := self.socket.recv(65_536):
            for frame in decoder.receive_data(data):
                if frame.kind == Kind.ERROR:
                    error = error_from_wire(decode_map(frame.header))
                    return error.code, error.at
        raise AssertionError("the connection was closed without an ERROR frame")


def memory_mib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) // 1024 for line in status.splitlines() if line.startswith("VmRSS"))


@pytest.fixture(scope="module")
def servers(shared_lab: Any) -> dict[str, tuple[Any, str]]:
    """Start a node and a service. Returns the process and the address of each, and the lab with the site."""
    lab = shared_lab
    site = lab.site("here", plugins=())
    node = lab.node(site)
    greeter = lab.python("greeter", site, GREETER)
    ready = next(line for line in greeter.lines if line.startswith("ready"))
    lab.until(lambda: greets(lab, site), "the node has a route to the greeter")
    return {"node": (node, site.address), "service": (greeter, ready.rpartition(" ")[2]), "lab": (lab, site)}


def greets(lab: Any, site: Any) -> bool:
    done = lab.micro(site, "call", "go.micro.srv.greeter", "Say.Hello", "name=J", MICRO_PROXY="go.micro.network")
    return bool(done.returncode == 0 and json.loads(done.stdout) == {"msg": "Hello J"})


@pytest.mark.parametrize("server", ["node", "service"])
@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        os.urandom(100_000),
        struct.pack(">I", 0xFFFFFFFF) + bytes(100),
        HELLO + struct.pack(">I", 0x0FFFFFFF) + bytes(100),
        HELLO + HELLO,
        call(1, b"\xc0"),
        HELLO + call(2, b"\xc0"),
    ],
    ids=[
        "http",
        "random bytes",
        "huge frame",
        "huge frame after hello",
        "two hellos",
        "no hello",
        "stream id of the server",
    ],
)
def test_peer_that_violates_the_protocol_is_disconnected(servers: Any, server: str, data: bytes) -> None:
    with RawPeer(servers[server][1]) as peer:
        peer.socket.sendall(data)
        assert peer.is_disconnected()


def test_peer_that_does_not_send_hello_is_disconnected_after_a_timeout(servers: Any) -> None:
    with contextlib.ExitStack() as stack:
        peers = []
        for server in ("node", "service"):
            for data in (b"", HELLO[:5]):
                peers.append(stack.enter_context(RawPeer(servers[server][1])))
                peers[-1].socket.sendall(data)
        started_at = time.monotonic()
        assert all(peer.is_disconnected() for peer in peers)
        assert time.monotonic() - started_at > 2.0, "slow peers have time to send HELLO"


@pytest.mark.parametrize("server", ["node", "service"])
@pytest.mark.parametrize(
    "data",
    [
        call(1, DEEPLY_NESTED),
        call(1, HUGE_ARRAY),
        call(1, b"\xc7\x05\x01aaaaa"),
        call(1, b"\xda\xff"),
        frames.encode(Kind.REQUEST, 1, b"\xff\xff\xff", b""),
        frames.encode(Kind.REQUEST, 1, DEEPLY_NESTED[:15_000], b""),
        call(1, bytes(60_000), MORE)
        + b"".join(frames.encode(Kind.DATA, 1, b"", bytes(60_000), MORE) for _ in range(75)),
    ],
    ids=["deep", "huge array", "extension type", "truncated", "invalid header", "deep header", "too large"],
)
def test_invalid_request_is_refused_with_an_error_that_names_its_origin(servers: Any, server: str, data: bytes) -> None:
    with RawPeer(servers[server][1]) as peer:
        peer.socket.sendall(HELLO + data)
        code, at = peer.receive_error()
        assert code in (400, 413)
        assert at
        # The connection stays usable.
        peer.socket.sendall(call(3, b"\x81\xa4name\xa1J"))
        decoder = FrameDecoder()
        while not any(frame.kind == Kind.RESPONSE for frame in decoder.receive_data(peer.socket.recv(65_536))):
            pass


@pytest.mark.parametrize("server", ["node", "service"])
def test_endless_request_and_unread_answers_do_not_exhaust_memory(servers: Any, server: str) -> None:
    process, address = servers[server]
    before = memory_mib(process.child.pid)
    with RawPeer(address) as endless, RawPeer(address) as unread:
        endless.socket.sendall(HELLO + call(1, bytes(60_000), MORE))
        chunk = frames.encode(Kind.DATA, 1, b"", bytes(60_000), MORE)
        for _ in range(2_000):  # 120 MB
            endless.socket.sendall(chunk)
        unread.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        unread.socket.settimeout(3.0)
        try:
            unread.socket.sendall(HELLO)
            for stream in range(1, 100_000, 2):
                unread.socket.sendall(call(stream, b"\xc0"))
        except (TimeoutError, ConnectionError):
            pass  # flow control, or the server has disconnected
        assert memory_mib(process.child.pid) < before + 60
    lab, site = servers["lab"]
    assert greets(lab, site)
