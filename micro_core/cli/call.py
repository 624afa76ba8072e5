"""`micro call`, `stream`, `publish`, `subscribe`."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Sequence
from typing import Any

from micro_core.cli.client import Common, client_of, pairs, read_body, run_command, settings_of
from micro_core.cli.output import note, show_json, show_value
from micro_core.spec.errors import Ended
from micro_core.wire.header import CallMode


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
        async with client_of(settings) as client:
            answer = await client.call(
                service,
                endpoint,
                read_body(words),
                address=address,
                timeout_s=timeout_s or settings.node.timeout,
                metadata=pairs(metadata),
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
        async with client_of(settings) as client:
            stream = client.stream(
                service,
                endpoint,
                read_body(words),
                address=address,
                timeout_s=timeout_s,
                metadata=pairs(metadata),
                mode=CallMode.SERVER_STREAM,
            )
            async with stream:
                async for item in stream:
                    if as_json:
                        show_json("micro.stream/1", {"item": item})
                    else:
                        show_value(item)

    run_command(work, as_json=as_json)


def publish_message(topic: str, words: Sequence[str] | None, common: Common, as_json: bool) -> None:
    async def work() -> None:
        settings = settings_of(common)
        async with client_of(settings) as client:
            message_id = await client.publish(topic, read_body(words), timeout_s=settings.node.timeout)
        if as_json:
            show_json("micro.publish/1", {"topic": topic, "id": message_id})
        else:
            note(f"published {message_id}")

    run_command(work, as_json=as_json)


def subscribe_to(topic: str, queue: str, count: int, common: Common, as_json: bool) -> None:
    from micro_core.rpc.service import Service

    async def work() -> None:
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
