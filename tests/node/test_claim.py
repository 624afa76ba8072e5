"""One node of a name at a time on a machine."""

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
claim = NodeLock(Path(sys.argv[1]), "eu-1")
asyncio.run(claim.take())
print("held", flush=True)
sys.stdin.read()
"""


def hold(path: Path) -> subprocess.Popen[str]:
    """Another process that runs the node."""
    command = [sys.executable, "-c", HOLDER, str(path)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


async def test_a_second_process_is_told_who_runs_the_node_and_may_once_that_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "eu-1.lock"
    holder = hold(path)
    assert holder.stdin is not None
    assert holder.stdout is not None
    claim = NodeLock(path, "eu-1")
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(Conflict, match=f"eu-1 runs on this machine already, as process {holder.pid}") as caught:
            await claim.take()
        assert "--name" in caught.value.hint
    finally:
        holder.kill()  # as a crash would: nothing is cleaned up
        holder.communicate()
    await claim.take()
    assert path.read_text() == f"{os.getpid()}\n"
    await claim.release()


async def test_a_claim_that_was_released_is_free_and_releasing_twice_harms_nobody(tmp_path: Path) -> None:
    first, second = (NodeLock(tmp_path / "a.lock", "a") for _ in range(2))
    await first.release()
    await first.take()
    with pytest.raises(Conflict):
        await second.take()
    await first.release()
    await first.release()
    await second.take()
    await second.release()


async def test_a_place_that_cannot_be_written_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot write"):
        await NodeLock(tmp_path / "not there" / "a.lock", "a").take()
