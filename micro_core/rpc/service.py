"""The class `Service`: one instance of a service, from its handlers to an orderly shutdown."""

from __future__ import annotations

import asyncio
import inspect
import logging
import random as random_source
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
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
from micro_core.lifecycle.background_tasks import BackgroundTasks
from micro_core.lifecycle.closing import Closing
from micro_core.lifecycle.logs import set_up_logging
from micro_core.lifecycle.shutdown import run_until_signal
from micro_core.lifecycle.system_clock import SystemClock
from micro_core.rpc.client import Client
from micro_core.rpc.connection import Connection
from micro_core.rpc.debug import Debug
from micro_core.rpc.graceful_shutdown import send_goaway_and_flush
from micro_core.rpc.handlers import decorator_options, endpoint_name
from micro_core.rpc.interceptors import Interceptor
from micro_core.rpc.registration import LEASE_S, Registration
from micro_core.rpc.server import MAX_CONCURRENT_CALLS, Server
from micro_core.rpc.subscribers import Subscriber

log = logging.getLogger(__name__)

DRAIN_S = 10.0
"""Default of the time for which `stop` waits for running calls."""

CLOSE_TIMEOUT_S = 15.0
"""Time limit of each other step of `stop`."""

MAX_CONNECTIONS = 4_096
"""Maximum number of open connections. A client needs one, and many systems permit few more descriptors per process."""

HandlerT = TypeVar("HandlerT", bound=Callable[..., Any])
LOAD_INTERVAL_S = 1.0
"""Interval at which the load of the instance is measured."""

ClassT = TypeVar("ClassT")


