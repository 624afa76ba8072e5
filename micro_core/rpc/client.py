"""The calling side, as people type it: `await client.call("go.micro.srv.greeter", "Say.Hello", {"name": "John"})`."""

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

    Without arguments it uses the drivers that the settings name, started with the first call and closed by `close()`.
    A registry, transport, broker or runtime that is handed in has been started by its owner and stays the owner's.
    `proxy` sends every call through a node: a service name found in the registry, or an address; from MICRO_PROXY when
    None, none when empty. `name` is the place in the errors made here.
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
        # Jitter and ids of messages: nothing here is a secret.
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
        """Connect to what the settings name. Optional: the first call does it. Raises ConfigError, Unreachable."""
        await self._started()

    async def close(self) -> None:
        """Close connections, and the drivers that were built here. Safe to call twice."""
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
        """Call an endpoint and return its decoded answer (as `response_type`, when given).

        The deadline holds for everything: connecting, retries, the answer. Cancelling the task cancels the handler.
        `retries` bounds further attempts; they are made only when the work certainly did not begin, or when the call
        or the endpoint is idempotent. Raises what the service raised, ServiceNotFound (at once), DeadlineExceeded,
        TooLarge (before anything is sent), Unreachable and its kind.
        """
        dispatcher = self._dispatcher or await self._started()
        options = CallOptions(address=address, content_type=content_type, idempotent=idempotent, retries=retries)
        info = _info(service, endpoint, metadata, timeout_s)
        info.request = request
        if not self._interceptors:
            return await self._answer(dispatcher, options, response_type, info)
        last = functools.partial(self._answer, dispatcher, options, response_type)
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
        """A streaming call, opened by `async with`. `timeout_s` None means `limits.MAX_TIMEOUT_S` for the whole stream.

        `mode` is a `CallMode`; the default suits every endpoint, of which kind it be (its first item is then the
        request of one that takes a single request). `request` is the request (SERVER_STREAM) or the first item.
        """
        options = CallOptions(address=address, content_type=content_type, retries=retries)
        info = _info(service, endpoint, metadata, limits.MAX_TIMEOUT_S if timeout_s is None else timeout_s)
        info.mode = mode
        opened_at: list[str] = []

        async def open_call() -> tuple[Connection, bytes, float]:
            dispatcher = self._dispatcher or await self._started()

            async def last(info: CallInfo) -> tuple[Connection, bytes, float]:
                deadline = asyncio.get_running_loop().time() + info.timeout_s
                connection, to = await dispatcher.connect(info, options, deadline)
                opened_at.append(to)
                return connection, dispatcher.header(info, options, deadline), deadline

            try:
                opened: tuple[Connection, bytes, float] = await chain(self._interceptors, last)(info)
            except BaseException:
                # Nobody ends a stream that never began.
                while opened_at:
                    dispatcher.call_abandoned(opened_at.pop())
                raise
            return opened

        def ended(error: MicroError | None) -> None:
            if self._dispatcher is not None:
                for to in opened_at:
                    self._dispatcher.call_ended(to, error)

        return ClientStream(
            open_call,
            ended=ended,
            mode=mode,
            content_type=content_type,
            convert=converter(response_type) if response_type is not None else None,
            first=() if request is _UNSET else (request,),
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
        """Publish a message and return its id. Returns when the broker, or the node, has taken it.

        Through the broker handed in, else through the node when there is a proxy, else through the settings' broker.
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
                await (await self._usable_broker()).publish(topic, message)
        except TimeoutError as error:
            raise DeadlineExceeded("the broker did not take the message in time", at=self.name) from error
        return message.id

    async def _answer(self, dispatcher: Dispatcher, options: CallOptions, response_type: Any, info: CallInfo) -> Any:
        answer = await dispatcher.call(info, options)
        convert = converter(response_type) if response_type is not None else None
        return read_value(answer.body, decode_response_header(answer.header).content_type, convert, self.name)

    async def _usable_broker(self) -> Broker:
        if self._broker is not None:
            return self._broker
        if self._runtime is None:
            raise ConfigError("no broker to publish through", at=self.name, hint="set MICRO_PROXY or hand in a broker")
        return await self._runtime.open_broker()

    async def _publish_through_node(self, proxy: str, topic: str, message: Message, timeout_s: float) -> None:
        # A call, not a bare event: so that a refusal comes back.
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
                raise Closed("this client is closed", at=self.name)
            if self._dispatcher is None:
                self._dispatcher = await self._start()
            return self._dispatcher

    async def _start(self) -> Dispatcher:
        registry, transport, proxy = self._registry, self._transport, self._proxy
        asked: tuple[str, ...] = ()
        site = ""
        if self._runtime is None and (registry is None or transport is None):
            self._runtime = await build_runtime(self._settings)
            self._owns_runtime = True
        if self._runtime is not None:
            self._interceptors = joined_interceptors(self._runtime, "client", self._interceptors)
            if registry is None:
                asked, site = self._runtime.registries, self._runtime.context.site
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
            asked=asked,
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
