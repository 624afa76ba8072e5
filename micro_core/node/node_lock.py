"""A lock that allows one running node per name.

Two nodes with the same key would close each other's links again and again, without an error message.
"""

from __future__ import annotations

import os
from pathlib import Path

from micro_core.contract.errors import ConfigError, Conflict


class NodeLock:
    """A lock on the file `path`. The operating system releases it when the process ends, also after a crash.

    `name` is the name of the node, for the error. On systems without POSIX file locks, the lock has no effect.
    """

    def __init__(self, path: Path, name: str) -> None:
        self._path = path
        self._name = name
        self._descriptor: int | None = None

    async def acquire(self) -> None:
        """Acquire the lock without waiting.

        Raises:
            Conflict: another process runs this node.
            ConfigError: the file cannot be created.
        """
        try:
            import fcntl
        except ImportError:
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
                f"node {self._name} runs on this machine already"
                + (f", as process {holder}" if holder.isdigit() else ""),
                hint="stop it, or choose another name with --name",
            ) from error
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        self._descriptor = descriptor

    async def release(self) -> None:
        """Release the lock. Safe to call twice, and without `acquire`.

        The file is kept, because another process may be opening it.
        """
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
