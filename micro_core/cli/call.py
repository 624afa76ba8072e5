"""The bodies of `micro call`, `stream`, `publish` and `subscribe`."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Sequence
from typing import Any

from micro_core.cli.client import (
    SettingOptions,
    check_timeout,
    load_client_settings,
    open_client,
    parse_pairs,
    read_body,
    read_items,
    run_command,
)
from micro_core.cli.output import UsageError, check_argument, note, show_json, show_value
from micro_core.contract.errors import Ended, MicroError, TooLarge
from micro_core.contract.names import check_endpoint_name, check_service_name, check_topic
from micro_core.rpc.client_call import ClientStream


def call_service(
    service: str,
    endpoint: str,
    body: Sequence[str] | None,
    address: str | None,
    timeout_s: float | None,
    metadata: Sequence[str] | None,
    options: SettingOptions,
    as_json: bool,
) -> None:
    """Call an endpoint and print its response. Raises typer.Exit when the call fails."""

    async def work() -> None:
        settings = load_client_settings(options)
        check_argument(check_service_name, service)
        check_argument(check_endpoint_name, endpoint)
        request, deadline_s = read_body(body), check_timeout(timeout_s, settings.node.timeout)
        async with open_client(settings) as client:
            response = await client.call(
                service, endpoint, request, address=address, timeout_s=deadline_s, metadata=parse_pairs(metadata)
            )
        if as_json:
            show_json("micro.call/1", {"service": service, "endpoint": endpoint, "response": response})
        else:
            show_value(response)

    run_command(work, as_json=as_json)


def stream_service(
    service: str,
    endpoint: str,
    body: Sequence[str] | None,
    address: str | None,
    timeout_s: float | None,
    metadata: Sequence[str] | None,
    options: SettingOptions,
    as_json: bool,
) -> None:
    """Open a stream, send the items of `body` and print each item of the response. Raises typer.Exit on failure."""

    async def work() -> None:
        settings = load_client_settings(options)
        check_argument(check_service_name, service)
        check_argument(check_endpoint_name, endpoint)
        deadline_s, pairs = check_timeout(timeout_s, None), parse_pairs(metadata)
        async with open_client(settings) as client:
            stream = client.stream(service, endpoint, address=address, timeout_s=deadline_s, metadata=pairs)
            async with stream, send_items(stream, body):
                async for item in stream:
                    if as_json:
                        show_json("micro.stream/1", {"item": item})
                    else:
                        show_value(item)

    run_command(work, as_json=as_json)


@contextlib.asynccontextmanager
async def send_items(stream: ClientStream, body: Sequence[str] | None) -> AsyncIterator[None]:
    """Send the items of `body` in the background while the body of the `async with` statement receives.

    If an item is invalid, the stream is cancelled and the error is raised at the end of the context.
    """

    async def send() -> None:
        try:
            async for item in read_items(body):
                await stream.send(item)
            await stream.end()
        except Exception as error:
            # A call that has ended raises the same error to the receiver. Any other error comes from the items.
            if not isinstance(error, MicroError) or isinstance(error, (UsageError, TooLarge)):
                stream.cancel()
                raise

    task = asyncio.get_running_loop().create_task(send())
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


def publish_message(topic: str, body: Sequence[str] | None, options: SettingOptions, as_json: bool) -> None:
    """Publish one message and print its id. Raises typer.Exit when this fails."""

    async def work() -> None:
        settings = load_client_settings(options)
        check_argument(check_topic, topic)
        message = read_body(body)
        async with open_client(settings) as client:
            message_id = await client.publish(topic, message, timeout_s=settings.node.timeout)
        if as_json:
            show_json("micro.publish/1", {"topic": topic, "id": message_id})
        else:
            note(f"published {message_id}")

    run_command(work, as_json=as_json)


def subscribe_to(topic: str, queue: str, count: int, options: SettingOptions, as_json: bool) -> None:
    """Print the messages of a topic until a signal, or until `count` messages if it is not 0.

    Raises typer.Exit when this fails.
    """
    from micro_core.rpc.service import Service

    async def work() -> None:
        check_argument(check_topic, topic)
        # Nodes learn of a subscription from the registry record of a service, so the command registers a temporary one.
        name = f"micro.cli.subscriber.{secrets.token_hex(4)}"
        service = Service(name, settings=load_client_settings(options))
        done = asyncio.Event()
        received = 0

        @service.subscriber(topic, queue=queue)
        async def show(message: Any) -> None:
            nonlocal received
            if count and received >= count:
                return
            received += 1
            if as_json:
                show_json("micro.message/1", {"topic": topic, "message": message})
            else:
                show_value(message)
            if count and received >= count:
                done.set()

        try:
            await service.start()
            note(f"subscribed to {topic}; press Ctrl-C to stop")
            await done.wait()
        finally:
            with contextlib.suppress(Ended):
                await service.stop(drain_s=0.5)

    run_command(work, as_json=as_json)
