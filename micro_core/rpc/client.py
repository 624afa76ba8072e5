"""The client: calls to services, streams, and publishing of messages."""

from __future__ import annotations

import asyncio
import functools
import os
import random as random_source
from collections.abc import Mapping, Sequence
from typing import Any

from micro_core.config import Settings
from micro_core.contract.broker import Broker, Message
from micro_core.contract.clock import Clock, Random
from micro_core.contract.driver import Counters, CountersInMemory
from micro_core.contract.errors import Closed, ConfigError, DeadlineExceeded, MicroError
from micro_core.contract.names import NETWORK_SERVICE, check_endpoint_name, check_service_name, check_topic
from micro_core.contract.registry import Registry
from micro_core.contract.transport import Socket, Transport
from micro_core.drivers.runtime import Runtime, build_runtime, joined_interceptors
from micro_core.lifecycle.system_clock import SystemClock
from micro_core.rpc.client_call import ClientStream, read_value
from micro_core.rpc.connection import Connection
from micro_core.rpc.dispatch import CallOptions, Dispatcher, is_address
from micro_core.rpc.interceptors import CallInfo, Interceptor, chain
from micro_core.rpc.pool import Pool
from micro_core.rpc.registry_view import RegistryView
from micro_core.rpc.selector import Selector, Strategy
from micro_core.rpc.validation import converter, to_plain
from micro_core.wire import codec, limits
from micro_core.wire.header import CallMode, decode_response_header

_UNSET: Any = object()


