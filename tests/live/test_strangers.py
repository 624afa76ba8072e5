"""What a stranger may do to the ports of a node and of a service, while others are served."""

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
HELLO = frames.encode(Kind.HELLO, 0, encode_hello("stranger"))
DEEP = b"\x91" * 60_000 + b"\xc0"
HUGE_ARRAY = b"\xdd\xff\xff\xff\xff"


def call(stream: int, body: bytes, flags: int = 0) -> bytes:
    header = encode_header(CallHeader("go.micro.srv.greeter", "Say.Hello", CallMode.UNARY, 5_000))
    return frames.encode(Kind.REQUEST, stream, header, body, flags)


class Stranger:
    """A raw socket to an address."""

    def __init__(self, address: str) -> None:
        host, _, port = address.removeprefix("tcp://").rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=20.0)

    def __enter__(self) -> Stranger:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def is_put_out(self) -> bool:
        """Whether the other side ends the connection, whatever it says before."""
        try:
            while self.socket.recv(65_536):
                pass
        except ConnectionError:
            pass
        except TimeoutError:
            return False
        return True

    def error(self) -> tuple[int, str]:
        """The code and place of the first error that is answered."""
        decoder = FrameDecoder()
        while data := self.socket.recv(65_536):
            for frame in decoder.receive_data(data):
                if frame.kind == Kind.ERROR:
                    error = error_from_wire(decode_map(frame.header))
                    return error.code, error.at
        raise AssertionError("closed without an answer")


def memory_mib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) // 1024 for line in status.splitlines() if line.startswith("VmRSS"))


@pytest.fixture(scope="module")
def places(shared_lab: Any) -> dict[str, tuple[Any, str]]:
    """A node and a service, each as (process, address); and what checks that both still serve."""
    lab = shared_lab
    site = lab.site("here", plugins=())
    node = lab.node(site)
    greeter = lab.python("greeter", site, GREETER)
    ready = next(line for line in greeter.lines if line.startswith("ready"))
    lab.until(lambda: greets(lab, site), "the node knows the greeter")
    return {"node": (node, site.address), "service": (greeter, ready.rpartition(" ")[2]), "lab": (lab, site)}


def greets(lab: Any, site: Any) -> bool:
    done = lab.micro(site, "call", "go.micro.srv.greeter", "Say.Hello", "name=J", MICRO_PROXY="go.micro.network")
    return bool(done.returncode == 0 and json.loads(done.stdout) == {"msg": "Hello J"})


@pytest.mark.parametrize("where", ["node", "service"])
@pytest.mark.parametrize(
    "words",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        os.urandom(100_000),
        struct.pack(">I", 0xFFFFFFFF) + bytes(100),
        HELLO + struct.pack(">I", 0x0FFFFFFF) + bytes(100),
        HELLO + HELLO,
        call(1, b"\xc0"),
        HELLO + call(2, b"\xc0"),
    ],
    ids=["http", "noise", "a giant frame", "a giant frame after hello", "two hellos", "no hello", "a stream of ours"],
)
def test_who_speaks_something_else_is_put_out(places: Any, where: str, words: bytes) -> None:
    with Stranger(places[where][1]) as stranger:
        stranger.socket.sendall(words)
        assert stranger.is_put_out()


def test_who_never_says_who_it_is_is_put_out_in_time(places: Any) -> None:
    with contextlib.ExitStack() as stack:
        strangers = []
        for where in ("node", "service"):
            for words in (b"", HELLO[:5]):
                strangers.append(stack.enter_context(Stranger(places[where][1])))
                strangers[-1].socket.sendall(words)
        began = time.monotonic()
        assert all(stranger.is_put_out() for stranger in strangers)
        assert time.monotonic() - began > 2.0, "a slow caller has its time"


@pytest.mark.parametrize("where", ["node", "service"])
@pytest.mark.parametrize(
    "words",
    [
        call(1, DEEP),
        call(1, HUGE_ARRAY),
        call(1, b"\xc7\x05\x01aaaaa"),
        call(1, b"\xda\xff"),
        frames.encode(Kind.REQUEST, 1, b"\xff\xff\xff", b""),
        frames.encode(Kind.REQUEST, 1, DEEP[:15_000], b""),
        call(1, bytes(60_000), MORE)
        + b"".join(frames.encode(Kind.DATA, 1, b"", bytes(60_000), MORE) for _ in range(75)),
    ],
    ids=["deep", "huge", "strange", "cut off", "no header", "a deep header", "more than a body"],
)
def test_a_request_that_is_wrong_is_refused_by_a_named_place(places: Any, where: str, words: bytes) -> None:
    with Stranger(places[where][1]) as stranger:
        stranger.socket.sendall(HELLO + words)
        code, at = stranger.error()
        assert code in (400, 413)
        assert at
        # The connection of others is untouched, and so is this one.
        stranger.socket.sendall(call(3, b"\x81\xa4name\xa1J"))
        decoder = FrameDecoder()
        while not any(frame.kind == Kind.RESPONSE for frame in decoder.receive_data(stranger.socket.recv(65_536))):
            pass


@pytest.mark.parametrize("where", ["node", "service"])
def test_a_request_without_an_end_and_answers_nobody_reads_fill_no_memory(places: Any, where: str) -> None:
    process, address = places[where]
    before = memory_mib(process.child.pid)
    with Stranger(address) as endless, Stranger(address) as unread:
        endless.socket.sendall(HELLO + call(1, bytes(60_000), MORE))
        piece = frames.encode(Kind.DATA, 1, b"", bytes(60_000), MORE)
        for _ in range(2_000):  # 120 MB
            endless.socket.sendall(piece)
        unread.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        unread.socket.settimeout(3.0)
        try:
            unread.socket.sendall(HELLO)
            for stream in range(1, 100_000, 2):
                unread.socket.sendall(call(stream, b"\xc0"))
        except (TimeoutError, ConnectionError):
            pass  # it was told to wait, or put out
        assert memory_mib(process.child.pid) < before + 60
    lab, site = places["lab"]
    assert greets(lab, site)
