"""A service, as people type it: handlers, a name, and `run()`.

service = Service("go.micro.srv.greeter")

@service.handler
class Say:
    async def hello(self, request: HelloRequest) -> HelloReply: ...

service.run()
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import random as random_source
import secrets
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from micro_core.config import Settings, load_settings
from micro_core.contract.broker import Broker, Subscription
from micro_core.contract.clock import Clock, Random
from micro_core.contract.driver import Counters, CountersInMemory
from micro_core.contract.errors import ConfigError, Conflict, MicroError, Overloaded
from micro_core.contract.names import LOAD_KEY, check_service_name
from micro_core.contract.registry import Instance, Registry
from micro_core.contract.transport import Listener, Socket, Transport
from micro_core.drivers.runtime import Runtime, build_runtime, joined_interceptors
from micro_core.lifecycle.logs import set_up_logging
from micro_core.lifecycle.system_clock import SystemClock
from micro_core.rpc.client import Client
from micro_core.rpc.connection import Connection
from micro_core.rpc.debug import Debug
from micro_core.rpc.graceful_shutdown import send_goaway_and_flush
from micro_core.rpc.handlers import endpoint_name, marks_of
from micro_core.rpc.interceptors import Interceptor
from micro_core.rpc.registration import LEASE_S, Registration
from micro_core.rpc.server import MAX_CONCURRENT_CALLS, Server, Subscriber

log = logging.getLogger(__name__)

DRAIN_S = 10.0
"""How long `stop` waits for the calls that run."""

MAX_CONNECTIONS = 4_096
"""Sockets open at once: a caller needs one, and a process has few more descriptors by default."""

HandlerT = TypeVar("HandlerT", bound=Callable[..., Any])
LOAD_INTERVAL_S = 1.0
"""Interval at which the load of the instance is measured."""

ClassT = TypeVar("ClassT")


class Service:
    """One instance of a service.

    Without drivers it uses those that the settings name. A registry, transport or broker that is handed in has been
    started by its owner and stays the owner's. `address` is where to listen, empty for any free place on loopback.
    `client` calls others with the same drivers.
    """

    def __init__(
        self,
        name: str,
        *,
        version: str = "latest",
        registry: Registry | None = None,
        transport: Transport | None = None,
        broker: Broker | None = None,
        metadata: Mapping[str, str] | None = None,
        address: str = "",
        instance_id: str = "",
        lease_s: float | None = None,
        interceptors: Sequence[Interceptor] = (),
        max_concurrent: int = MAX_CONCURRENT_CALLS,
        clock: Clock | None = None,
        random: Random | None = None,
        counters: Counters | None = None,
        settings: Settings | None = None,
    ) -> None:
        self.name = check_service_name(name)
        self.version = version
        self.id = instance_id or f"{name}-{secrets.token_hex(6)}"
        self.counters: Counters = counters if counters is not None else CountersInMemory()
        self.server = Server(
            name, at=self.id, counters=self.counters, interceptors=interceptors, max_concurrent=max_concurrent
        )
        self._interceptors = tuple(interceptors)
        self._registry = registry
        self._transport = transport
        self._broker = broker
        self._metadata = dict(metadata or {})
        self._address = address
        self._lease_s = LEASE_S if lease_s is None else lease_s
        self._lease_is_given = lease_s is not None
        self._clock: Clock = clock if clock is not None else SystemClock()
        self._random: Random = random if random is not None else random_source.Random()  # noqa: S311 - jitter
        self._settings = settings
        self._runtime: Runtime | None = None
        self._client: Client | None = None
        self._listener: Listener | None = None
        self._instance: Instance | None = None
        self._registration: Registration | None = None
        self._load_task: asyncio.Task[None] | None = None
        self._subscriptions: list[Subscription] = []
        self._connections: dict[Connection, None] = {}
        self._is_stopped = False
        self._debug = Debug(self.server, version=version)

    def attach(
        self,
        *,
        registry: Registry,
        transport: Transport,
        broker: Broker | None = None,
        clock: Clock | None = None,
        random: Random | None = None,
        instance_id: str = "",
    ) -> Service:
        """Stand on these drivers, which stay their owner's, instead of those of the settings; before `start`.

        For tests and for programs that run several services in one process. Returns the service. Raises Conflict.
        """
        if self._listener is not None:
            raise Conflict(f"{self.name} runs already", at=self.id, hint="attach before `start`")
        self._registry, self._transport, self._broker = registry, transport, broker
        self._clock, self._random = clock or self._clock, random or self._random
        if instance_id:
            self.id = self.server.at = instance_id
        return self

    # What it serves

    def handler(self, handler: ClassT) -> ClassT:
        """Serve the public methods of a class (made without arguments) or of an object: `Say.hello` is `Say.Hello`.

        Raises ConfigError for a signature that is no handler's, Conflict for a name that is taken.
        """
        target = handler() if isinstance(handler, type) else handler
        prefix = type(target).__name__
        for attribute, method in inspect.getmembers(target, callable):
            if attribute.startswith("_") or inspect.isclass(method):
                continue
            marks = marks_of(method)
            if marks.topic:
                self.server.add_subscriber(marks.topic, method, queue=marks.queue)
            else:
                name = marks.name or f"{prefix}.{endpoint_name(attribute)}"
                self.server.add(name, method, idempotent=marks.idempotent)
        return handler

    def endpoint(self, name: str, *, idempotent: bool = False) -> Callable[[HandlerT], HandlerT]:
        """Serve a function as `name`."""

        def add(function: HandlerT) -> HandlerT:
            self.server.add(name, function, idempotent=idempotent)
            return function

        return add

    def subscriber(self, topic: str, *, queue: str = "") -> Callable[[HandlerT], HandlerT]:
        """Hand every message of `topic` to a function; with `queue`, one member of the group gets each."""

        def add(function: HandlerT) -> HandlerT:
            if self._listener is not None:
                raise Conflict(f"{self.name} runs already", at=self.id, hint="add subscribers before `start`")
            self.server.add_subscriber(topic, function, queue=queue)
            return function

        return add

    # Life

    @property
    def address(self) -> str:
        """Where it listens, with its scheme; empty before `start`."""
        return self._listener.address if self._listener is not None else ""

    @property
    def instance(self) -> Instance:
        """Its record in the registry. Raises ConfigError before `start`."""
        if self._instance is None:
            raise ConfigError(f"{self.name} has not been started", at=self.id)
        return self._instance

    @property
    def client(self) -> Client:
        """For calls to other services. Raises ConfigError before `start`."""
        if self._client is None:
            raise ConfigError(f"{self.name} has not been started", at=self.id)
        return self._client

    async def start(self) -> None:
        """Listen, subscribe, register. Raises ConfigError, Conflict (address in use), Unreachable (registry away)."""
        if self._listener is not None or self._is_stopped:
            raise Conflict(f"{self.name} was started already", at=self.id)
        try:
            await self._start()
        except BaseException:
            await self.stop(drain_s=0.0)
            raise

    async def stop(self, *, drain_s: float = DRAIN_S) -> None:
        """Withdraw from the registry, refuse new calls, wait for those that run, close. Safe to call twice."""
        if self._is_stopped:
            return
        self._is_stopped = True
        if self._load_task is not None:
            self._load_task.cancel()
            await asyncio.wait([self._load_task])
        await self._withdraw()
        if self._listener is not None:
            await self._listener.close()
        await send_goaway_and_flush(self._connections)
        if not await self.server.drain(drain_s):
            log.warning("calls were cancelled to stop", extra={"service": self.name})
        await asyncio.gather(*(connection.close() for connection in list(self._connections)))
        if self._client is not None:
            await self._client.close()
        if self._runtime is not None:
            await self._runtime.close()

    def run(self) -> None:
        """Start, and serve until SIGINT or SIGTERM; a second signal does not wait for running calls."""
        try:
            if self._settings is None and (self._registry is None or self._transport is None):
                self._settings = load_settings()
            set_up_logging(self._settings.node.log if self._settings is not None else "warning")
            asyncio.run(self._run())
        except MicroError as error:
            raise SystemExit(f"{self.name}: {error}") from error

    async def _run(self) -> None:
        signals = asyncio.Event()
        loop = asyncio.get_running_loop()

        def signalled() -> None:
            if signals.is_set():
                hurry.set()
            signals.set()

        hurry = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, signalled)
        await self.start()
        print(f"ready {self.id} at {self.address}", flush=True)  # noqa: T201 - what a person who started it waits for
        await signals.wait()
        stopping = loop.create_task(self.stop())
        hurrying = loop.create_task(hurry.wait())
        await asyncio.wait({stopping, hurrying}, return_when=asyncio.FIRST_COMPLETED)
        hurrying.cancel()
        if not stopping.done():
            stopping.cancel()
        await asyncio.gather(stopping, hurrying, return_exceptions=True)

    # Inside

    async def _start(self) -> None:
        self._debug.start(self._clock)
        registry, transport, broker = self._registry, self._transport, self._broker
        if registry is None or transport is None:
            runtime = self._runtime = await build_runtime(self._settings)
            registry, transport = registry or runtime.registry, transport or runtime.transport
            if not self._lease_is_given:
                self._lease_s = runtime.settings.node.lease
            if broker is None and self.server.subscribers:
                broker = await runtime.open_broker()
            self.server.intercept(joined_interceptors(runtime, "server", self._interceptors))
        self._listener = await transport.listen(self._address, self._accept)
        self._client = Client(
            registry=registry,
            transport=transport,
            broker=broker,
            runtime=self._runtime,
            name=self.id,
            clock=self._clock,
            random=self._random,
            counters=self.counters,
        )
        for subscriber in self.server.subscribers:
            self._subscriptions.append(await self._subscribe(broker, subscriber))
        self._instance = Instance(
            service=self.name,
            id=self.id,
            address=self._listener.address,
            version=self.version,
            metadata=self._metadata,
            endpoints=self.server.endpoints,
        )
        self._registration = Registration(
            registry, self._instance, lease_s=self._lease_s, counters=self.counters, random=self._random
        )
        await self._registration.start()
        self._load_task = asyncio.get_running_loop().create_task(self._report_load(self._registration))

    async def _report_load(self, registration: Registration) -> None:
        """So that calls leave an instance before it fails, and come back."""
        while True:
            await asyncio.sleep(LOAD_INTERVAL_S)
            if self.server.update_load(asyncio.get_running_loop().time()):
                load = {LOAD_KEY: str(self.server.load.level_us)} if self.server.load.level_us else {}
                self._instance = replace(self.instance, metadata={**self._metadata, **load})
                await registration.update(self._instance)

    async def _subscribe(self, broker: Broker | None, subscriber: Subscriber) -> Subscription:
        if broker is None:
            raise ConfigError(
                f"{self.name} subscribes to {subscriber.endpoint.name}, and there is no broker", at=self.id
            )
        return await broker.subscribe(subscriber.endpoint.name, subscriber.receive, queue=subscriber.endpoint.queue)

    def _accept(self, socket: Socket) -> None:
        connection = Connection(socket, dialed=False, handler=self.server, node_id=self.id[:64], counters=self.counters)
        if len(self._connections) >= MAX_CONNECTIONS:
            self.counters.add("connections_refused")
            connection.abort(Overloaded(f"{MAX_CONNECTIONS} connections are open", at=self.id))
            return
        self._connections[connection] = None
        connection.on_lost(lambda lost, _error: self._connections.pop(lost, None))
        if self._is_stopped:
            connection.send_goaway()

    async def _withdraw(self) -> None:
        if self._registration is not None:
            await self._registration.close()
        for subscription in self._subscriptions:
            try:
                await subscription.close()
            except MicroError as error:
                log.warning("a subscription did not close", extra={"reason": str(error)})
