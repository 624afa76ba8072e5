"""`Service`: handlers, the record in the registry, calls over TCP, shutdown, and the public names of the package."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from micro_core import CallContext, Service, endpoint, subscriber
from micro_core.builtin.registry.memory import MemoryRegistry
from micro_core.builtin.transport.tcp import TcpOptions, TcpTransport
from micro_core.contract import DriverContext
from micro_core.contract.broker import Message, MessageHandler
from micro_core.contract.errors import (
    BadRequest,
    Closed,
    ConfigError,
    Conflict,
    Draining,
    MicroError,
    ServiceNotFound,
    Unreachable,
)
from micro_core.contract.registry import EndpointKind, Instance
from micro_core.rpc.client import Client
from micro_core.wire import codec, limits

if TYPE_CHECKING:
    from tests.rpc.conftest import ServiceHarness

Until = Callable[[Callable[[], bool]], Awaitable[None]]
GREETER = "go.micro.srv.greeter"


@dataclass
class Hello:
    name: str


@dataclass
class Order:
    number: int


class Say:
    def __init__(self) -> None:
        self.orders: list[Order] = []

    async def hello(self, request: Hello) -> str:
        """Greet a person by name."""
        return f"Hello {request.name}"

    @endpoint(idempotent=True)
    def repeat(self, request: str) -> str:
        return request * 2

    @endpoint("Count.Up")
    async def count(self, request: int) -> AsyncIterator[int]:
        for number in range(request):
            yield number

    @subscriber("orders.created", queue="greeters")
    async def on_order(self, order: Order) -> None:
        self.orders.append(order)

    async def _hidden(self) -> None: ...


class SubscriptionRecorder:
    """A broker that stores the handlers of subscriptions, so that a test can call them."""

    def __init__(self) -> None:
        self.handlers: dict[tuple[str, str], MessageHandler] = {}

    async def start(self) -> None: ...
    async def close(self) -> None: ...
    async def publish(self, topic: str, message: Message) -> None: ...

    async def subscribe(self, topic: str, handler: MessageHandler, *, queue: str = "") -> Any:
        self.handlers[topic, queue] = handler
        return RecordedSubscription(self, topic, queue)


class RecordedSubscription:
    def __init__(self, broker: SubscriptionRecorder, topic: str, queue: str) -> None:
        self.broker, self.topic, self.queue = broker, topic, queue

    async def close(self) -> None:
        del self.broker.handlers[self.topic, self.queue]


def new_service(harness: ServiceHarness, **options: Any) -> Service:
    return Service(GREETER, registry=harness.registry, transport=harness.transport, **options)


async def test_methods_of_a_handler_class_become_endpoints(harness: ServiceHarness) -> None:
    broker = SubscriptionRecorder()
    service = new_service(harness, broker=broker, version="1.2.0", metadata={"zone": "b"})
    service.handler(Say)
    await service.start()
    (instance,) = await harness.registry.instances(GREETER)
    assert (instance.version, instance.metadata, instance.address) == ("1.2.0", {"zone": "b"}, service.address)
    kinds = {known.name: known.kind for known in instance.endpoints}
    assert kinds == {
        "Say.Hello": EndpointKind.UNARY,
        "Say.Repeat": EndpointKind.UNARY,
        "Count.Up": EndpointKind.SERVER_STREAM,
        "orders.created": EndpointKind.SUBSCRIBER,
        "Debug.Describe": EndpointKind.UNARY,
        "Debug.Health": EndpointKind.UNARY,
        "Debug.Stats": EndpointKind.UNARY,
    }
    described = {known.name: known for known in instance.endpoints}
    assert described["Say.Hello"].description == "Greet a person by name."
    assert described["Say.Hello"].request["required"] == ["name"]
    assert described["Say.Repeat"].idempotent
    assert described["orders.created"].queue == "greeters"
    assert await harness.client.call(GREETER, "Say.Hello", {"name": "John"}) == "Hello John"
    assert await harness.client.call(GREETER, "Say.Repeat", "ho") == "hoho"
    await service.stop()
    assert broker.handlers == {}


async def test_handler_decorator_returns_the_class(harness: ServiceHarness) -> None:
    service = new_service(harness, broker=SubscriptionRecorder())
    assert service.handler(Say) is Say


async def test_functions_can_be_endpoints_and_subscribers(harness: ServiceHarness) -> None:
    broker = SubscriptionRecorder()
    service = new_service(harness, broker=broker)
    received: list[tuple[Order, str]] = []

    @service.endpoint("Say.Hello", idempotent=True)
    async def hello(request: Hello, context: CallContext) -> str:
        return f"{request.name} via {context.endpoint}"

    @service.subscriber("orders.created")
    async def on_order(order: Order, context: CallContext) -> None:
        received.append((order, context.metadata["by"]))

    await service.start()
    assert await harness.client.call(GREETER, "Say.Hello", {"name": "J"}) == "J via Say.Hello"
    deliver = broker.handlers["orders.created", ""]
    body = codec.encode({"number": 7})
    await deliver("orders.created", Message(id="1", body=body, headers={"by": "test"}))
    assert received == [(Order(7), "test")]
    with pytest.raises(BadRequest, match="number: missing field"):
        await deliver("orders.created", Message(id="2", body=codec.encode({})))
    await service.stop()


async def test_duplicate_endpoint_name_is_refused(harness: ServiceHarness) -> None:
    service = new_service(harness)
    service.endpoint("Say.Hello")(lambda: None)
    with pytest.raises(Conflict):
        service.endpoint("Say.Hello")(lambda: None)


async def test_start_with_a_subscriber_but_no_broker_fails_and_cleans_up(harness: ServiceHarness) -> None:
    service = new_service(harness)
    service.subscriber("orders.created")(Say().on_order)
    with pytest.raises(ConfigError, match="no broker"):
        await service.start()
    assert harness.transport.listening == {}
    assert await harness.registry.instances(GREETER) == []


async def test_debug_endpoints_return_health_and_statistics(harness: ServiceHarness) -> None:
    service = new_service(harness)

    async def fail() -> None:
        raise BadRequest("no")

    service.endpoint("Say.Fail")(fail)
    await service.start()
    assert await harness.client.call(GREETER, "Debug.Health") == {"status": "ok"}
    with pytest.raises(BadRequest):
        await harness.client.call(GREETER, "Say.Fail")
    stats = await harness.client.call(GREETER, "Debug.Stats")
    assert (stats["requests"], stats["errors"], stats["in_flight"]) == (3, 1, 1)
    assert stats["uptime_s"] >= 0
    assert stats["memory_bytes"] > 1_000_000
    await service.stop()


async def test_stop_withdraws_the_record_and_finishes_running_calls(harness: ServiceHarness, until: Until) -> None:
    service = new_service(harness)
    release = asyncio.Event()

    async def wait() -> str:
        await release.wait()
        return "done"

    service.endpoint("Say.Wait")(wait)
    await service.start()
    running = asyncio.create_task(harness.client.call(GREETER, "Say.Wait"))
    await until(lambda: service.server.in_flight == 1)
    stopping = asyncio.create_task(service.stop())
    await until(lambda: service.server.is_draining)
    assert await harness.registry.instances(GREETER) == []
    with pytest.raises((Draining, Unreachable)):
        await harness.client.call(GREETER, "Debug.Health", address=service.address, retries=0)
    with pytest.raises(ServiceNotFound):
        await harness.client.call(GREETER, "Say.Wait")
    release.set()
    assert await running == "done"
    await stopping
    await service.stop()
    with pytest.raises(Conflict):
        await service.start()


async def test_steps_of_stop_run_in_order_and_the_failure_of_one_does_not_prevent_the_next(
    harness: ServiceHarness, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    broker = SubscriptionRecorder()
    service = new_service(harness, broker=broker)
    service.handler(Say)
    await service.start()
    await harness.client.call(GREETER, "Say.Hello", {"name": "John"})
    (connection,) = service._connections

    def record(step: str, owner: object, method: str) -> None:
        original = getattr(owner, method)

        def run(*arguments: object, **options: object) -> object:
            steps.append(step)
            assert service.address not in harness.transport.listening
            return original(*arguments, **options)

        monkeypatch.setattr(owner, method, run)

    async def fail(instance: Instance) -> None:
        steps.append("deregister")
        raise RuntimeError("bug of a driver")

    monkeypatch.setattr(harness.registry, "deregister", fail)
    record("GOAWAY", connection, "send_goaway")
    record("drain", service.server, "drain")
    record("close connection", connection, "close")
    with pytest.raises(RuntimeError):
        await service.stop()
    assert steps == ["deregister", "GOAWAY", "drain", "close connection"]
    assert broker.handlers == {}
    with pytest.raises(Closed):
        await service.client.call(GREETER, "Say.Hello", {"name": "John"})


async def test_cancelled_stop_does_not_wait_for_calls_but_closes_everything(
    harness: ServiceHarness, until: Until
) -> None:
    service = new_service(harness)

    async def wait() -> str:
        await asyncio.Event().wait()
        return "done"

    service.endpoint("Say.Wait")(wait)
    await service.start()
    running = asyncio.create_task(harness.client.call(GREETER, "Say.Wait", retries=0))
    await until(lambda: service.server.in_flight == 1)
    stopping = asyncio.create_task(service.stop())
    await until(lambda: service.server.is_draining)
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    with pytest.raises(MicroError):
        await running
    assert service._connections == {}
    assert service.server.in_flight == 0


async def test_lease_is_renewed_and_sooner_after_a_failure(
    harness: ServiceHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    renewed = asyncio.Event()
    calls: list[int] = []
    register = harness.registry.register

    async def flaky(instance: Instance, *, lease_s: float) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise Unreachable("the registry is unreachable")
        await register(instance, lease_s=lease_s)
        if len(calls) == 4:
            renewed.set()

    monkeypatch.setattr(harness.registry, "register", flaky)
    service = new_service(harness, lease_s=0.3)
    await service.start()
    await asyncio.wait_for(renewed.wait(), 5.0)
    assert service.server.counters.values["lease_renewals_failed"] == 1  # type: ignore[attr-defined]
    assert len(await harness.registry.instances(GREETER)) == 1
    await service.stop()


async def test_service_calls_other_services_with_its_client(harness: ServiceHarness) -> None:
    callee = new_service(harness)
    callee.handler(Plain)
    await callee.start()
    caller = Service("go.micro.srv.front", registry=harness.registry, transport=harness.transport)
    with pytest.raises(ConfigError):
        assert caller.client

    async def greet(name: str) -> str:
        answer: str = await caller.client.call(GREETER, "Plain.Hello", name)
        return answer

    caller.endpoint("Front.Greet")(greet)
    await caller.start()
    assert await harness.client.call("go.micro.srv.front", "Front.Greet", "John") == "Hello John"
    await caller.stop()
    await callee.stop()


class Plain:
    async def hello(self, name: str) -> str:
        return f"Hello {name}"

    async def echo(self, body: bytes) -> bytes:
        return body

    async def count(self, to: int) -> AsyncIterator[int]:
        for number in range(to):
            yield number


async def test_connections_above_the_limit_are_refused(
    harness: ServiceHarness, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("micro_core.rpc.service.MAX_CONNECTIONS", 1)
    service = new_service(harness)
    await service.start()
    assert await harness.client.call(GREETER, "Debug.Health") == {"status": "ok"}
    with pytest.raises(MicroError):
        await harness.new_client().call(GREETER, "Debug.Health", retries=0)
    assert await harness.client.call(GREETER, "Debug.Health") == {"status": "ok"}
    assert service.server.counters.values["connections_refused"] == 1  # type: ignore[attr-defined]
    await service.stop()


# Over real sockets


@pytest.fixture
async def over_tcp(context: DriverContext) -> AsyncIterator[tuple[Service, Client]]:
    registry, transport = MemoryRegistry(context), TcpTransport(TcpOptions(), context)
    await registry.start()
    await transport.start()
    service = Service(GREETER, registry=registry, transport=transport)
    service.handler(Plain)
    await service.start()
    client = Client(registry=registry, transport=transport, proxy="")
    yield service, client
    await client.close()
    await service.stop()
    await transport.close()
    await registry.close()


async def test_calls_large_bodies_and_streams_work_over_tcp(over_tcp: tuple[Service, Client]) -> None:
    service, client = over_tcp
    assert service.address.startswith("tcp://127.0.0.1:")
    body = os.urandom(limits.MAX_BODY_BYTES)
    answers = await asyncio.gather(
        client.call(GREETER, "Plain.Echo", body, content_type=codec.BYTES),
        *(client.call(GREETER, "Plain.Hello", str(number)) for number in range(200)),
    )
    assert answers[0] == body
    assert answers[1:] == [f"Hello {number}" for number in range(200)]
    async with client.stream(GREETER, "Plain.Count", 1000) as stream:
        await stream.end()
        assert [item async for item in stream] == list(range(1000))


async def test_invalid_data_closes_only_its_connection(over_tcp: tuple[Service, Client]) -> None:
    service, client = over_tcp
    host, _, port = service.address.removeprefix("tcp://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    async with asyncio.timeout(5.0):
        await reader.read(-1)
    writer.close()
    assert await client.call(GREETER, "Plain.Hello", "John") == "Hello John"


async def test_calls_move_to_another_instance_when_one_stops(
    over_tcp: tuple[Service, Client], context: DriverContext
) -> None:
    service, client = over_tcp
    assert await client.call(GREETER, "Plain.Hello", "1") == "Hello 1"
    successor = Service(GREETER, registry=service._registry, transport=TcpTransport(TcpOptions(), context))
    successor.handler(Plain)
    await successor.start()
    await service.stop()
    for number in range(10):
        assert await client.call(GREETER, "Plain.Hello", str(number), retries=3) == f"Hello {number}"
    await successor.stop()


# Public names


def test_importing_the_package_does_not_import_heavy_modules() -> None:
    code = """
        import sys, micro_core
        heavy = {"asyncio", "msgpack", "pluggy", "typer", "cryptography", "micro_core.rpc", "micro_core.contract"}
        assert not heavy & set(sys.modules), heavy & set(sys.modules)
        assert set(micro_core.__all__) <= set(dir(micro_core))
        from micro_core import NotFound
        assert "micro_core.rpc" not in sys.modules and "msgpack" not in sys.modules
        from micro_core import Service, Client
        assert "pydantic" not in sys.modules and "typer" not in sys.modules and "cryptography" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=30)


