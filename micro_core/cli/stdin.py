"""Reads the lines of standard input without blocking the event loop."""

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

MAX_WAITING_CHUNKS = 16
CHUNK_BYTES = 64 * 1024


async def lines() -> AsyncIterator[bytes]:
    """Yield each line that is not blank, including a last line without a newline.

    Raises UsageError if standard input cannot be read, TooLarge if a line exceeds the limit of a body.

    A daemon thread reads the input and is never joined: a thread that is blocked in a read of a terminal would
    otherwise keep the command from exiting. The thread reads the file descriptor instead of `sys.stdin`, because
    Python cannot exit while a thread holds the lock of that object.
    """
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[bytes] = asyncio.Queue(MAX_WAITING_CHUNKS)
    try:
        descriptor = sys.stdin.fileno()
    except (AttributeError, OSError) as error:
        raise UsageError("cannot read standard input") from error

    def read() -> None:
        try:
            for chunk in iter(lambda: os.read(descriptor, CHUNK_BYTES), b""):
                asyncio.run_coroutine_threadsafe(queue.put(chunk), loop).result()
            asyncio.run_coroutine_threadsafe(queue.put(b""), loop).result()
        except (RuntimeError, CancelledError):
            pass  # The loop is closed: the command is exiting.

    threading.Thread(target=read, daemon=True, name="stdin").start()
    rest = b""
    while chunk := await queue.get():
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            if line.strip():
                yield line
        if len(rest) > limits.MAX_BODY_BYTES:
            raise TooLarge(f"a line of standard input is larger than {limits.MAX_BODY_BYTES} bytes")
    if rest.strip():
        yield rest
