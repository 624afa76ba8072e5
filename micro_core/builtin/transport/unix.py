"""The transport role over Unix sockets: one machine, guarded by file permissions."""

from __future__ import annotations

import asyncio
import os
import socket as sockets
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from micro_core.builtin.transport.stream_socket import (
    BACKLOG,
    HIGH_WATER_BYTES,
    LOW_WATER_BYTES,
    StreamListener,
    StreamSocket,
    StreamSockets,
    WaterMarks,
    connect,
    reason,
)
from micro_core.contract import (
    BadRequest,
    Conflict,
    Driver,
    DriverContext,
    Socket,
    Transport,
    Unreachable,
    hookimpl,
    option,
)
from micro_core.contract.transport import Listener

SCHEME = "unix"

MAX_PATH_BYTES = 103
"""sockaddr_un holds 108 bytes on Linux and 104 on macOS and the BSDs, the terminating zero included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnixOptions:
    """Options of the Unix transport."""

    directory: str = option("", "Where sockets without a name are made; empty means the state directory.")
    max_connections: int = option(10_000, "Accepted connections at once; more are refused and counted.")
    high_water_bytes: int = option(HIGH_WATER_BYTES, "Bytes waiting on one connection above which its writer pauses.")
    low_water_bytes: int = option(LOW_WATER_BYTES, "Bytes waiting below which the writer goes on.")


class UnixTransport:
    """Implements `micro_core.contract.transport.Transport`."""

    scheme = SCHEME

    def __init__(self, options: UnixOptions, context: DriverContext) -> None:
        self._directory = Path(options.directory or context.state_dir)
        self._random = context.random
        self._marks = WaterMarks(options.high_water_bytes, options.low_water_bytes)
        self._sockets = StreamSockets(options.max_connections, context.counters, "unix_connections_refused")

    async def start(self) -> None:
        """Nothing to connect to."""

    async def close(self) -> None:
        await self._sockets.close()

    async def dial(self, address: str, *, timeout_s: float) -> Socket:
        """As `Transport.dial`; raises Closed after `close`."""
        self._sockets.check_open()
        try:
            path = _checked(address.removeprefix("unix://"))
        except BadRequest as error:
            raise Unreachable(f"cannot connect: {error.detail}", hint=error.hint) from error
        loop = asyncio.get_running_loop()
        connecting = loop.create_unix_connection(lambda: StreamSocket(self._marks), path)
        socket = await connect(connecting, address, timeout_s)
        socket.local = socket.remote = address
        self._sockets.add_dialled(socket)
        return socket

    async def listen(self, address: str, accept: Callable[[Socket], None]) -> Listener:
        """As `Transport.listen`; raises Closed after `close`, BadRequest for a path that is none or too long."""
        self._sockets.check_open()
        path = _checked(address.removeprefix("unix://") or str(self._directory / self._new_name()))
        shown = f"unix://{path}"

        def connected(socket: StreamSocket) -> None:
            socket.local = socket.remote = shown
            if self._sockets.admit(socket):
                accept(socket)

        # Bound here, not by asyncio: the mode must stand before anybody can connect.
        door = sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM)
        try:
            if not address.removeprefix("unix://"):
                self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            _remove_stale(path)
            _bind_privately(door, path)
            made = _identity(path)
            server = await asyncio.get_running_loop().create_unix_server(
                lambda: StreamSocket(self._marks, connected), sock=door, backlog=BACKLOG
            )
        except OSError as error:
            door.close()
            raise Conflict(f"cannot listen on {shown}: {reason(error)}", hint="choose another path") from error

        def closed(listener: StreamListener) -> None:
            self._sockets.forget_listener(listener)
            # Somebody else may have taken the place since: only what was made here is removed.
            if _identity(path) == made:
                Path(path).unlink(missing_ok=True)

        listener = StreamListener(shown, server, closed)
        self._sockets.add_listener(listener)
        return listener

    def _new_name(self) -> str:
        return f"{self._random.getrandbits(48):012x}.sock"


def _checked(path: str) -> str:
    try:
        length = len(os.fsencode(path))
    except UnicodeError as error:
        raise BadRequest(f"{path!r:.300} is not a path: {error}") from error
    if not path.startswith("/") or "\0" in path:
        raise BadRequest(f"unix://{path:.120} is not an absolute path", hint="write unix:///run/x.sock")
    if length > MAX_PATH_BYTES:
        raise BadRequest(
            f"the path of unix://{path:.120} has {length} bytes, and the system takes {MAX_PATH_BYTES}",
            hint="choose a shorter directory (plugin option unix.directory)",
        )
    return path


def _bind_privately(door: sockets.socket, path: str) -> None:
    """Bind with mode 0600; raises OSError."""
    mask = os.umask(0o177)
    try:
        door.bind(path)
    finally:
        os.umask(mask)


def _identity(path: str) -> tuple[int, int] | None:
    """Device and inode: whether a file is still the same one."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _remove_stale(path: str) -> None:
    """Remove a socket file behind which nobody listens; anything else is left, and the bind will say so.

    Raises OSError where the place cannot be looked at.
    """
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return
    except FileNotFoundError:
        return
    with sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM) as probe:
        # Unix sockets connect at once or not at all: the loop is not held up.
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink(missing_ok=True)
        except OSError:
            # A full backlog, or a socket of another user: somebody is there.
            return


def create(options: UnixOptions, context: DriverContext) -> Transport:
    return UnixTransport(options, context)


@hookimpl
def micro_transport() -> Driver[Transport]:
    return Driver(name="unix", summary="Sockets in the file system: one machine.", options=UnixOptions, create=create)
