"""Metrics of calls and nodes over HTTP, and faults of the endpoint."""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from micro_prometheus_hooks import micro_commands
from micro_prometheus_hooks.calls import OTHER, CallMetrics
from micro_prometheus_hooks.endpoint import MAX_CONNECTIONS, MAX_REQUEST_BYTES, Endpoint
from micro_prometheus_hooks.node_metrics import RouteCounts
from micro_prometheus_hooks.options import PrometheusOptions
from prometheus_client import CollectorRegistry
from typer.testing import CliRunner

from micro_core import Client, Service
from micro_core.builtin.table.memory import MemoryTable
from micro_core.config import load_settings
from micro_core.contract import (
    CallInfo,
    CountersInMemory,
    DriverContext,
    NotFound,
    Offer,
    OptionError,
    OriginRoute,
    Route,
)
from micro_core.drivers.runtime import Runtime, build_runtime
from micro_core.node.assembly import assemble
from micro_core.node.node import Node
from micro_core.testing import free_port


class ManualClock:
    """A clock that the test advances."""

    def __init__(self) -> None:
        self.time_s = 100.0

    def now(self) -> float:
        return self.time_s

    def wall(self) -> float:
        return time.time()


@pytest.fixture
def counters() -> CountersInMemory:
    return CountersInMemory()


@pytest.fixture
def context(tmp_path: Path, counters: CountersInMemory) -> DriverContext:
    return DriverContext(
        node_id="a" * 32,
        network="go.micro",
        site="eu",
        state_dir=str(tmp_path),
        clock=ManualClock(),
        random=random.Random(1),
        logger=logging.getLogger("test"),
        counters=counters,
    )


async def fetch(address: str, request: bytes = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n") -> str:
    """Return the whole response as received by Prometheus."""
    host, port = address.removeprefix("http://").partition("/")[0].rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request)
    try:
        async with asyncio.timeout(10):
            return (await reader.read()).decode()
    finally:
        writer.close()


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(10):
        while not await condition():
            await asyncio.sleep(0.02)


# ------------------------------------------------------------------------------------- calls


def info(service: str = "greeter", endpoint: str = "Say.Hello") -> CallInfo:
    return CallInfo(side="server", service=service, endpoint=endpoint, mode=0, metadata={}, request=None, timeout_s=5.0)


@pytest.mark.parametrize(
    ("error", "code"),
    [(None, "200"), (NotFound("x"), "404"), (KeyError("x"), "500"), (asyncio.CancelledError(), "499")],
)
async def test_call_is_measured_with_its_result_code(error: BaseException | None, code: str) -> None:
    registry, clock = CollectorRegistry(), ManualClock()
    calls = CallMetrics(registry, clock, 10)

    async def handler(_: CallInfo) -> str:
        clock.time_s += 0.3
        if error is not None:
            raise error
        return "hello"

    if error is None:
        assert await calls.measure(info(), handler) == "hello"
    else:
        with pytest.raises(type(error)):
            await calls.measure(info(), handler)
    labels = {"side": "server", "service": "greeter", "endpoint": "Say.Hello", "code": code}
    assert registry.get_sample_value("micro_call_seconds_count", labels) == 1
    assert registry.get_sample_value("micro_call_seconds_sum", labels) == pytest.approx(0.3)


async def test_number_of_label_sets_is_limited() -> None:
    registry = CollectorRegistry()
    calls = CallMetrics(registry, ManualClock(), 2)

    async def handler(_: CallInfo) -> None: ...

    for number in range(100):
        await calls.measure(info(endpoint=f"Unknown.Name{number}"), handler)
    samples = [sample for metric in registry.collect() for sample in metric.samples if sample.name.endswith("_count")]
    assert sorted((sample.labels["endpoint"], sample.value) for sample in samples) == [
        (OTHER, 98),
        ("Unknown.Name0", 1),
        ("Unknown.Name1", 1),
    ]


# ---------------------------------------------------------------------------------- over HTTP


@pytest.fixture
async def endpoint(context: DriverContext) -> AsyncIterator[Endpoint]:
    registry = CollectorRegistry()
    CallMetrics(registry, context.clock, 10)
    endpoint = Endpoint(registry, context)
    endpoint.open("127.0.0.1:0")
    yield endpoint
    endpoint.close()
    endpoint.close()
    await asyncio.sleep(0)


