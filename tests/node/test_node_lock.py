"""The lock allows one running node per name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from micro_core.contract.errors import ConfigError, Conflict
from micro_core.node.node_lock import NodeLock

HOLDER = """
import asyncio, sys
from pathlib import Path
from micro_core.node.node_lock import NodeLock
lock = NodeLock(Path(sys.argv[1]), "eu-1")
asyncio.run(lock.acquire())
print("held", flush=True)
sys.stdin.read()
"""


def hold(path: Path) -> subprocess.Popen[str]:
    """Start another process that holds the lock."""
    command = [sys.executable, "-c", HOLDER, str(path)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


async def test_second_process_is_refused_until_the_first_one_ends(tmp_path: Path) -> None:
    path = tmp_path / "eu-1.lock"
    holder = hold(path)
    assert holder.stdin is not None
    assert holder.stdout is not None
    lock = NodeLock(path, "eu-1")
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(Conflict, match=f"eu-1 runs on this machine already, as process {holder.pid}") as caught:
            await lock.acquire()
        assert "--name" in caught.value.hint
    finally:
        holder.kill()  # Like a crash: nothing is released explicitly.
        holder.communicate()
    await lock.acquire()
    assert path.read_text() == f"{os.getpid()}\n"
    await lock.release()


async def test_released_lock_is_free_and_release_may_be_repeated(tmp_path: Path) -> None:
    first, second = (NodeLock(tmp_path / "a.lock", "a") for _ in range(2))
    await first.release()
    await first.acquire()
    with pytest.raises(Conflict):
        await second.acquire()
    await first.release()
    await first.release()
    await second.acquire()
    await second.release()


async def test_path_that_cannot_be_written_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot write"):
        await NodeLock(tmp_path / "not there" / "a.lock", "a").acquire()
