"""Where a call goes, and what is tried again.

To the `address` given, else to the proxy (a node, by name or address), else to an instance from the registry. Tried
again is only what certainly did not begin, or may be done twice.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

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
"""Before a second attempt, a random time up to a bound that doubles from the first to the last."""

_TRY_AGAIN = (Unreachable, Overloaded, Draining)
"""What another instance might do better at, when doing the work twice does no harm."""


class CallOptions(NamedTuple):
    """How one call is to be made."""

    address: str | None = None
    content_type: str = codec.MSGPACK
    idempotent: bool = False
    retries: int = 1


class Dispatcher:
    """Chooses, connects, sends, tries again. `at` is the place in the errors made here."""

    def __init__(
        self,
        *,
        at: str,
        proxy: str,
        asked: Sequence[str] = (),
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
        # Who forgot to name a plugin sees that another registry was asked.
        self._where = f"site {site}" if site else "this site"
        self._asked = f" (asked: {', '.join(asked)})" if asked else ""
        self._pool = pool
        self._selector = selector
        self._clock = clock
        self._random = random
        self._counters = counters
        self._loop = asyncio.get_running_loop()
        self._deadlines = Deadlines()

    async def call(self, info: CallInfo, options: CallOptions) -> ResponseReceived:
        """A unary call, with its retries, within `info.timeout_s`."""
        body = codec.encode(to_plain(info.request), options.content_type)
        deadline = self._loop.time() + info.timeout_s
        tried: set[str] = set()
        attempt = 0
        while True:
            to, instance = "", None
            try:
                to, instance = await self._choose(info.service, options.address, tried, deadline)
                connection = self._standing(to) or await self._connection(to, deadline)
                return await self._attempt(connection, to, self.header(info, options, deadline), body, deadline)
            except CallFailed as failed:
                error = failed.error
                may_repeat = not failed.may_have_begun or (
                    isinstance(error, _TRY_AGAIN) and (options.idempotent or _is_idempotent(instance, info.endpoint))
                )
            except MicroError as refusal:
                error, may_repeat = refusal, bool(to) and refusal.retry_is_safe
            if attempt >= options.retries or not may_repeat or not await self._back_off(attempt, deadline):
                error.at = error.at or self._at
                raise error
            attempt += 1
            tried.add(to)
            self._counters.add("calls_retried")

    async def connect(self, info: CallInfo, options: CallOptions, deadline: float) -> tuple[Connection, str]:
        """A connection for a streaming call, and the address it goes to; call `ended` for it in the end."""
        tried: set[str] = set()
        attempt = 0
        while True:
            to, _ = await self._choose(info.service, options.address, tried, deadline)
            try:
                connection = self._standing(to) or await self._connection(to, deadline)
            except MicroError as error:
                if attempt >= options.retries or not error.retry_is_safe or not await self._back_off(attempt, deadline):
                    error.at = error.at or self._at
                    raise
                attempt += 1
                tried.add(to)
            else:
                self._selector.call_started(to)
                return connection, to

    def call_abandoned(self, to: str) -> None:
        """Nothing came of a connection that `connect` gave: it says nothing of whoever is there."""
        self._selector.call_abandoned(to)

    def call_ended(self, to: str, error: MicroError | None) -> None:
        """A call to `to` has ended, well (None) or not: the selector should know."""
        timed_out_here = isinstance(error, DeadlineExceeded) and error.at == self._at
        if timed_out_here or isinstance(error, _TRY_AGAIN):
            self._selector.call_failed(to, self._clock.now())
        else:
            self._selector.call_succeeded(to)

    def header(self, info: CallInfo, options: CallOptions, deadline: float) -> bytes:
        """The call header with the time that remains. Raises DeadlineExceeded, TooLarge."""
        remaining_s = deadline - self._loop.time()
        if remaining_s <= 0:
            raise DeadlineExceeded("the time had run out before the call was sent", at=self._at)
        if len(info.metadata) > limits.MAX_METADATA_ENTRIES:
            raise TooLarge(
                f"{len(info.metadata)} metadata entries are over the bound of {limits.MAX_METADATA_ENTRIES}",
                at=self._at,
            )
        plain = (info.service, info.endpoint, info.mode, max(1, int(remaining_s * 1000)), options.content_type)
        if not info.metadata:
            return _plain_header(*plain, idempotent=options.idempotent)
        return encode_header(CallHeader(*plain, metadata=info.metadata, idempotent=options.idempotent))

    async def _attempt(
        self, connection: Connection, to: str, header: bytes, body: bytes, deadline: float
    ) -> ResponseReceived:
        call = UnaryCall(connection, self._at)
        self._selector.call_started(to)
        try:
            answer = await call.run(header, body, deadline, self._deadlines)
        except CallFailed as failed:
            self.call_ended(to, failed.error)
            raise
        except BaseException:
            self._selector.call_abandoned(to)
            raise
        self._selector.call_succeeded(to)
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
        # Whether an endpoint is idempotent is known only of the service itself, not through a node.
        return instance.address, None if self.proxy else instance

    async def _look_up(self, service: str, deadline: float) -> tuple[Instance, ...]:
        try:
            async with asyncio.timeout_at(deadline):
                found = await self._view.look_up(service)
        except TimeoutError as error:
            raise DeadlineExceeded("the registry did not answer in time", at=self._at) from error
        if found:
            return found
        if self.proxy:
            raise ServiceNotFound(
                f"no node {service} in the registry of {self._where}{self._asked}",
                at=self._at,
                hint="start one with `micro run`, name another site with MICRO_SITE, or unset MICRO_PROXY",
            )
        raise ServiceNotFound(
            f"no instance of {service} in the registry of {self._where}{self._asked}",
            at=self._at,
            hint=f"is it in another registry? --plugins or MICRO_PLUGINS names it. Is it on another site? "
            f"MICRO_PROXY={NETWORK_SERVICE} calls through this site's node, MICRO_SITE=NAME asks that site's registry",
        )

    def _standing(self, to: str) -> Connection | None:
        """A connection that takes the call at once."""
        connection = self._pool.find(to)
        if connection is None or connection.open_streams >= BUSY_STREAMS or connection.is_send_buffer_full:
            return None
        return connection

    async def _connection(self, to: str, deadline: float) -> Connection:
        # The pool also knows when one more connection is worth its cost.
        connection = await self._dialed(to, deadline)
        if connection.is_send_buffer_full:
            try:
                async with asyncio.timeout_at(deadline):
                    await connection.writable()
            except TimeoutError as error:
                raise DeadlineExceeded(f"{to} did not take the call in time", at=self._at) from error
        return connection

    async def _dialed(self, to: str, deadline: float) -> Connection:
        try:
            return await self._pool.get(to, max(0.0, deadline - self._loop.time()))
        except Unreachable as error:
            if self._loop.time() >= deadline:
                raise DeadlineExceeded(f"the time ran out while connecting to {to}", at=self._at) from error
            # It rests for a while, and the others serve.
            self._selector.call_started(to)
            self._selector.call_failed(to, self._clock.now())
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
    """The header of calls without metadata, of which most are alike."""
    return encode_header(CallHeader(service, endpoint, mode, timeout_ms, content_type, idempotent=idempotent))


@functools.lru_cache(256)
def is_address(proxy: str) -> bool:
    """Whether a proxy is written as an address (`tcp://host:port`, `host:port`), not as a service's name."""
    return "://" in proxy or proxy.rpartition(":")[2].isdigit()


def _is_idempotent(instance: Instance | None, endpoint: str) -> bool:
    known: Any = () if instance is None else instance.endpoints
    return any(one.name == endpoint and one.idempotent for one in known)
