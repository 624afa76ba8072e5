"""Calls that wait for a route: when they are sent, refused and released, and what bounds them. On virtual time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from micro_core.builtin.table.memory import MemoryTable
from micro_core.contract import CountersInMemory
from micro_core.contract.errors import (
    DeadlineExceeded,
    Draining,
    LinkLost,
    MicroError,
    Overloaded,
    RouteNotFound,
    Unreachable,
)
from micro_core.contract.table import ANY_SERVICE, Offer, OriginRoute, Route, TableEvent
from micro_core.lab.loop import run
from micro_core.proxy import waiting_calls
from micro_core.proxy.forwarded_call import ForwardedCall
from micro_core.proxy.waiting_calls import MAX_REFUSALS, MAX_WAIT_S, RETRY_S, WaitingCalls
from micro_core.wire.frames import Frame, Kind
from micro_core.wire.header import CallHeader, CallMode

NAME = "worker"
NO_ROUTE = RouteNotFound("no route", at="here")
REFUSED = RouteNotFound("no route", at="there")


class Source(MemoryTable):
    """A table whose test decides which services are expected."""

    def __init__(self) -> None:
        super().__init__(logger=logging.getLogger("test"), counters=CountersInMemory())
        self.expected = {NAME}
        self.questions = 0
        self.watches = 0

    def is_expected(self, service: str) -> bool:
        self.questions += 1
        return service in self.expected

    def routes(self, query: Any = None) -> list[Route]:
        return self.list(query)

    def watch(self, callback: Callable[[TableEvent], None]) -> Callable[[], None]:
        stop = super().watch(callback)
        self.watches += 1

        def counted_stop() -> None:
            self.watches -= 1
            stop()

        return counted_stop


class Caller:
    """The connection of a client, which records refusals."""

    peer_id = ""

    def __init__(self) -> None:
        self.refusals: list[MicroError] = []

    def refuse(self, stream: int, error: MicroError) -> None:
        self.refusals.append(error)

    def close_stream(self, stream: int) -> None: ...


class Proxy:
    """Implements `CallForwarder` with one `WaitingCalls`, and records the calls that could be sent."""

    at = "here"

    def __init__(self) -> None:
        self.source = Source()
        self.counters = CountersInMemory()
        self.loop = asyncio.get_running_loop()
        self.caller = Caller()
        self.sent: list[tuple[float, ForwardedCall]] = []
        self.attempts = 0
        self.answer: MicroError | None = None
        """The refusal of the next hop."""
        self.waiting = WaitingCalls(
            self.source,
            own_names=("", "here"),
            now=self.loop.time,
            counters=self.counters,
            resume=self.forward,
        )
        self.source.change_offers("origin", [Offer(NAME)])

    def call(self, service: str = NAME, *, timeout_s: float = 60.0, body: bytes = b"", **header: Any) -> ForwardedCall:
        call_header = CallHeader(service, "Do.It", CallMode.UNARY, int(timeout_s * 1000), **header)
        frame = Frame(int(Kind.REQUEST), 0, 1, b"", body)
        caller: Any = self.caller
        return ForwardedCall(self, caller, frame, call_header, self.loop.time())

    def forward(self, call: ForwardedCall) -> None:
        self.attempts += 1
        routes = self.source.lookup(call.header.service) or self.source.lookup(ANY_SERVICE)
        untried = [route for route in routes if route.key not in call.tried]
        reason: MicroError | None = None
        if untried:
            self.sent.append((self.loop.time(), call))
            call.tried += [route.key for route in untried]
            reason = self.answer
            if reason is None:
                return
        error = reason or (call.wait.reason if call.wait else None) or NO_ROUTE
        if not self.waiting.hold(call, error, routes, is_refusal=reason is not None):
            call.refuse(error)

    def add_route(self, gateway: str = "next", origin: str = "origin") -> None:
        self.source.put_origin_route(OriginRoute(origin=origin, gateway=gateway, metric=1, network="net"))

    def remove_route(self, gateway: str = "next") -> None:
        (route,) = [one for one in self.source.origin_routes() if one.gateway == gateway]
        self.source.delete_origin_route(route.key)

    def finished(self, call: ForwardedCall) -> None:
        self.waiting.remove(call)

    def caller_sent(self, call: ForwardedCall, size_bytes: int) -> None:
        assert call.wait is not None
        if not self.waiting.grown(call.wait, size_bytes):
            call.refuse(NO_ROUTE)

    def reroute(self, call: ForwardedCall, error: MicroError) -> bool:
        return False

    def answered(self, call: ForwardedCall) -> None: ...

    def refuse_unread(self, call: ForwardedCall, receiver: str) -> None: ...

    def callee_lost(self, call: ForwardedCall, error: MicroError) -> None: ...

    def expired(self, call: ForwardedCall) -> None:
        call.refuse(DeadlineExceeded("late"))


def on_virtual_time(scenario: Callable[[Proxy], Awaitable[None]]) -> Callable[[], None]:
    def test() -> None:
        async def body() -> None:
            proxy = Proxy()
            await scenario(proxy)
            assert len(proxy.waiting) == 0
            assert proxy.waiting.size_bytes == 0
            assert proxy.source.watches == 0, "the table is watched only while calls wait"
            assert not proxy.waiting._services

        run(body())

    test.__name__ = scenario.__name__
    return test


@on_virtual_time
async def test_call_is_sent_when_its_route_appears(proxy: Proxy) -> None:
    call = proxy.call()
    proxy.forward(call)
    await asyncio.sleep(0.3)
    assert (proxy.attempts, len(proxy.waiting), proxy.source.watches) == (1, 1, 1)
    proxy.add_route()
    assert proxy.sent == [], "calls are sent after the router has processed all changes of this moment"
    await asyncio.sleep(0.1)
    assert proxy.sent == [(0.3, call)]
    await asyncio.sleep(MAX_WAIT_S)
    assert proxy.caller.refusals == [], "a call that was sent is no longer subject to the limit of the wait"
    assert proxy.counters.values == {"proxy_calls_held": 1}


@on_virtual_time
async def test_call_is_refused_with_the_first_reason_when_no_route_appears(proxy: Proxy) -> None:
    proxy.forward(proxy.call())
    await asyncio.sleep(MAX_WAIT_S - 0.02)
    assert proxy.caller.refusals == []
    await asyncio.sleep(0.04)
    assert proxy.caller.refusals == [NO_ROUTE]
    assert proxy.counters.values == {"proxy_calls_held": 1, "proxy_calls_held_in_vain": 1}


@on_virtual_time
async def test_call_with_a_short_deadline_is_refused_before_it(proxy: Proxy) -> None:
    proxy.forward(proxy.call(timeout_s=0.5))
    await asyncio.sleep(0.44)
    assert proxy.caller.refusals == []
    await asyncio.sleep(0.02)
    assert proxy.caller.refusals == [NO_ROUTE]


@on_virtual_time
async def test_service_that_is_not_expected_is_refused_at_once(proxy: Proxy) -> None:
    proxy.forward(proxy.call("unknown"))
    assert proxy.caller.refusals == [NO_ROUTE]
    assert proxy.counters.values == {}


@on_virtual_time
async def test_call_that_has_passed_another_node_is_refused_at_once(proxy: Proxy) -> None:
    proxy.forward(proxy.call(via=("before",)))
    assert proxy.caller.refusals == [NO_ROUTE]


@on_virtual_time
async def test_call_is_refused_at_once_when_the_offer_is_removed(proxy: Proxy) -> None:
    proxy.forward(proxy.call())
    await asyncio.sleep(0.1)
    proxy.source.expected.clear()
    proxy.source.change_offers("origin", is_complete=True)
    await asyncio.sleep(0.01)
    assert proxy.caller.refusals == [NO_ROUTE]


@on_virtual_time
async def test_only_services_whose_routes_have_changed_are_woken(proxy: Proxy) -> None:
    proxy.source.expected.add("other")
    other = proxy.call("other")
    for call in (proxy.call(), proxy.call(), other):
        proxy.forward(call)
    assert proxy.source.watches == 1
    assert proxy.source.questions == 2, "the answer for a service holds for its other calls"
    proxy.source.change_offers("origin", [Offer("third")])
    for number in range(100):
        proxy.source.put_origin_route(OriginRoute(origin=f"o{number}", gateway="next", metric=1, network="net"))
    await asyncio.sleep(0.1)
    assert proxy.attempts == 3
    proxy.add_route()
    await asyncio.sleep(0.1)
    assert proxy.attempts == 5
    assert len(proxy.sent) == 2
    other.refuse(NO_ROUTE)


@on_virtual_time
async def test_call_with_a_refusal_is_sent_again_after_a_pause(proxy: Proxy) -> None:
    proxy.add_route()
    proxy.source.expected.clear()
    proxy.answer = REFUSED
    call = proxy.call()
    proxy.forward(call)
    assert len(proxy.waiting) == 1
    await asyncio.sleep(RETRY_S / 2)
    proxy.answer = None
    await asyncio.sleep(RETRY_S)
    assert [round(time, 1) for time, _ in proxy.sent] == [0.0, RETRY_S]
    assert proxy.caller.refusals == []


@on_virtual_time
async def test_route_that_was_withdrawn_is_tried_again_when_it_returns(proxy: Proxy) -> None:
    proxy.add_route()
    proxy.answer = REFUSED
    proxy.forward(proxy.call())
    await asyncio.sleep(0.04)
    proxy.remove_route()
    await asyncio.sleep(0.06)
    proxy.answer = None
    proxy.add_route()
    await asyncio.sleep(0.01)
    assert [round(time, 2) for time, _ in proxy.sent] == [0.0, 0.1]


@on_virtual_time
async def test_change_of_a_metric_does_not_repeat_a_refused_call(proxy: Proxy) -> None:
    proxy.add_route()
    proxy.answer = REFUSED
    call = proxy.call()
    proxy.forward(call)
    for metric in range(10):
        proxy.source.put_origin_route(OriginRoute(origin="origin", gateway="next", metric=metric, network="net"))
        await asyncio.sleep(0.01)
    assert len(proxy.sent) == 1
    call.refuse(NO_ROUTE)


@on_virtual_time
async def test_refused_call_is_sent_a_limited_number_of_times(proxy: Proxy) -> None:
    proxy.add_route()
    proxy.answer = REFUSED
    proxy.forward(proxy.call())
    for number in range(20):
        await asyncio.sleep(0.01)
        proxy.add_route(f"other {number}")
    await asyncio.sleep(0.01)
    assert len(proxy.sent) == MAX_REFUSALS
    assert proxy.caller.refusals == [REFUSED]


@pytest.mark.parametrize("key", ["micro-router", "micro-site", "micro-gateway"])
def test_refusal_of_a_restricted_call_is_final(key: str) -> None:
    async def scenario(proxy: Proxy) -> None:
        proxy.source.expected.clear()
        proxy.add_route()
        proxy.answer = REFUSED
        proxy.forward(proxy.call(metadata={key: "x"}))
        assert proxy.caller.refusals == [REFUSED]

    on_virtual_time(scenario)()


@on_virtual_time
async def test_refusal_along_the_default_route_is_final(proxy: Proxy) -> None:
    proxy.source.change_offers("gateway", [Offer(ANY_SERVICE)])
    proxy.add_route(origin="gateway")
    proxy.answer = REFUSED
    proxy.forward(proxy.call("unknown"))
    assert len(proxy.sent) == 1
    assert proxy.caller.refusals == [REFUSED]


@pytest.mark.parametrize(
    ("error", "is_held"),
    [
        (Overloaded("full", at="here"), False),
        (Unreachable("no link", at="here"), True),
        (LinkLost("lost", at="here"), True),
        (Draining("stopping", at="here"), True),
        (Unreachable("dead instance", at="there"), False),
        (Draining("stopping", at="there"), False),
    ],
)
def test_only_reasons_that_a_change_of_routes_can_remove_are_waited_for(error: MicroError, is_held: bool) -> None:
    async def scenario(proxy: Proxy) -> None:
        proxy.add_route()
        proxy.answer = error
        call = proxy.call()
        proxy.forward(call)
        assert (len(proxy.waiting) == 1) is is_held
        assert proxy.caller.refusals == ([] if is_held else [error])
        call.finish()

    on_virtual_time(scenario)()


@on_virtual_time
async def test_number_of_waiting_calls_is_bounded(proxy: Proxy) -> None:
    for _ in range(waiting_calls.MAX_CALLS + 5):
        proxy.forward(proxy.call())
    assert len(proxy.waiting) == waiting_calls.MAX_CALLS
    assert proxy.caller.refusals == [NO_ROUTE] * 5
    assert proxy.counters.values["proxy_calls_not_held_limit"] == 5
    await asyncio.sleep(MAX_WAIT_S + 0.1)


@on_virtual_time
async def test_size_of_waiting_calls_is_bounded(proxy: Proxy) -> None:
    for _ in range(20):
        proxy.forward(proxy.call(body=bytes(1024 * 1024)))
    assert proxy.waiting.size_bytes <= waiting_calls.MAX_BYTES
    assert len(proxy.waiting) == 15, "the size includes the objects of a call"
    assert len(proxy.caller.refusals) == 5
    await asyncio.sleep(MAX_WAIT_S + 0.1)


@on_virtual_time
async def test_data_that_a_stream_sends_while_it_waits_is_bounded(proxy: Proxy) -> None:
    calls = [proxy.call() for _ in range(200)]
    for call in calls:
        proxy.forward(call)
        for _ in range(3):
            call.forward_to_callee(Frame(int(Kind.DATA), 0, 1, b"", bytes(64 * 1024)))
        assert proxy.waiting.size_bytes <= waiting_calls.MAX_BYTES
    assert 70 < len(proxy.waiting) < 100
    assert proxy.counters.values["proxy_calls_not_held_limit"] == 200 - len(proxy.waiting)
    await asyncio.sleep(MAX_WAIT_S + 0.1)


@on_virtual_time
async def test_size_of_a_call_that_waits_again_includes_the_data_sent_so_far(proxy: Proxy) -> None:
    proxy.answer = REFUSED
    call = proxy.call()
    proxy.forward(call)
    call.forward_to_callee(Frame(int(Kind.DATA), 0, 1, b"", bytes(64 * 1024)))
    size = proxy.waiting.size_bytes
    proxy.add_route()
    await asyncio.sleep(0.01)
    assert (proxy.attempts, proxy.waiting.size_bytes) == (2, size)
    call.finish()


@on_virtual_time
async def test_cancelled_call_and_lost_caller_are_released_at_once(proxy: Proxy) -> None:
    cancelled, lost = proxy.call(), proxy.call()
    proxy.forward(cancelled)
    proxy.forward(lost)
    cancelled.forward_to_callee(Frame(int(Kind.CANCEL), 0, 1, b"", b""))
    assert len(proxy.waiting) == 1
    lost.caller_lost()
    assert len(proxy.waiting) == 0
    proxy.add_route()
    await asyncio.sleep(0.1)
    assert proxy.sent == []


@on_virtual_time
async def test_deadline_releases_a_waiting_call(proxy: Proxy) -> None:
    call = proxy.call()
    proxy.forward(call)
    call.expire()
    assert [type(error) for error in proxy.caller.refusals] == [DeadlineExceeded]


@on_virtual_time
async def test_draining_node_refuses_waiting_calls_and_holds_no_more(proxy: Proxy) -> None:
    proxy.forward(proxy.call())
    proxy.waiting.close(Draining("stopping"))
    proxy.forward(proxy.call())
    assert [type(error) for error in proxy.caller.refusals] == [Draining, RouteNotFound]
