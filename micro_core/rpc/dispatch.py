"""Choice of the destination of a call, and retries.

A call is sent to the address in its options, otherwise to the proxy (a node, given by name or address), otherwise to an
instance from the registry. It is retried only if its handler was certainly not started, or if the call is idempotent.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Sequence
from typing import NamedTuple

from micro_core.contract.clock import Clock, Random
from micro_core.contract.driver import Counters
from micro_core.contract.errors import (
    DeadlineExceeded,
    Draining,
    MicroError,
    Overloaded,
    ServiceNotFound,
    TooLarge,
    Unreachable,
)
from micro_core.contract.names import NETWORK_SERVICE
from micro_core.contract.registry import Instance
from micro_core.rpc.calls import ResponseReceived
from micro_core.rpc.client_call import CallFailed, UnaryCall
from micro_core.rpc.connection import Connection
from micro_core.rpc.deadlines import Deadlines
from micro_core.rpc.interceptors import CallInfo
from micro_core.rpc.pool import BUSY_STREAMS, Pool
from micro_core.rpc.registry_view import RegistryView
from micro_core.rpc.selector import Selector
from micro_core.rpc.validation import to_plain
from micro_core.wire import codec, limits
from micro_core.wire.header import CACHED_HEADERS, CallHeader, encode_header

INITIAL_BACKOFF_S = 0.02
MAX_BACKOFF_S = 1.0
"""Maximum pause before a retry. It doubles from INITIAL_BACKOFF_S to MAX_BACKOFF_S; the actual pause is random."""

_INSTANCE_ERRORS = (Unreachable, Overloaded, Draining)
"""Errors that concern one instance, so that another instance may succeed."""


class CallOptions(NamedTuple):
    """The options of one call; see `Client.call`."""

    address: str | None = None
    content_type: str = codec.MSGPACK
    idempotent: bool = False
    retries: int = 1


class Dispatcher:
    """Sends calls for one client: chooses the destination, connects, and retries.

    Args:
        at: The name of the client in errors.
        proxy: Name or address of the node to which all calls are sent. Empty for direct calls.
        registry_names: The drivers of the registry, for error messages.
        site: The site of the registry, for error messages.
        view: The known instances.
        pool: The connections.
        selector: Chooses among the instances of a service.
        clock: The source of time for ejections.
        random: The source of jitter.
        counters: Where retries are counted.
    """

    def __init__(
        self,
        *,
        at: str,
        proxy: str,
        registry_names: Sequence[str] = (),
        site: str = "",
        view: RegistryView,
        pool: Pool,
        selector: Selector,
        clock: Clock,
        random: Random,
        counters: Counters,
    ) -> None:
        self.proxy = proxy
        self._at = at
        self._view = view
        # Error messages name the registries, so that a missing plugin in the settings is noticed.
        self._registry_of = f"the registry of site {site}" if site else "the registry of this site"
        if registry_names:
            self._registry_of += f" (searched: {', '.join(registry_names)})"
        self._pool = pool
        self._selector = selector
        self._clock = clock
        self._random = random
        self._counters = counters
        self._loop = asyncio.get_running_loop()
        self._deadlines = Deadlines()

    async def call(self, info: CallInfo, options: CallOptions) -> ResponseReceived:
        """Make a unary call, with retries, within `info.timeout_s` seconds. Cancelling the task cancels the handler.

        Raises:
            MicroError: The error of the last attempt.
        """
        body = codec.encode(to_plain(info.request), options.content_type)
        deadline = self._loop.time() + info.timeout_s
        tried: set[str] = set()
        attempt = 0
        while True:
            address, instance = "", None
            try:
                address, instance = await self._choose(info.service, options.address, tried, deadline)
                connection = self._find_ready(address) or await self._connection(address, deadline)
                return await self._attempt(connection, address, self.header(info, options, deadline), body, deadline)
            except CallFailed as failed:
                error = failed.error
                may_repeat = not failed.may_have_started or (
                    isinstance(error, _INSTANCE_ERRORS)
                    and (options.idempotent or _is_idempotent(instance, info.endpoint))
                )
            except MicroError as refusal:
                error, may_repeat = refusal, bool(address) and refusal.retry_is_safe
            if attempt >= options.retries or not may_repeat or not await self._back_off(attempt, deadline):
                error.at = error.at or self._at
                raise error
            attempt += 1
            tried.add(address)
            self._counters.add("calls_retried")

    async def connect(self, info: CallInfo, options: CallOptions, deadline: float) -> tuple[Connection, str]:
        """Return a connection for a streaming call, and its address.

        The caller must call `call_ended` or `call_abandoned` for the address when the stream has ended. `deadline` is in
        seconds of the event loop's clock.

        Raises:
            MicroError: The error of the last attempt to connect.
        """
        tried: set[str] = set()
        attempt = 0
        while True:
            address, _ = await self._choose(info.service, options.address, tried, deadline)
            try:
                connection = self._find_ready(address) or await self._connection(address, deadline)
            except MicroError as error:
                if attempt >= options.retries or not error.retry_is_safe or not await self._back_off(attempt, deadline):
                    error.at = error.at or self._at
                    raise
                attempt += 1
                tried.add(address)
            else:
                self._selector.call_started(address)
                return connection, address

    def call_abandoned(self, address: str) -> None:
        """Record that a connection from `connect` was not used, or that the caller cancelled. No instance is ejected."""
        self._selector.call_abandoned(address)

    def call_ended(self, address: str, error: MicroError | None) -> None:
        """Record the result of a call to `address`, for the ejection of failing instances. `error` is None on success."""
        timed_out_here = isinstance(error, DeadlineExceeded) and error.at == self._at
        if timed_out_here or isinstance(error, _INSTANCE_ERRORS):
            self._selector.call_failed(address, self._clock.now())
        else:
            self._selector.call_succeeded(address)

    def header(self, info: CallInfo, options: CallOptions, deadline: float) -> bytes:
        """Return the encoded call header, with the remaining time until `deadline`.

        Raises:
            DeadlineExceeded: The deadline has passed.
            TooLarge: The metadata exceed a limit.
        """
        remaining_s = deadline - self._loop.time()
        if remaining_s <= 0:
            raise DeadlineExceeded("the deadline passed before the call was sent", at=self._at)
        if len(info.metadata) > limits.MAX_METADATA_ENTRIES:
            raise TooLarge(
                f"{len(info.metadata)} metadata entries exceed the limit of {limits.MAX_METADATA_ENTRIES}",
                at=self._at,
            )
        plain = (info.service, info.endpoint, info.mode, max(1, int(remaining_s * 1000)), options.content_type)
        if not info.metadata:
            return _plain_header(*plain, idempotent=options.idempotent)
        return encode_header(CallHeader(*plain, metadata=info.metadata, idempotent=options.idempotent))

    async def _attempt(
        self, connection: Connection, address: str, header: bytes, body: bytes, deadline: float
    ) -> ResponseReceived:
        call = UnaryCall(connection, self._at)
        self._selector.call_started(address)
        try:
            answer = await call.run(header, body, deadline, self._deadlines)
        except CallFailed as failed:
            self.call_ended(address, failed.error)
            raise
        except BaseException:
            self._selector.call_abandoned(address)
            raise
        self._selector.call_succeeded(address)
        return answer

    async def _choose(
        self, service: str, address: str | None, tried: set[str], deadline: float
    ) -> tuple[str, Instance | None]:
        if address:
            return address, None
        if self.proxy:
            if is_address(self.proxy):
                return self.proxy, None
            service = self.proxy
        instances = self._view.find(service) or await self._look_up(service, deadline)
        instance = self._selector.choose(instances, self._clock.now(), avoid=frozenset(tried))
        # The record of a node does not describe the endpoints of the services behind it.
        return instance.address, None if self.proxy else instance

    async def _look_up(self, service: str, deadline: float) -> tuple[Instance, ...]:
        try:
            async with asyncio.timeout_at(deadline):
                found = await self._view.look_up(service)
        except TimeoutError as error:
            raise DeadlineExceeded("the registry did not answer before the deadline", at=self._at) from error
        if found:
            return found
        if self.proxy:
            raise ServiceNotFound(
                f"no node {service} in {self._registry_of}",
                at=self._at,
                hint="start one with `micro run`, name another site with MICRO_SITE, or unset MICRO_PROXY",
            )
        raise ServiceNotFound(
            f"no instance of {service} in {self._registry_of}",
            at=self._at,
            hint=f"for a service on another site, set MICRO_PROXY={NETWORK_SERVICE} (call through the node of this site) or "
            f"MICRO_SITE=NAME (use the registry of that site); for another registry, use --plugins or MICRO_PLUGINS",
        )

    def _find_ready(self, address: str) -> Connection | None:
        """Return a connection that can send the call at once, or None."""
        connection = self._pool.find(address)
        if connection is None or connection.open_streams >= BUSY_STREAMS or connection.is_send_buffer_full:
            return None
        return connection

    async def _connection(self, address: str, deadline: float) -> Connection:
        # The pool may open a further connection if the existing one has many calls.
        connection = await self._dial(address, deadline)
        if connection.is_send_buffer_full:
            try:
                async with asyncio.timeout_at(deadline):
                    await connection.writable()
            except TimeoutError as error:
                raise DeadlineExceeded(
                    f"the connection to {address} was busy until the deadline", at=self._at
                ) from error
        return connection

    async def _dial(self, address: str, deadline: float) -> Connection:
        try:
            return await self._pool.get(address, max(0.0, deadline - self._loop.time()))
        except Unreachable as error:
            if self._loop.time() >= deadline:
                raise DeadlineExceeded(f"the deadline passed while connecting to {address}", at=self._at) from error
            # Eject the instance.
            self._selector.call_started(address)
            self._selector.call_failed(address, self._clock.now())
            raise

    async def _back_off(self, attempt: int, deadline: float) -> bool:
        pause_s = self._random.uniform(0.0, min(INITIAL_BACKOFF_S * 2**attempt, MAX_BACKOFF_S))
        if self._loop.time() + pause_s >= deadline:
            return False
        await asyncio.sleep(pause_s)
        return True


@functools.lru_cache(CACHED_HEADERS)
def _plain_header(
    service: str, endpoint: str, mode: int, timeout_ms: int, content_type: str, *, idempotent: bool
) -> bytes:
    """Return the encoded header of a call without metadata. Cached, because many calls have the same header."""
    return encode_header(CallHeader(service, endpoint, mode, timeout_ms, content_type, idempotent=idempotent))


@functools.lru_cache(256)
def is_address(proxy: str) -> bool:
    """Return whether `proxy` is an address (`tcp://host:port` or `host:port`) instead of the name of a service."""
    return "://" in proxy or proxy.rpartition(":")[2].isdigit()


def _is_idempotent(instance: Instance | None, endpoint: str) -> bool:
    return instance is not None and any(known.name == endpoint and known.idempotent for known in instance.endpoints)
