"""What client commands share: settings, a client, a body read from the command line."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import typer

from micro_core.cli.output import TERMINATED, UsageError, guarded
from micro_core.config import Settings, load_settings
from micro_core.contract.errors import TooLarge
from micro_core.rpc.client import Client
from micro_core.wire import limits

T = TypeVar("T")

Common = tuple[str | None, str | None, list[str] | None]
"""(--config, --plugins, --set)"""


def settings_of(common: Common) -> Settings:
    config, plugins, sets = common
    return load_settings({"node.plugins": plugins}, sets=sets or [], config=config)


@contextlib.asynccontextmanager
async def client_of(settings: Settings) -> AsyncIterator[Client]:
    """A client with the settings' drivers, closed at the end."""
    client = Client(settings=settings, name="micro")
    try:
        yield client
    finally:
        await client.close()


def run_command(work: Callable[[], Awaitable[None]], *, as_json: bool) -> None:
    """Run a command's coroutine to its end, errors as sentences."""

    async def body() -> None:
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None
        is_terminated = False

        def terminate() -> None:
            # As an interrupt does: what runs elsewhere for us is cancelled, what is registered is withdrawn.
            nonlocal is_terminated
            is_terminated = True
            task.cancel()

        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):  # not on every system or thread
            loop.add_signal_handler(signal.SIGTERM, terminate)
        try:
            await work()
        except asyncio.CancelledError:
            if is_terminated:
                raise typer.Exit(TERMINATED) from None
            raise

    guarded(lambda: asyncio.run(body()), as_json=as_json)


def read_body(words: Sequence[str] | None) -> Any:
    """The request on the command line: JSON, `-`, `@file`, or key=value pairs. Raises UsageError, TooLarge."""
    if not words:
        return {}
    if len(words) == 1 and words[0] == "-":
        return _parse(_bounded(sys.stdin.buffer.read(limits.MAX_BODY_BYTES + 1)))
    if len(words) == 1 and words[0].startswith("@"):
        try:
            with Path(words[0][1:]).expanduser().open("rb") as file:
                return _parse(_bounded(file.read(limits.MAX_BODY_BYTES + 1)))
        except OSError as error:
            raise UsageError(f"cannot read {words[0][1:]}: {error.strerror}") from error
    joined = " ".join(words)
    if joined.lstrip()[:1] in ("{", "[", '"') or "=" not in words[0]:
        return _parse(joined)
    return dict(_pair(word) for word in words)


async def read_items(words: Sequence[str] | None) -> AsyncIterator[Any]:
    """What a stream is sent: for `-` each line of stdin, as it comes; else the one request. Raises UsageError."""
    if words is None or list(words) != ["-"]:
        yield read_body(words)
        return
    from micro_core.cli.stdin import lines

    async for line in lines():
        yield _parse(_bounded(line))


def seconds(timeout: float | None, default: T) -> float | T:
    """A `--timeout`, or what stands for it. Raises UsageError."""
    if timeout is None:
        return default
    if not 0 < timeout <= limits.MAX_TIMEOUT_S:
        raise UsageError(f"--timeout {timeout:g}: more than 0 and at most {limits.MAX_TIMEOUT_S:g} seconds")
    return timeout


def pairs(words: Sequence[str] | None) -> dict[str, str]:
    """`key=value` words as a map of texts. Raises UsageError."""
    found = {}
    for word in words or ():
        key, separator, value = word.partition("=")
        if not separator or not key:
            raise UsageError(f"{word!r} is not key=value")
        found[key] = value
    return found


def _pair(word: str) -> tuple[str, Any]:
    key, separator, text = word.partition("=")
    if not separator or not key:
        raise UsageError(f"{word!r} is not key=value", hint="or give the whole request as JSON")
    try:
        return key, json.loads(text)
    except ValueError:
        return key, text


def _parse(text: str | bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"the request is not JSON: {error}", hint="""as in '{"name": "John"}', or name=John"""
        ) from error


def _bounded(data: bytes) -> bytes:
    if len(data) > limits.MAX_BODY_BYTES:
        raise TooLarge(f"the request is over the bound of {limits.MAX_BODY_BYTES} bytes")
    return data