class Service:
    """One instance of a service.

        service = Service("go.micro.srv.greeter")

        @service.handler
        class Say:
            async def hello(self, request: HelloRequest) -> HelloReply:
                return HelloReply(msg=f"Hello {request.name}")

        service.run()

    `run` serves until a signal arrives. A program with an event loop of its own uses `start` and `stop` instead. Without
    arguments, a service uses the drivers that the settings name. Handlers can call other services with `service.client`.

    Args:
        name: Name of the service, e.g. `go.micro.srv.greeter`.
        version: Version of this instance, which the registry and `micro services` show.
        registry: A started registry, which the service does not close.
        transport: A started transport, which the service does not close.
        broker: A started broker for subscribers, which the service does not close.
        metadata: Metadata of the record in the registry.
        address: Where to listen, e.g. `tcp://0.0.0.0:4000`. If it is empty, the transport chooses, e.g. a free port of the
            loopback interface.
        instance_id: Id of the instance, unique within the service. By default the name with a random suffix.
        lease_s: Duration of the lease in the registry in seconds, 30 by default. A crashed instance stays registered for this
            time.
        interceptors: Functions around each call, the first outermost. Those of plugins are added.
        max_concurrent: Maximum number of concurrent calls. Further calls are refused with Overloaded.
        clock: The source of time. The system clock by default.
        random: The source of jitter.
        counters: Where calls, errors and other events are counted. In memory by default.
        settings: The settings that select the drivers. Read from files and the environment by default.

    Raises:
        BadRequest: `name` is invalid.
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
        self._client: Client | None = None
        self._listener: Listener | None = None
        self._instance: Instance | None = None
        self._tasks = BackgroundTasks(
            component="service", logger=log, counters=self.counters, failure_counter="service_tasks_failed"
        )
        self._stack = AsyncExitStack()
        self._closing = Closing(
            timeout_s=CLOSE_TIMEOUT_S, logger=log, counters=self.counters, failure_counter="service_stop_failures"
        )
        self._drain_s = DRAIN_S
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
        """Use the given drivers instead of those of the settings, and return the service.

        For tests, and for programs that run several services in one process. To be called before `start`. The drivers must
        have been started, and are not closed by the service. The arguments are those of the constructor.

        Raises:
            Conflict: The service has been started.
        """
        if self._listener is not None:
            raise Conflict(f"{self.name} has been started already", at=self.id, hint="call `attach` before `start`")
        self._registry, self._transport, self._broker = registry, transport, broker
        self._clock, self._random = clock or self._clock, random or self._random
        if instance_id:
            self.id = self.server.at = instance_id
        return self

    def handler(self, handler: ClassT) -> ClassT:
        """Serve the public methods of a class or of an object as endpoints. Can be used as a decorator of a class.

        A method `say_hello` of a class `Greeter` becomes the endpoint `Greeter.SayHello`. Methods with the decorator
        `subscriber` become subscribers. Names that begin with `_` are not served. A class is instantiated without arguments;
        pass an object to give it arguments.

        Returns:
            The class or object, unchanged.

        Raises:
            ConfigError: A signature is not that of a handler, or a type cannot be validated.
            Conflict: An endpoint with the same name exists.
            BadRequest: The name of an endpoint or topic is invalid.
        """
        target = handler() if isinstance(handler, type) else handler
        prefix = type(target).__name__
        for attribute, method in inspect.getmembers(target, callable):
            if attribute.startswith("_") or inspect.isclass(method):
                continue
            options = decorator_options(method)
            if options.topic:
                self.server.add_subscriber(options.topic, method, queue=options.queue)
            else:
                name = options.name or f"{prefix}.{endpoint_name(attribute)}"
                self.server.add(name, method, idempotent=options.idempotent)
        return handler

    def endpoint(self, name: str, *, idempotent: bool = False) -> Callable[[HandlerT], HandlerT]:
        """Return a decorator that serves a function as the endpoint `name`.

            @service.endpoint("Say.Hello")
            async def hello(request: HelloRequest) -> HelloReply: ...

        Args:
            name: The full name of the endpoint.
            idempotent: Whether executing the same call twice has the same effect as once. Callers then retry it after any
                failure of the connection or the instance.

        The decorator raises the same errors as `handler`.
        """

        def add(function: HandlerT) -> HandlerT:
            self.server.add(name, function, idempotent=idempotent)
            return function

        return add

    def subscriber(self, topic: str, *, queue: str = "") -> Callable[[HandlerT], HandlerT]:
        """Return a decorator that calls a function with each message of `topic`.

            @service.subscriber("orders.created", queue="mailers")
            async def order_created(order: Order) -> None: ...

        Args:
            topic: The topic, e.g. `orders.created`.
            queue: The name of a queue group. Each message is delivered to one member of the group on each site. If it is
                empty, every subscriber receives every message.

        Raises:
            Conflict: By the decorator, if the service has been started.
            ConfigError: By the decorator, if the signature is not that of a subscriber.
        """

        def add(function: HandlerT) -> HandlerT:
            if self._listener is not None:
                raise Conflict(
                    f"{self.name} has been started already", at=self.id, hint="add subscribers before `start`"
                )
            self.server.add_subscriber(topic, function, queue=queue)
            return function

        return add

    @property
    def address(self) -> str:
        """Return the address at which the service listens, e.g. `tcp://127.0.0.1:41873`. Empty before `start`."""
        return self._listener.address if self._listener is not None else ""

    @property
    def instance(self) -> Instance:
        """Return the record of this instance in the registry.

        Raises:
            ConfigError: The service has not been started.
        """
        if self._instance is None:
            raise ConfigError(f"{self.name} has not been started", at=self.id, hint="call `start` first")
        return self._instance

    @property
    def client(self) -> Client:
        """Return the client for calls to other services. It uses the same drivers and is closed by `stop`.

        Raises:
            ConfigError: The service has not been started.
        """
        if self._client is None:
            raise ConfigError(f"{self.name} has not been started", at=self.id, hint="call `start` first")
        return self._client

    async def start(self) -> None:
        """Listen, subscribe and register. If this fails or is cancelled, everything that was started is closed again.

        A service can be started once.

        Raises:
            Conflict: The service was started before, or the address is in use.
            ConfigError: A setting is invalid, a plugin is missing, or the service has subscribers but no broker.
            Unreachable: The registry or the broker cannot be reached.
            TooLarge: The record of the instance exceeds a limit of the registry.
        """
        if self._listener is not None or self._is_stopped:
            raise Conflict(f"{self.name} has been started already", at=self.id, hint="create a new Service")
        try:
            await self._start()
        except BaseException:
            await self.stop(drain_s=0.0)
            raise

    async def stop(self, *, drain_s: float = DRAIN_S) -> None:
        """Shut down: withdraw the record, refuse new calls, wait for running calls, and close all connections.

        Calls that run longer than `drain_s` seconds are cancelled. Each of the other steps takes at most `CLOSE_TIMEOUT_S`
        seconds. A step that fails is logged and counted, and the next one follows; an unexpected error is raised after the
        last one. Cancelling `stop` ends the current step, and the remaining ones follow. Safe to call twice, and before
        `start`.
        """
        if self._is_stopped:
            return
        self._is_stopped = True
        self._drain_s = drain_s
        await self._stack.aclose()

    def run(self) -> None:
        """Start the service and serve until SIGINT or SIGTERM. Then shut down like `stop`.

        Runs an event loop of its own, and configures logging to standard error. A second signal cancels the calls that are
        still running. Must be called in the main thread.

        Raises:
            SystemExit: A setting is invalid or the service could not be started. The message contains the reason.
        """
        try:
            if self._settings is None and (self._registry is None or self._transport is None):
                self._settings = load_settings()
            set_up_logging(self._settings.node.log if self._settings is not None else "warning")
            asyncio.run(self._run())
        except MicroError as error:
            raise SystemExit(f"{self.name}: {error}") from error

    async def _run(self) -> None:
        # The line is what a person who started the service waits for.
        await run_until_signal(
            self.start,
            self.stop,
            started=lambda: print(f"ready {self.id} at {self.address}", flush=True),  # noqa: T201
        )

    async def _start(self) -> None:
        self._debug.start(self._clock)
        registry, transport, broker = self._registry, self._transport, self._broker
        runtime: Runtime | None = None
        if registry is None or transport is None:
            runtime = await build_runtime(self._settings)
            self._closing.push(self._stack, runtime.close)
            registry, transport = registry or runtime.registry, transport or runtime.transport
            if not self._lease_is_given:
                self._lease_s = runtime.settings.node.lease
            if broker is None and self.server.subscribers:
                broker = await runtime.open_broker()
            self.server.intercept(joined_interceptors(runtime, "server", self._interceptors))
        self._client = Client(
            registry=registry,
            transport=transport,
            broker=broker,
            runtime=runtime,
            name=self.id,
            clock=self._clock,
            random=self._random,
            counters=self.counters,
        )
        self._closing.push(self._stack, self._client.close)
        self._closing.push(self._stack, self._close_connections)
        # Without the time limit of the other steps: `drain_s` limits it.
        self._stack.push_async_callback(self._drain)
        self._closing.push(self._stack, lambda: send_goaway_and_flush(self._connections))
        self._listener = await transport.listen(self._address, self._accept)
        self._closing.push(self._stack, self._listener.close)
        for subscriber in self.server.subscribers:
            subscription = await self._subscribe(broker, subscriber)
            self._closing.push(self._stack, subscription.close)
        self._instance = Instance(
            service=self.name,
            id=self.id,
            address=self._listener.address,
            version=self.version,
            metadata=self._metadata,
            endpoints=self.server.endpoints,
        )
        registration = Registration(
            registry, self._instance, lease_s=self._lease_s, counters=self.counters, random=self._random
        )
        self._closing.push(self._stack, registration.close)
        await registration.start()
        self._closing.push(self._stack, self._tasks.cancel)
        self._tasks.start(self._report_load(registration))

    async def _report_load(self, registration: Registration) -> None:
        """Update the record whenever the load level changes, so that routers send more calls to instances with less load."""
        while True:
            await asyncio.sleep(LOAD_INTERVAL_S)
            if self.server.update_load(asyncio.get_running_loop().time()):
                load = {LOAD_KEY: str(self.server.load.level_us)} if self.server.load.level_us else {}
                self._instance = replace(self.instance, metadata={**self._metadata, **load})
                await registration.update(self._instance)

    async def _subscribe(self, broker: Broker | None, subscriber: Subscriber) -> Subscription:
        if broker is None:
            raise ConfigError(
                f"{self.name} subscribes to {subscriber.endpoint.name}, but has no broker",
                at=self.id,
                hint="pass a broker to Service, or name a broker plugin in the settings",
            )
        return await broker.subscribe(subscriber.endpoint.name, subscriber.receive, queue=subscriber.endpoint.queue)

    def _accept(self, socket: Socket) -> None:
        connection = Connection(socket, dialed=False, handler=self.server, node_id=self.id[:64], counters=self.counters)
        if len(self._connections) >= MAX_CONNECTIONS:
            self.counters.add("connections_refused")
            connection.abort(Overloaded(f"the limit of {MAX_CONNECTIONS} connections is reached", at=self.id))
            return
        self._connections[connection] = None
        connection.set_lost_handler(lambda lost, _error: self._connections.pop(lost, None))
        if self._is_stopped:
            connection.send_goaway()

    async def _drain(self) -> None:
        if not await self.server.drain(self._drain_s):
            log.warning("running calls were cancelled by the shutdown", extra={"service": self.name})

    async def _close_connections(self) -> None:
        await asyncio.gather(*(connection.close() for connection in list(self._connections)))
