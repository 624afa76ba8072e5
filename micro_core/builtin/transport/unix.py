"""The driver `transport:unix`: sockets of one machine, protected by file permissions."""

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
"""sockaddr_un has 108 bytes on Linux and 104 on macOS and the BSDs, including the terminating zero."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnixOptions:
    """Options of `transport:unix`."""

    directory: str = option("", "Directory of sockets without a name. If empty, the state directory is used.")
    max_connections: int = option(
        10_000, "Maximum number of accepted connections; further ones are refused and counted."
    )
    high_water_bytes: int = option(HIGH_WATER_BYTES, "Unsent bytes of one connection above which its writer is paused.")
    low_water_bytes: int = option(LOW_WATER_BYTES, "Unsent bytes below which the writer is resumed.")


class UnixTransport:
    """Implements `micro_core.contract.transport.Transport`."""

    scheme = SCHEME

    def __init__(self, options: UnixOptions, context: DriverContext) -> None:
        self._directory = Path(options.directory or context.state_dir)
        self._random = context.random
        self._marks = WaterMarks(options.high_water_bytes, options.low_water_bytes)
        self._sockets = StreamSockets(options.max_connections, context.counters, "unix_connections_refused")

    async def start(self) -> None:
        """Do nothing: there is nothing to prepare."""

    async def close(self) -> None:
        """Close all listeners and sockets. Safe to call twice."""
        await self._sockets.close()

    async def dial(self, address: str, *, timeout_s: float) -> Socket:
        """Connect to an absolute path, with or without `unix://`. Raises Closed.

        Raises:
            Unreachable: The path is invalid, or has no listener, or does not answer within `timeout_s` seconds.
        """
        self._sockets.check_open()
        try:
            path = _check_path(address.removeprefix("unix://"))
        except BadRequest as error:
            raise Unreachable(f"cannot connect: {error.detail}", hint=error.hint) from error
        loop = asyncio.get_running_loop()
        connecting = loop.create_unix_connection(lambda: StreamSocket(self._marks), path)
        socket = await connect(connecting, address, timeout_s)
        socket.local = socket.remote = address
        self._sockets.add_dialled(socket)
        return socket

    async def listen(self, address: str, accept: Callable[[Socket], None]) -> Listener:
        """Listen at an absolute path; an empty address means an unused path. Raises Closed, BadRequest.

        Raises:
            Conflict: The system refuses to listen at the path.
        """
        self._sockets.check_open()
        path = _check_path(address.removeprefix("unix://") or str(self._directory / self._random_socket_name()))
        url = f"unix://{path}"

        def connected(socket: StreamSocket) -> None:
            socket.local = socket.remote = url
            if self._sockets.admit(socket):
                accept(socket)

        def on_close(listener: StreamListener) -> None:
            self._sockets.remove_listener(listener)
            # Another process may have replaced the file in the meantime.
            if _file_id(path) == file_id:
                Path(path).unlink(missing_ok=True)

        # Bound here and not by asyncio, so that the file has its mode before a client can connect.
        server_socket = sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM)
        try:
            if not address.removeprefix("unix://"):
                self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            _remove_stale(path)
            _bind_private(server_socket, path)
            file_id = _file_id(path)
            server = await asyncio.get_running_loop().create_unix_server(
                lambda: StreamSocket(self._marks, connected), sock=server_socket, backlog=BACKLOG, start_serving=False
            )
            listener = StreamListener(url, server, on_close)
            self._sockets.add_listener(listener)
            await listener.start()
        except OSError as error:
            server_socket.close()
            raise Conflict(f"cannot listen on {url}: {reason(error)}", hint="choose another path") from error
        return listener

    def _random_socket_name(self) -> str:
        return f"{self._random.getrandbits(48):012x}.sock"


def _check_path(path: str) -> str:
    try:
        length = len(os.fsencode(path))
    except UnicodeError as error:
        raise BadRequest(f"invalid path {path!r:.300}: {error}") from error
    if not path.startswith("/") or "\0" in path:
        raise BadRequest(f"unix://{path:.120} is not an absolute path", hint="e.g. unix:///run/x.sock")
    if length > MAX_PATH_BYTES:
        raise BadRequest(
            f"the path of unix://{path:.120} has {length} bytes (at most {MAX_PATH_BYTES})",
            hint="choose a shorter directory (plugin option unix.directory)",
        )
    return path


def _bind_private(server_socket: sockets.socket, path: str) -> None:
    """Bind with mode 0600. Raises OSError."""
    mask = os.umask(0o177)
    try:
        server_socket.bind(path)
    finally:
        os.umask(mask)


def _file_id(path: str) -> tuple[int, int] | None:
    """Return the device and the inode of a file, or None."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _remove_stale(path: str) -> None:
    """Remove a socket file without a listener. Other files are kept, so that `bind` fails.

    Raises OSError if the path cannot be read.
    """
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return
    except FileNotFoundError:
        return
    with sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM) as probe:
        # Unix sockets connect immediately or fail, so the event loop is not blocked.
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink(missing_ok=True)
        except OSError:
            # A full backlog, or a socket of another user: there is a listener.
            return


def create(options: UnixOptions, context: DriverContext) -> Transport:
    """Return the transport. Raises OptionError."""
    return UnixTransport(options, context)


@hookimpl
def micro_transport() -> Driver[Transport]:
    """Return the description of the driver."""
    return Driver(
        name="unix", summary="Unix sockets, for processes of one machine.", options=UnixOptions, create=create
    )
