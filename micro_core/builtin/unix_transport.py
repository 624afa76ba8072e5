"""The transport role over Unix sockets: one machine, guarded by file permissions."""

from __future__ import annotations

import asyncio
import os
import socket as sockets
import stat
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from micro_core.builtin.stream_socket import StreamListener, StreamSocket, StreamSockets
from micro_core.spec import (
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
from micro_core.spec.transport import Listener

SCHEME = "unix"

MAX_PATH_BYTES = 103
"""sockaddr_un holds 108 bytes on Linux and 104 on macOS and the BSDs, the terminating zero included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnixOptions:
    """Options of the Unix transport."""

    directory: str = option("", "Where sockets without a name are made; empty means the state directory.")
    max_connections: int = option(10_000, "Accepted connections at once; more are refused and counted.")


class UnixTransport:
    """Implements `micro_core.spec.transport.Transport`."""

    scheme = SCHEME

    def __init__(self, options: UnixOptions, context: DriverContext) -> None:
        self._directory = Path(options.directory or context.state_dir)
        self._random = context.random
        self._sockets = StreamSockets(options.max_connections, context.counters, "unix_connections_refused")

    async def start(self) -> None:
        """Nothing to connect to."""

    async def close(self) -> None:
        await self._sockets.close()

    async def dial(self, address: str, *, timeout_s: float) -> Socket:
        path = _checked(address.removeprefix("unix://"))
        try:
            async with asyncio.timeout(timeout_s):
                _, socket = await asyncio.get_running_loop().create_unix_connection(StreamSocket, path)
        except TimeoutError as error:
            raise Unreachable(f"{address} did not answer within {timeout_s:.3g} s", hint="is it running?") from error
        except OSError as error:
            raise Unreachable(
                f"cannot connect to {address}: {error.strerror or error}", hint="is it running?"
            ) from error
        socket.local = socket.remote = address
        self._sockets.add(socket)
        return socket

    async def listen(self, address: str, accept: Callable[[Socket], None]) -> Listener:
        path = _checked(address.removeprefix("unix://") or str(self._directory / self._new_name()))
        _remove_stale(path)
        shown = f"unix://{path}"

        def connected(socket: StreamSocket) -> None:
            socket.local = socket.remote = shown
            if self._sockets.admit(socket):
                accept(socket)

        # Bound here, not by asyncio: the mode must stand before anybody can connect.
        door = sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM)
        try:
            mask = os.umask(0o177)
            try:
                door.bind(path)
            finally:
                os.umask(mask)
            server = await asyncio.get_running_loop().create_unix_server(lambda: StreamSocket(connected), sock=door)
        except OSError as error:
            door.close()
            raise Conflict(
                f"cannot listen on {shown}: {error.strerror or error}", hint="choose another path"
            ) from error
        listener = StreamListener(shown, server, partial(Path(path).unlink, missing_ok=True))
        self._sockets.add_listener(listener)
        return listener

    def _new_name(self) -> str:
        return f"{self._random.getrandbits(48):012x}.sock"


def _checked(path: str) -> str:
    length = len(os.fsencode(path))
    if not path.startswith("/") or "\0" in path or length > MAX_PATH_BYTES:
        raise BadRequest(
            f"unix://{path:.120} is not an absolute path of at most {MAX_PATH_BYTES} bytes",
            hint="choose a shorter directory (plugin option unix.directory)",
        )
    return path


def _remove_stale(path: str) -> None:
    """Remove a socket file behind which nobody listens; anything else is left, and the bind will say so."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return
    except FileNotFoundError:
        return
    with sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink(missing_ok=True)
        except OSError:
            return


def create(options: UnixOptions, context: DriverContext) -> Transport:
    return UnixTransport(options, context)


@hookimpl
def micro_transport() -> Driver[Transport]:
    return Driver(name="unix", summary="Sockets in the file system: one machine.", options=UnixOptions, create=create)
