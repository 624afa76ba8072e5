"""Helpers of the commands that make calls: the settings, a client, and the request on the command line."""

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

from micro_core.cli.output import TERMINATED, UsageError, run_guarded
from micro_core.config import Settings, load_settings
from micro_core.contract.errors import TooLarge
from micro_core.rpc.client import Client
from micro_core.wire import limits

T = TypeVar("T")

SettingOptions = tuple[str | None, str | None, list[str] | None]
"""The values of --config, --plugins and --set."""


def load_client_settings(options: SettingOptions) -> Settings:
    """Load the settings of a command that makes calls. Raises ConfigError or OptionError if they are invalid."""
    config, plugins, sets = options
    return load_settings({"node.plugins": plugins}, sets=sets or [], config=config)


@contextlib.asynccontextmanager
async def open_client(settings: Settings, *, needs_registry: bool = True) -> AsyncIterator[Client]:
    """Create a client with the drivers of the settings, and close it when the context ends.

    Without a registry, the client can only make calls to a given address.
    """
    async with contextlib.AsyncExitStack() as stack:
        runtime = None
        if not needs_registry:
            from micro_core.drivers.runtime import build_runtime

            runtime = await build_runtime(settings, starts_registry=False)
            stack.push_async_callback(runtime.close)
        client = Client(settings=settings, runtime=runtime, name="micro")
        stack.push_async_callback(client.close)
        yield client


def run_command(work: Callable[[], Awaitable[None]], *, as_json: bool) -> None:
    """Run the coroutine of a command. Errors become messages and exit codes, as in `run_guarded`.

    SIGTERM cancels the coroutine, so that remote handlers are cancelled and registrations are withdrawn, and exits
    with 143. Raises typer.Exit when the command fails.
    """

    async def body() -> None:
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None
        is_terminated = False

        def terminate() -> None:
            nonlocal is_terminated
            is_terminated = True
            task.cancel()

        # Signal handlers are not available on every system, and only in the main thread.
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
            loop.add_signal_handler(signal.SIGTERM, terminate)
        try:
            await work()
        except asyncio.CancelledError:
            if is_terminated:
                raise typer.Exit(TERMINATED) from None
            raise

    run_guarded(lambda: asyncio.run(body()), as_json=as_json)


def read_body(arguments: Sequence[str] | None) -> Any:
    """Return the request given on the command line: JSON, `-` (standard input), `@file`, or key=value pairs.

    Raises UsageError if the request cannot be read or is invalid, TooLarge if it exceeds the limit of a body.
    """
    if not arguments:
        return {}
    if len(arguments) == 1 and arguments[0] == "-":
        return _parse(_bounded(sys.stdin.buffer.read(limits.MAX_BODY_BYTES + 1)))
    if len(arguments) == 1 and arguments[0].startswith("@"):
        try:
            with Path(arguments[0][1:]).expanduser().open("rb") as file:
                return _parse(_bounded(file.read(limits.MAX_BODY_BYTES + 1)))
        except OSError as error:
            raise UsageError(f"cannot read {arguments[0][1:]}: {error.strerror}") from error
    joined = " ".join(arguments)
    if joined.lstrip()[:1] in ("{", "[", '"') or "=" not in arguments[0]:
        return _parse(joined)
    return dict(_pair(argument) for argument in arguments)


async def read_items(arguments: Sequence[str] | None) -> AsyncIterator[Any]:
    """Yield the items to send on a stream: each line of standard input for `-`, otherwise the one request.

    Raises UsageError if an item is invalid, TooLarge if it exceeds the limit of a body.
    """
    if arguments is None or list(arguments) != ["-"]:
        yield read_body(arguments)
        return
    from micro_core.cli.stdin import lines

    async for line in lines():
        yield _parse(_bounded(line))


def check_timeout(timeout_s: float | None, default: T) -> float | T:
    """Return the value of --timeout, or `default` without one. Raises UsageError if it is out of range."""
    if timeout_s is None:
        return default
    if not 0 < timeout_s <= limits.MAX_TIMEOUT_S:
        raise UsageError(
            f"--timeout {timeout_s:g} is out of range (more than 0 and at most {limits.MAX_TIMEOUT_S:g} seconds)"
        )
    return timeout_s


def parse_pairs(arguments: Sequence[str] | None) -> dict[str, str]:
    """Return key=value arguments as a dict. Raises UsageError if an argument has no `=` or no key."""
    found = {}
    for argument in arguments or ():
        key, separator, value = argument.partition("=")
        if not separator or not key:
            raise UsageError(f"{argument!r} is not key=value")
        found[key] = value
    return found


def _pair(argument: str) -> tuple[str, Any]:
    key, separator, text = argument.partition("=")
    if not separator or not key:
        raise UsageError(f"{argument!r} is not key=value", hint="or pass the whole request as JSON")
    try:
        return key, json.loads(text)
    except ValueError:
        return key, text


def _parse(text: str | bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"the request is not valid JSON: {error}", hint="""use JSON, e.g. '{"name": "John"}', or name=John"""
        ) from error


def _bounded(data: bytes) -> bytes:
    if len(data) > limits.MAX_BODY_BYTES:
        raise TooLarge(f"the request is larger than {limits.MAX_BODY_BYTES} bytes")
    return data
