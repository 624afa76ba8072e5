"""What client commands share: settings, a client, a body read from the command line."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from micro_core.cli.output import guarded
from micro_core.config import Settings, load_settings
from micro_core.rpc.client import Client
from micro_core.spec.errors import BadRequest, TooLarge
from micro_core.wire import limits

T = TypeVar("T")

Common = tuple[str | None, str | None, list[str] | None]
"""(--config, --plugins, --set)"""


def settings_of(common: Common) -> Settings:
    config, plugins, sets = common
    return load_settings({"node.plugins": plugins}, sets=sets or [], config=config)


@asynccontextmanager
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
        await work()

    guarded(lambda: asyncio.run(body()), as_json=as_json)


def read_body(words: Sequence[str] | None) -> Any:
    """The request on the command line: JSON, `-`, `@file`, or key=value pairs. Raises BadRequest, TooLarge."""
    if not words:
        return {}
    if len(words) == 1 and words[0] == "-":
        return _parse(_bounded(sys.stdin.buffer.read(limits.MAX_BODY_BYTES + 1)))
    if len(words) == 1 and words[0].startswith("@"):
        try:
            with Path(words[0][1:]).expanduser().open("rb") as file:
                return _parse(_bounded(file.read(limits.MAX_BODY_BYTES + 1)))
        except OSError as error:
            raise BadRequest(f"cannot read {words[0][1:]}: {error.strerror}") from error
    joined = " ".join(words)
    if joined.lstrip()[:1] in ("{", "[", '"') or "=" not in words[0]:
        return _parse(joined)
    return dict(_pair(word) for word in words)


def pairs(words: Sequence[str] | None) -> dict[str, str]:
    """`key=value` words as a map of texts. Raises BadRequest."""
    found = {}
    for word in words or ():
        key, separator, value = word.partition("=")
        if not separator or not key:
            raise BadRequest(f"{word!r} is not key=value")
        found[key] = value
    return found


def _pair(word: str) -> tuple[str, Any]:
    key, separator, text = word.partition("=")
    if not separator or not key:
        raise BadRequest(f"{word!r} is not key=value", hint="or give the whole request as JSON")
    try:
        return key, json.loads(text)
    except ValueError:
        return key, text


def _parse(text: str | bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadRequest(
            f"the request is not JSON: {error}", hint="""as in '{"name": "John"}', or name=John"""
        ) from error


def _bounded(data: bytes) -> bytes:
    if len(data) > limits.MAX_BODY_BYTES:
        raise TooLarge(f"the request is over the bound of {limits.MAX_BODY_BYTES} bytes")
    return data
