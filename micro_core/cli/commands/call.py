"""`micro call`, `stream`, `publish` and `subscribe`."""

from __future__ import annotations

from typing import Annotated

import typer

from micro_core.cli.options import (
    Address,
    Body,
    Config,
    Endpoint,
    Json,
    Metadata,
    Plugins,
    Service,
    Sets,
    StreamBody,
    StreamTimeout,
    Timeout,
    Topic,
)


def register(app: typer.Typer) -> None:
    """Add the four commands to `app`."""
    for command in (call, stream, publish, subscribe):
        app.command()(command)


def call(
    service: Service,
    endpoint: Endpoint,
    body: Body = None,
    address: Address = None,
    timeout: Timeout = None,
    metadata: Metadata = None,
    config: Config = None,
    plugins: Plugins = None,
    sets: Sets = None,
    json: Json = False,
) -> None:
    """Call an endpoint and print its response as JSON."""
    from micro_core.cli.call import call_service

    call_service(service, endpoint, body, address, timeout, metadata, (config, plugins, sets), json)


def stream(
    service: Service,
    endpoint: Endpoint,
    body: StreamBody = None,
    address: Address = None,
    timeout: StreamTimeout = None,
    metadata: Metadata = None,
    config: Config = None,
    plugins: Plugins = None,
    sets: Sets = None,
    json: Json = False,
) -> None:
    """Call an endpoint and print each item. Works for endpoints of any kind, with one line of JSON per item.

    With -, each line of standard input is sent as one item, as soon as it is read. The end of the input ends the
    request.
    """
    from micro_core.cli.call import stream_service

    stream_service(service, endpoint, body, address, timeout, metadata, (config, plugins, sets), json)


def publish(
    topic: Topic,
    body: Body = None,
    config: Config = None,
    plugins: Plugins = None,
    sets: Sets = None,
    json: Json = False,
) -> None:
    """Publish one message to a topic."""
    from micro_core.cli.call import publish_message

    publish_message(topic, body, (config, plugins, sets), json)


def subscribe(
    topic: Topic,
    queue: Annotated[
        str, typer.Option(help="Queue group: each message is delivered to one subscriber of the group.")
    ] = "",
    count: Annotated[int, typer.Option(help="Exit after this number of messages. 0 means no limit.")] = 0,
    config: Config = None,
    plugins: Plugins = None,
    sets: Sets = None,
    json: Json = False,
) -> None:
    """Print the messages of a topic until Ctrl-C. Each message is one line of JSON."""
    from micro_core.cli.call import subscribe_to

    subscribe_to(topic, queue, count, (config, plugins, sets), json)
