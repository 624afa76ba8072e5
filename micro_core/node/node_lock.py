"""One node of a name at a time: two with the same key would take each other's links away, for ever and in silence."""

from __future__ import annotations

import os
from pathlib import Path

from micro_core.contract.errors import ConfigError, Conflict


class NodeLock:
    """A lock on a file, held as long as the node runs; the system lets go of it when the process ends, however it does.

    `name` is the node's. Where the system has no such locks, nothing is claimed.
    """

    def __init__(self, path: Path, name: str) -> None:
        self._path = path
        self._name = name
        self._descriptor: int | None = None

    async def take(self) -> None:
        """Raises Conflict when another process runs this node, ConfigError when the file cannot be made."""
        try:
            import fcntl
        except ImportError:  # no POSIX
            return
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(f"cannot write {self._path}: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(descriptor, 20).decode(errors="replace").strip()
            os.close(descriptor)
            raise Conflict(
                f"a node called {self._name} runs on this machine already"
                + (f", as process {holder}" if holder.isdigit() else ""),
                hint="stop it, or give this one another name: --name",
            ) from error
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        self._descriptor = descriptor

    async def release(self) -> None:
        """Let go; safe to call twice, and without `take`. The file stays: removing it would race with the next."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