async def test_closing_while_serving_does_not_fail(endpoint: Endpoint) -> None:
    assert (await fetch(endpoint.address)).startswith("HTTP/1.1 200 OK")
    task = endpoint._task
    assert task is not None
    endpoint.close()
    await asyncio.wait([task])
    assert task.cancelled()
    with pytest.raises(OSError, match=r"."):
        await fetch(endpoint.address)


async def test_prometheus_receives_metrics_and_other_requests_an_error(endpoint: Endpoint) -> None:
    response = await fetch(endpoint.address)
    assert response.startswith("HTTP/1.1 200 OK\r\n")
    assert "# TYPE micro_call_seconds histogram" in response
    request = b"GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: application/openmetrics-text; version=1.0.0\r\n\r\n"
    assert (await fetch(endpoint.address, request)).endswith("# EOF\n")
    assert (await fetch(endpoint.address, b"HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n")).endswith("\r\n\r\n")
    assert " 404 Not Found\r\n" in await fetch(endpoint.address, b"GET /etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n")
    assert " 405 " in await fetch(endpoint.address, b"DELETE /metrics HTTP/1.1\r\nHost: x\r\n\r\n")


@pytest.mark.parametrize(
    "request_bytes", [b"\x00\xff\r\n\r\n", b"GET " + b"x" * (2 * MAX_REQUEST_BYTES), b"GET / HT\r\n"]
)
async def test_invalid_request_is_not_answered_and_is_counted(
    endpoint: Endpoint, counters: CountersInMemory, request_bytes: bytes
) -> None:
    try:
        assert await fetch(endpoint.address, request_bytes) == ""
    except ConnectionError:
        # The server may also reset the connection.
        pass
    assert counters.values == {"prometheus_requests_failed": 1}
    assert "200 OK" in await fetch(endpoint.address)


async def test_connections_over_the_limit_are_refused_and_silent_ones_block_no_others(
    endpoint: Endpoint, counters: CountersInMemory
) -> None:
    host, port = endpoint.address.removeprefix("http://").partition("/")[0].rsplit(":", 1)
    silent = [await asyncio.open_connection(host, int(port)) for _ in range(MAX_CONNECTIONS + 1)]

    async def is_refused() -> bool:
        return counters.values.get("prometheus_connections_refused") == 1

    await until(is_refused)
    for _, writer in silent:
        writer.close()

    async def is_served() -> bool:
        try:
            return "200 OK" in await fetch(endpoint.address)
        except ConnectionError:
            return False

    await until(is_served)


# ------------------------------------------------------------------------ nodes and services


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MICRO_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)


def make_node(name: str, port: int, **settings: object) -> Node:
    flags = {f"node.{key}": value for key, value in settings.items()}
    return assemble(
        load_settings(
            {
                "node.plugins": "tunnel:memory,prometheus",
                "node.name": name,
                "node.site": name,
                "node.listen": name,
                **flags,
            },
            sets=[f"prometheus.listen=127.0.0.1:{port}"],
        )
    )


async def test_node_exports_its_identity_routes_counters_and_links() -> None:
    port = free_port()
    eu, us = make_node("eu", port), make_node("us", free_port(), nodes=("memory://eu",))
    await eu.start()
    await us.start()
    try:
        assert "hooks:prometheus" in eu.facts()["drivers"]
        url = f"http://127.0.0.1:{port}/metrics"

        async def is_linked() -> bool:
            return 'micro_link_up{driver="memory",name="us"' in await fetch(url)

        await until(is_linked)
        response = await fetch(url)
        assert f'micro_node_info{{id="{eu.node_id}",name="eu",network="go.micro",site="eu"}} 1.0' in response
        assert "process_resident_memory_bytes" in response

        async def shows_routes() -> bool:
            # Routes may change between the two.
            shown = await fetch(url)
            counts = {link: sum(route.link == link for route in eu.table.list()) for link in ("local", "network")}
            return all(f'micro_routes{{link="{link}"}} {count}.0' in shown for link, count in counts.items())

        await until(shows_routes)
        assert "micro_calls_in_flight 0.0" in response

        shown = await asyncio.to_thread(
            CliRunner().invoke, commands(), ["show", f"127.0.0.1:{port}", "--match", "_link_"]
        )
        assert shown.exit_code == 0
        assert all(line.startswith("micro_link_") for line in shown.stdout.splitlines())
        assert any(line.startswith("micro_link_bytes_total") for line in shown.stdout.splitlines())
    finally:
        await us.stop(drain=False)
        await eu.stop(drain=False)
    with pytest.raises(ConnectionError):
        await fetch(f"http://127.0.0.1:{port}/metrics")


