"""Lines of standard input as they come, without holding up what else runs."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import AsyncIterator
from concurrent.futures import CancelledError

from micro_core.cli.output import UsageError
from micro_core.contract.errors import TooLarge
from micro_core.wire import limits

MAX_WAITING_LINES = 16
CHUNK_BYTES = 64 * 1024


async def lines() -> AsyncIterator[bytes]:
    """Each line that is not blank, the last one with or without its end. Raises UsageError, TooLarge for a long one.

    Read in a thread of its own that nobody waits for: one that stands in a read of a terminal would keep the command
    from ending. It reads the descriptor, not the file: Python cannot end while a thread holds the file's lock.
    """
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[bytes] = asyncio.Queue(MAX_WAITING_LINES)
    try:
        descriptor = sys.stdin.fileno()
    except (AttributeError, OSError) as error:
        raise UsageError("stdin cannot be read") from error

    def read() -> None:
        try:
            for chunk in iter(lambda: os.read(descriptor, CHUNK_BYTES), b""):
                asyncio.run_coroutine_threadsafe(queue.put(chunk), loop).result()
            asyncio.run_coroutine_threadsafe(queue.put(b""), loop).result()
        except (RuntimeError, CancelledError):
            pass  # the loop has ended, and with it the interest

    threading.Thread(target=read, daemon=True, name="stdin").start()
    rest = b""
    while chunk := await queue.get():
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            if line.strip():
                yield line
        if len(rest) > limits.MAX_BODY_BYTES:
            raise TooLarge(f"a line of stdin is over the bound of {limits.MAX_BODY_BYTES} bytes")
    if rest.strip():
        yield rest