def test_public_names_can_be_imported() -> None:
    import micro_core

    for name in micro_core.__all__:
        assert getattr(micro_core, name) is not None
    with pytest.raises(AttributeError):
        micro_core.Nothing  # noqa: B018
    assert issubclass(micro_core.NotFound, MicroError)


RUNNING = """
import asyncio, logging
from micro_core import Service
from micro_core.builtin.registry.memory import MemoryRegistry
from micro_core.lifecycle.system_clock import SystemClock
from micro_core.builtin.transport.tcp import TcpOptions, TcpTransport
from micro_core.contract import CountersInMemory, DriverContext
import random

context = DriverContext(node_id="a" * 32, network="n", site="s", state_dir="/nonexistent", clock=SystemClock(),
                        random=random.Random(), logger=logging.getLogger(), counters=CountersInMemory())
registry = MemoryRegistry(context)
service = Service("s", registry=registry, transport=TcpTransport(TcpOptions(), context))
started = service._start

async def start():
    await registry.start()
    await started()
    if HANG:
        asyncio.get_running_loop().create_task(service.client.call("s", "S.Hang", timeout_s=60))

async def hang():
    print("hangs", flush=True)
    await asyncio.Event().wait()

stopped = service.stop

async def stop():
    print("stopping", flush=True)
    await stopped()

service.endpoint("S.Hang")(hang)
service._start, service.stop = start, stop
service.run()
print("stopped", flush=True)
"""


@pytest.mark.parametrize("signals", [[signal.SIGTERM], [signal.SIGINT], [signal.SIGTERM, signal.SIGTERM]])
def test_first_signal_shuts_down_and_second_signal_cancels_running_calls(signals: list[int]) -> None:
    hangs = len(signals) > 1
    with subprocess.Popen(
        [sys.executable, "-c", RUNNING.replace("HANG", str(hangs))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        awaited = "hangs" if hangs else "ready s-"
        assert any(line.startswith(awaited) for line in iter(process.stdout.readline, ""))
        process.send_signal(signals[0])
        if hangs:
            assert any(line.startswith("stopping") for line in iter(process.stdout.readline, ""))
            process.send_signal(signals[1])
        out, err = process.communicate(timeout=5)
    assert out.endswith("stopped\n"), err
    assert process.returncode == 0, err