async def test_port_in_use_does_not_prevent_the_node_from_starting(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        node = make_node("eu", taken.getsockname()[1])
        await node.start()
        assert node.counted()["prometheus_endpoint_failed"] == 1
        assert "cannot serve metrics" in caplog.text
        await node.stop(drain=False)


async def make_runtime(*sets: str) -> Runtime:
    return await build_runtime(
        load_settings({"node.plugins": "prometheus,registry:memory,transport:memory"}, sets=sets)
    )


async def test_service_exports_its_calls_at_the_configured_address() -> None:
    port = free_port()
    runtime = await make_runtime(f"prometheus.service_listen=127.0.0.1:{port}")
    service = Service("greeter", registry=runtime.registry, transport=runtime.transport)

    async def hello(name: str) -> str:
        return f"Hello {name}"

    service.endpoint("Say.Hello")(hello)
    service.server.intercept(runtime.interceptors("server"))
    await service.start()
    async with Client(registry=runtime.registry, transport=runtime.transport) as client:
        assert await client.call("greeter", "Say.Hello", "Ada") == "Hello Ada"
    response = await fetch(f"http://127.0.0.1:{port}/metrics")
    labels = '{code="200",endpoint="Say.Hello",service="greeter",side="server"}'
    assert f"micro_call_seconds_count{labels} 1.0" in response
    await service.stop()
    await runtime.close()


async def test_process_without_an_endpoint_does_not_measure_calls() -> None:
    runtime = await make_runtime()
    assert runtime.interceptors("client") == runtime.interceptors("server") == []
    await runtime.close()


# ------------------------------------------------------------------------- command, options


def commands() -> Any:
    ((name, make),) = micro_commands()
    assert name == "metrics"
    return make()


def test_command_gives_a_hint_if_no_metrics_are_served() -> None:
    done = CliRunner().invoke(commands(), ["show", f"127.0.0.1:{free_port()}"])
    assert (done.exit_code, done.stdout) == (6, "")
    assert "hint: start that process with MICRO_PLUGINS=prometheus" in done.stderr


@pytest.mark.parametrize("options", [{"max_series": 0}, {"listen": "9464x"}, {"service_listen": "host:port"}])
def test_invalid_options_are_rejected(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=next(iter(options))):
        PrometheusOptions(**options)


def test_number_of_routes_is_followed_through_all_kinds_of_changes() -> None:
    table = MemoryTable(logger=logging.getLogger("test"), counters=CountersInMemory())
    local = Route(service="a", address="x", gateway="", network="n", router="m", link="local", metric=0)
    whole = OriginRoute(origin="o", gateway="g", metric=1, network="n")
    partial = OriginRoute(origin="o", gateway="p", metric=1, network="n", services=frozenset({"a"}))
    table.put(local)
    table.put_origin_route(whole)
    table.change_offers("o", [Offer("a")])
    counts = RouteCounts(table)
    table.watch(counts.table_changed)

    def check() -> None:
        routes = table.list()
        assert counts.local == sum(route.link == "local" for route in routes)
        assert counts.network == sum(route.link == "network" for route in routes)

    check()
    changes: list[Callable[[], object]] = [
        lambda: table.put(replace(local, address="y")),
        lambda: table.delete(local.key),
        lambda: table.put_origin_route(replace(whole, metric=2)),
        lambda: table.put_origin_route(partial),
        lambda: table.change_offers("o", [Offer("a", ("2",)), Offer("b"), Offer("c")]),
        lambda: table.put_origin_route(replace(partial, services=frozenset({"a", "b"}))),
        lambda: table.put_origin_route(replace(partial, services=frozenset({"a", "d"}))),
        lambda: table.change_offers("o", [Offer("d")]),
        lambda: table.change_offers("o", removed=["a"]),
        lambda: table.put_origin_route(replace(whole, gateway="h")),
        lambda: table.change_offers("p", [Offer("a")]),
        lambda: table.put_origin_route(replace(whole, origin="p")),
        lambda: table.change_offers("o", removed=["c"]),
        lambda: table.put_origin_route(replace(partial, services=None)),
        lambda: table.delete_origin_route(whole.key),
        lambda: table.change_offers("o", is_complete=True),
        lambda: table.delete_origin_route(partial.key),
    ]
    for change in changes:
        change()
        check()
