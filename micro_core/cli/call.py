"""`micro call`, `stream`, `publish`, `subscribe`."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Sequence
from typing import Any

from micro_core.cli.client import (
    Common,
    client_of,
    pairs,
    read_body,
    read_items,
    run_command,
    seconds,
    settings_of,
)
from micro_core.cli.output import UsageError, checked, note, show_json, show_value
from micro_core.contract.errors import Ended, MicroError, TooLarge
from micro_core.contract.names import check_endpoint_name, check_service_name, check_topic
from micro_core.rpc.client_call import ClientStream


def call_service(
    service: str,
    endpoint: str,
    words: Sequence[str] | None,
    address: str | None,
    timeout_s: float | None,
    metadata: Sequence[str] | None,
    common: Common,
    as_json: bool,
) -> None:
    async def work() -> None:
        settings = settings_of(common)
        checked(check_service_name, service)
        checked(check_endpoint_name, endpoint)
        request, deadline_s = read_body(words), seconds(timeout_s, settings.node.timeout)
        async with client_of(settings) as client:
            answer = await client.call(
                service, endpoint, request, address=address, timeout_s=deadline_s, metadata=pairs(metadata)
            )
        if as_json:
            show_json("micro.call/1", {"service": service, "endpoint": endpoint, "response": answer})
        else:
            show_value(answer)

    run_command(work, as_json=as_json)


def stream_service(
    service: str,
    endpoint: str,
    words: Sequence[str] | None,
    address: str | None,
    timeout_s: float | None,
    metadata: Sequence[str] | None,
    common: Common,
    as_json: bool,
) -> None:
    async def work() -> None:
        settings = settings_of(common)
        checked(check_service_name, service)
        checked(check_endpoint_name, endpoint)
        deadline_s, along = seconds(timeout_s, None), pairs(metadata)
        async with client_of(settings) as client:
            stream = client.stream(service, endpoint, address=address, timeout_s=deadline_s, metadata=along)
            async with stream, feeding(stream, words):
                async for item in stream:
                    if as_json:
                        show_json("micro.stream/1", {"item": item})
                    else:
                        show_value(item)

    run_command(work, as_json=as_json)


@contextlib.asynccontextmanager
async def feeding(stream: ClientStream, words: Sequence[str] | None) -> AsyncIterator[None]:
    """Sends the items that `words` name while the body receives. What is wrong with them is raised at the end."""

    async def feed() -> None:
        try:
            async for item in read_items(words):
                await stream.send(item)
            await stream.end()
        except Exception as error:
            # Where the call itself has ended, the body hears of it; all else is wrong here, and ends the call.
            if not isinstance(error, MicroError) or isinstance(error, (UsageError, TooLarge)):
                stream.cancel()
                raise

    task = asyncio.get_running_loop().create_task(feed())
    try:
        yield
    except MicroError:
        if not _has_failed(task):
            raise
    finally:
        task.cancel()
        await asyncio.wait([task])
    if _has_failed(task):
        task.result()


def _has_failed(task: asyncio.Task[None]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is not None


def publish_message(topic: str, words: Sequence[str] | None, common: Common, as_json: bool) -> None:
    async def work() -> None:
        settings = settings_of(common)
        checked(check_topic, topic)
        message = read_body(words)
        async with client_of(settings) as client:
            message_id = await client.publish(topic, message, timeout_s=settings.node.timeout)
        if as_json:
            show_json("micro.publish/1", {"topic": topic, "id": message_id})
        else:
            note(f"published {message_id}")

    run_command(work, as_json=as_json)


def subscribe_to(topic: str, queue: str, count: int, common: Common, as_json: bool) -> None:
    from micro_core.rpc.service import Service

    async def work() -> None:
        checked(check_topic, topic)
        # A service of its own for as long as it runs: its record is what tells the network of the interest.
        name = f"micro.cli.subscriber.{secrets.token_hex(4)}"
        service = Service(name, settings=settings_of(common))
        done = asyncio.Event()
        seen = 0

        @service.subscriber(topic, queue=queue)
        async def show(message: Any) -> None:
            nonlocal seen
            if count and seen >= count:
                return
            seen += 1
            if as_json:
                show_json("micro.message/1", {"topic": topic, "message": message})
            else:
                show_value(message)
            if count and seen >= count:
                done.set()

        try:
            await service.start()
            note(f"subscribed to {topic}; Ctrl-C ends")
            await done.wait()
        finally:
            with contextlib.suppress(Ended):
                await service.stop(drain_s=0.5)

    run_command(work, as_json=as_json)