class Client:
    """Calls services and publishes messages.

        async with Client() as client:
            reply = await client.call("go.micro.srv.greeter", "Say.Hello", {"name": "John"}, timeout_s=2.0)

    Without arguments, a client uses the drivers that the settings name. They are started by the first call and closed by
    `close`. A client keeps its connections open and multiplexes calls over them, so a program should share one client among
    all its tasks. A client belongs to one event loop and is not thread-safe.

    Args:
        registry: A started registry, which the client does not close.
        transport: A started transport, which the client does not close.
        broker: A started broker for `publish`, which the client does not close.
        proxy: The node through which all calls are sent: its service name (looked up in the registry) or its address.
            None means the value of the settings or of MICRO_PROXY. An empty string means direct calls.
        name: The name of this client in errors that it raises (`MicroError.at`).
        strategy: How to choose among the instances of a service.
        interceptors: Functions around each call, the first outermost. Those of plugins are added.
        clock: The source of time. The system clock by default.
        random: The source of jitter and of message ids. It need not be cryptographically secure.
        counters: Where to count retries, failed dials and other events. In memory by default.
        settings: The settings that select the drivers. Read from files and the environment by default.
        runtime: Started drivers, which the client does not close. Replaces `settings`.
        connections_per_address: Maximum number of connections to an instance, at least 1. More than one helps only if
            single calls transfer large bodies.
    """

    def __init__(
        self,
        *,
        registry: Registry | None = None,
        transport: Transport | None = None,
        broker: Broker | None = None,
        proxy: str | None = None,
        name: str = "client",
        strategy: Strategy = Strategy.LEAST_OUTSTANDING,
        interceptors: Sequence[Interceptor] = (),
        clock: Clock | None = None,
        random: Random | None = None,
        counters: Counters | None = None,
        settings: Settings | None = None,
        runtime: Runtime | None = None,
        connections_per_address: int = 1,
    ) -> None:
        self.name = name
        self.counters: Counters = counters if counters is not None else CountersInMemory()
        self._registry = registry
        self._transport = transport
        self._broker = broker
        self._proxy = proxy
        self._settings = settings
        self._clock: Clock = clock if clock is not None else SystemClock()
        # Used for jitter and message ids, which need not be unpredictable.
        self._random: Random = random if random is not None else random_source.Random()  # noqa: S311
        self._selector = Selector(self._random, strategy)
        self._interceptors = tuple(interceptors)
        self._per_address = connections_per_address
        self._runtime = runtime
        self._owns_runtime = False
        self._view: RegistryView | None = None
        self._pool: Pool | None = None
        self._dispatcher: Dispatcher | None = None
        self._starting = asyncio.Lock()
        self._is_closed = False

    async def start(self) -> None:
        """Start the drivers that the settings name. Optional: the first call does this.

        Raises:
            Closed: The client has been closed.
            ConfigError: A setting is invalid, or a plugin is missing.
            Unreachable: A driver cannot reach its server.
        """
        await self._started()

    async def close(self) -> None:
        """Close the connections, and the drivers that the client has started. Calls in progress fail. Safe to call twice."""
        self._is_closed = True
        self._dispatcher = None
        if self._pool is not None:
            await self._pool.close()
        if self._view is not None:
            await self._view.close()
        if self._runtime is not None and self._owns_runtime:
            await self._runtime.close()

    async def __aenter__(self) -> Client:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def call(
        self,
        service: str,
        endpoint: str,
        request: Any = None,
        *,
        timeout_s: float = limits.DEFAULT_TIMEOUT_S,
        metadata: Mapping[str, str] | None = None,
        address: str | None = None,
        content_type: str = codec.MSGPACK,
        idempotent: bool = False,
        retries: int = 1,
        response_type: Any = None,
    ) -> Any:
        """Call a unary endpoint and return its decoded answer.

        A call is retried on another instance if its handler was certainly not started, e.g. because the instance was
        unreachable, draining or overloaded. Idempotent calls are also retried after the connection was lost. Cancelling the
        task cancels the handler.

        Args:
            service: Name of the service, e.g. `go.micro.srv.greeter`.
            endpoint: Name of the endpoint, e.g. `Say.Hello`.
            request: The request: a dataclass, a pydantic model, a dict, a list or a scalar.
            timeout_s: Deadline for the whole call with all retries, in seconds. Values above 3600 are reduced to 3600.
            metadata: Up to 64 texts that are sent with the call, e.g. a trace id.
            address: Address of an instance, e.g. `tcp://10.0.0.5:4000`. Bypasses the registry and the proxy.
            content_type: Encoding of the request: `codec.MSGPACK`, `codec.JSON`, `codec.BYTES` or `codec.TEXT`.
            idempotent: Whether executing this call twice has the same effect as once. Endpoints can declare this, too.
            retries: Maximum number of attempts after the first.
            response_type: Type of the result, e.g. a dataclass. By default the decoded value is returned unchecked.

        Raises:
            BadRequest: A name is invalid, the request cannot be encoded, or the service rejected it.
            ServiceNotFound: The registry has no instance of the service. Raised at once, without waiting for the deadline.
            EndpointNotFound: The service does not have this endpoint.
            DeadlineExceeded: No answer arrived within `timeout_s`. The handler may have been executed.
            Unreachable: No instance could be reached. A subclass, LinkLost, means that the connection was lost.
            Overloaded: The instances, or the nodes in between, have too many calls.
            Draining: The instances are shutting down.
            TooLarge: The request, the metadata or the answer exceeds a limit.
            Malformed: The answer cannot be decoded, or does not have the type `response_type`.
            Closed: The client has been closed.
            MicroError: Any other error that the handler raised, with the same class.
        """
        dispatcher = self._dispatcher or await self._started()
        options = CallOptions(address=address, content_type=content_type, idempotent=idempotent, retries=retries)
        info = _info(service, endpoint, metadata, timeout_s)
        info.request = request
        if not self._interceptors:
            return await self._call_and_decode(dispatcher, options, response_type, info)
        last = functools.partial(self._call_and_decode, dispatcher, options, response_type)
        return await chain(self._interceptors, last)(info)

    def stream(
        self,
        service: str,
        endpoint: str,
        request: Any = _UNSET,
        *,
        timeout_s: float | None = None,
        metadata: Mapping[str, str] | None = None,
        address: str | None = None,
        content_type: str = codec.MSGPACK,
        mode: int = CallMode.BIDIRECTIONAL,
        retries: int = 1,
        response_type: Any = None,
    ) -> ClientStream:
        """Return a stream to an endpoint of any kind. It is opened by `async with`.

            async with client.stream("go.micro.srv.clock", "Clock.Ticks", {"count": 3}) as stream:
                await stream.end()
                async for tick in stream:
                    print(tick)

        Only the opening is retried. Leaving the `async with` block cancels the handler unless the stream has ended.

        Args:
            service: Name of the service.
            endpoint: Name of the endpoint.
            request: The request of a server-streaming endpoint, or the first item to send.
            timeout_s: Deadline for the whole stream in seconds. None means the maximum, 3600.
            metadata: Up to 64 texts that are sent with the call.
            address: Address of an instance. Bypasses the registry and the proxy.
            content_type: Encoding of the items.
            mode: A `CallMode`. The default, BIDIRECTIONAL, works for every kind of endpoint: an endpoint with a single
                request takes the first item as its request.
            retries: Maximum number of attempts to open the stream after the first.
            response_type: Type of the received items. By default the decoded values are returned unchecked.

        Raises:
            BadRequest: A name is invalid. Other errors are raised when the stream is opened or used; see `ClientStream`.
        """
        options = CallOptions(address=address, content_type=content_type, retries=retries)
        info = _info(service, endpoint, metadata, limits.MAX_TIMEOUT_S if timeout_s is None else timeout_s)
        info.mode = mode
        opened_addresses: list[str] = []

        async def open_call() -> tuple[Connection, bytes, float]:
            dispatcher = self._dispatcher or await self._started()

            async def last(info: CallInfo) -> tuple[Connection, bytes, float]:
                deadline = asyncio.get_running_loop().time() + info.timeout_s
                connection, address = await dispatcher.connect(info, options, deadline)
                opened_addresses.append(address)
                return connection, dispatcher.header(info, options, deadline), deadline

            try:
                opened: tuple[Connection, bytes, float] = await chain(self._interceptors, last)(info)
            except BaseException:
                # `on_ended` is not called for a stream that was not opened.
                while opened_addresses:
                    dispatcher.call_abandoned(opened_addresses.pop())
                raise
            return opened

        def on_ended(error: MicroError | None) -> None:
            if self._dispatcher is not None:
                for opened_address in opened_addresses:
                    self._dispatcher.call_ended(opened_address, error)

        return ClientStream(
            open_call,
            on_ended=on_ended,
            mode=mode,
            content_type=content_type,
            convert=converter(response_type) if response_type is not None else None,
            initial_items=() if request is _UNSET else (request,),
            at=self.name,
        )

    async def publish(
        self,
        topic: str,
        payload: Any,
        *,
        content_type: str = codec.MSGPACK,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = limits.DEFAULT_TIMEOUT_S,
    ) -> str:
        """Publish a message and return its id, 32 hexadecimal digits.

        Returns when the broker or the node has accepted the message, not when subscribers have received it. The message is
        published by the `broker` of the constructor, otherwise by the node that is the proxy, otherwise by the broker of the
        settings.

        Args:
            topic: The topic, e.g. `orders.created`.
            payload: The message: a dataclass, a pydantic model, a dict, a list or a scalar.
            content_type: Encoding of the payload.
            headers: Texts that are delivered with the message.
            timeout_s: Deadline in seconds.

        Raises:
            BadRequest: The topic is invalid, or the payload cannot be encoded.
            ConfigError: The client has neither a broker nor a proxy.
            DeadlineExceeded: The message was not accepted within `timeout_s`. It may still be delivered.
            TooLarge: The message exceeds a limit.
            Overloaded: The broker or the node has too many messages.
            Unreachable: The broker or the node cannot be reached.
            Closed: The client has been closed.
        """
        check_topic(topic)
        dispatcher = self._dispatcher or await self._started()
        message = Message(
            id=f"{self._random.getrandbits(128):032x}",
            body=codec.encode(to_plain(payload), content_type),
            content_type=content_type,
            headers=dict(headers or {}),
        )
        if self._broker is None and dispatcher.proxy:
            await self._publish_through_node(dispatcher.proxy, topic, message, timeout_s)
            return message.id
        try:
            async with asyncio.timeout(timeout_s):
                await (await self._open_broker()).publish(topic, message)
        except TimeoutError as error:
            raise DeadlineExceeded(
                f"the broker did not accept the message within {timeout_s:.3g} s", at=self.name
            ) from error
        return message.id

    async def _call_and_decode(
        self, dispatcher: Dispatcher, options: CallOptions, response_type: Any, info: CallInfo
    ) -> Any:
        answer = await dispatcher.call(info, options)
        convert = converter(response_type) if response_type is not None else None
        return read_value(answer.body, decode_response_header(answer.header).content_type, convert, self.name)

    async def _open_broker(self) -> Broker:
        if self._broker is not None:
            return self._broker
        if self._runtime is None:
            raise ConfigError(
                "cannot publish: the client has no broker",
                at=self.name,
                hint="set MICRO_PROXY, or pass a broker to Client",
            )
        return await self._runtime.open_broker()

    async def _publish_through_node(self, proxy: str, topic: str, message: Message, timeout_s: float) -> None:
        # A call instead of an EVENT frame, so that the node can answer with an error.
        request = {
            "topic": topic,
            "id": message.id,
            "body": message.body,
            "content_type": message.content_type,
            "headers": message.headers,
        }
        node = NETWORK_SERVICE if is_address(proxy) else proxy
        await self.call(node, "Broker.Publish", request, timeout_s=timeout_s)

    async def _started(self) -> Dispatcher:
        async with self._starting:
            if self._is_closed:
                raise Closed("the client has been closed", at=self.name)
            if self._dispatcher is None:
                self._dispatcher = await self._start()
            return self._dispatcher

    async def _start(self) -> Dispatcher:
        registry, transport, proxy = self._registry, self._transport, self._proxy
        registry_names: tuple[str, ...] = ()
        site = ""
        if self._runtime is None and (registry is None or transport is None):
            self._runtime = await build_runtime(self._settings)
            self._owns_runtime = True
        if self._runtime is not None:
            self._interceptors = joined_interceptors(self._runtime, "client", self._interceptors)
            if registry is None:
                registry_names, site = self._runtime.registries, self._runtime.context.site
            registry = registry or self._runtime.registry
            transport = transport or self._runtime.transport
            proxy = self._runtime.proxy if proxy is None else proxy
        proxy = os.environ.get("MICRO_PROXY", "") if proxy is None else proxy
        assert registry is not None
        assert transport is not None

        async def dial(address: str) -> Socket:
            return await transport.dial(address, timeout_s=limits.DEFAULT_TIMEOUT_S)

        self._view = RegistryView(registry, self.counters)
        self._pool = Pool(
            dial, clock=self._clock, random=self._random, counters=self.counters, per_address=self._per_address
        )
        return Dispatcher(
            at=self.name,
            proxy=proxy,
            registry_names=registry_names,
            site=site,
            view=self._view,
            pool=self._pool,
            selector=self._selector,
            clock=self._clock,
            random=self._random,
            counters=self.counters,
        )


def _info(service: str, endpoint: str, metadata: Mapping[str, str] | None, timeout_s: float) -> CallInfo:
    _check_names(service, endpoint)
    return CallInfo(
        side="client",
        service=service,
        endpoint=endpoint,
        mode=CallMode.UNARY,
        metadata=dict(metadata or {}),
        request=None,
        timeout_s=min(timeout_s, limits.MAX_TIMEOUT_S),
    )


@functools.lru_cache(maxsize=4_096)
def _check_names(service: str, endpoint: str) -> None:
    check_service_name(service)
    check_endpoint_name(endpoint)
