"""Calls, streams and messages between a client and a server over sockets in memory."""

from __future__ import annotations

import asyncio
import enum
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from micro_core.contract import CountersInMemory
from micro_core.contract.errors import (
    BadRequest,
    Closed,
    ConfigError,
    Conflict,
    DeadlineExceeded,
    Draining,
    Ended,
    EndpointNotFound,
    Forbidden,
    InternalError,
    LinkLost,
    Malformed,
    MicroError,
    NotFound,
    Overloaded,
    ServiceNotFound,
    TooLarge,
    Unreachable,
)
from micro_core.rpc.connection import Connection
from micro_core.rpc.context import CallContext
from micro_core.rpc.interceptors import CallInfo, Next
from micro_core.rpc.server import Server
from micro_core.wire import codec, frames, limits
from micro_core.wire.frames import Kind
from micro_core.wire.header import CallMode, EventHeader, encode_header

if TYPE_CHECKING:
    from tests.rpc.conftest import ServiceHarness

Until = Callable[[Callable[[], bool]], Awaitable[None]]
GREETER = "go.micro.srv.greeter"


class Mood(enum.Enum):
    WARM = "warm"
    COOL = "cool"


@dataclass
class Address:
    city: str
    lines: list[str] = field(default_factory=list)


@dataclass
class HelloRequest:
    name: str
    times: int = 1
    mood: Mood = Mood.WARM
    address: Address | None = None


@dataclass
class HelloReply:
    msg: str


async def hello(request: HelloRequest) -> HelloReply:
    return HelloReply(msg=f"Hello {request.name}" + "!" * request.times)


async def echo(request: Any) -> Any:
    return request


async def count_to(request: int) -> AsyncIterator[int]:
    for number in range(request):
        yield number


async def add_all(numbers: AsyncIterator[int]) -> int:
    return sum([number async for number in numbers])


async def double(numbers: AsyncIterator[int]) -> AsyncIterator[int]:
    async for number in numbers:
        yield number * 2


def greeter(**options: Any) -> Server:
    server = Server(GREETER, at="greeter-1", **options)
    server.add("Say.Hello", hello)
    server.add("Say.Echo", echo)
    server.add("Say.CountTo", count_to)
    server.add("Say.AddUp", add_all)
    server.add("Say.Double", double)
    return server


def counted(server: Server) -> dict[str, int]:
    assert isinstance(server.counters, CountersInMemory)
    return server.counters.values


async def idle(measure: Callable[[], int]) -> int:
    """Run the event loop until `measure` does not change any more, and return its value."""
    before = -1
    while before != (value := measure()):
        before = value
        for _ in range(20):
            await asyncio.sleep(0)
    return before


# Unary calls


async def test_call_returns_the_answer(harness: ServiceHarness) -> None:
    await harness.serve(greeter())
    assert await harness.client.call(GREETER, "Say.Hello", {"name": "John"}) == {"msg": "Hello John!"}


async def test_request_and_answer_can_be_dataclasses(harness: ServiceHarness) -> None:
    await harness.serve(greeter())
    reply = await harness.client.call(
        GREETER, "Say.Hello", HelloRequest("John", 2, Mood.COOL, Address("York")), response_type=HelloReply
    )
    assert reply == HelloReply("Hello John!!")


@pytest.mark.parametrize("content_type", [codec.MSGPACK, codec.JSON])
async def test_answer_has_the_content_type_of_the_request(harness: ServiceHarness, content_type: str) -> None:
    await harness.serve(greeter())
    value = {"text": "grüß", "list": [1, 2.5, None, True], "map": {"a": {}}}
    assert await harness.client.call(GREETER, "Say.Echo", value, content_type=content_type) == value


async def test_bytes_are_transferred_unchanged(harness: ServiceHarness) -> None:
    await harness.serve(greeter())
    assert await harness.client.call(GREETER, "Say.Echo", b"\x00\xff", content_type=codec.BYTES) == b"\x00\xff"


async def test_concurrent_calls_share_one_connection(harness: ServiceHarness) -> None:
    await harness.serve(greeter())
    answers = await asyncio.gather(*(harness.client.call(GREETER, "Say.Echo", number) for number in range(500)))
    assert answers == list(range(500))
    assert len(harness.transport.sockets) == 1


@pytest.mark.parametrize("size", [0, 1, 65_536, 65_537, 1_000_000, limits.MAX_BODY_BYTES])
async def test_bodies_up_to_the_limit_are_transferred_in_both_directions(harness: ServiceHarness, size: int) -> None:
    await harness.serve(greeter())
    body = bytes(size)
    assert await harness.client.call(GREETER, "Say.Echo", body, content_type=codec.BYTES) == body


async def test_request_above_the_limit_is_refused_before_anything_is_sent(harness: ServiceHarness) -> None:
    await harness.serve(greeter())
    await harness.client.call(GREETER, "Say.Echo", 1)
    sent = len(harness.transport.sockets[0].sent)
    with pytest.raises(TooLarge, match=str(limits.MAX_BODY_BYTES)):
        await harness.client.call(GREETER, "Say.Echo", bytes(limits.MAX_BODY_BYTES + 1), content_type=codec.BYTES)
    assert len(harness.transport.sockets[0].sent) == sent


async def test_answer_above_the_limit_is_an_error_of_the_service(harness: ServiceHarness) -> None:
    server = greeter()

    async def huge() -> bytes:
        return bytes(limits.MAX_BODY_BYTES + 1)

    server.add("Say.Huge", huge)
    await harness.serve(server)
    with pytest.raises(TooLarge) as caught:
        await harness.client.call(GREETER, "Say.Huge")
    assert caught.value.at == "greeter-1"


async def test_context_contains_metadata_peer_and_remaining_time(harness: ServiceHarness) -> None:
    seen: list[CallContext] = []
    server = greeter()

    async def record(request: None, context: CallContext) -> None:
        seen.append(context)
        assert 1.0 < context.remaining_s <= 2.0

    server.add("Say.Record", record)
    await harness.serve(server)
    await harness.client.call(GREETER, "Say.Record", metadata={"trace": "1"}, timeout_s=2.0)
    assert seen[0].metadata == {"trace": "1"}
    assert (seen[0].service, seen[0].endpoint) == (GREETER, "Say.Record")
    assert seen[0].peer


async def test_synchronous_handler_runs_in_a_thread_and_does_not_block_other_calls(harness: ServiceHarness) -> None:
    release = threading.Event()
    server = greeter()

    def slow(request: int) -> str:
        release.wait(5.0)
        return threading.current_thread().name

    server.add("Say.Slow", slow)
    await harness.serve(server)
    waiting = asyncio.create_task(harness.client.call(GREETER, "Say.Slow", 1))
    assert await harness.client.call(GREETER, "Say.Echo", "meanwhile") == "meanwhile"
    release.set()
    assert await waiting != threading.main_thread().name


# Errors


@pytest.mark.parametrize(
    ("request_value", "message"),
    [
        ({}, "name: missing field"),
        (None, "name: missing field"),
        ({"nmae": "John"}, "name: missing field"),
        ({"name": 7}, "name: expected str, got int"),
        ({"name": "J", "times": "3"}, "times: expected int, got str"),
        ({"name": "J", "times": True}, "times: expected int, got bool"),
        ({"name": "J", "mood": "hot"}, "mood: expected one of 'warm', 'cool', got 'hot'"),
        ({"name": "J", "address": {}}, "address.city: missing field"),
        ({"name": "J", "address": {"city": "Y", "lines": ["a", 2]}}, "address.lines[1]: expected str, got int"),
        ({"name": "J", "address": 3}, "address: expected a map (Address), got int"),
        ("John", "request: expected a map (HelloRequest), got str"),
    ],
)
async def test_error_of_an_invalid_request_names_the_field(
    harness: ServiceHarness, request_value: Any, message: str
) -> None:
    await harness.serve(greeter())
    with pytest.raises(BadRequest) as caught:
        await harness.client.call(GREETER, "Say.Hello", request_value)
    assert caught.value.detail == message
    assert caught.value.at == "greeter-1"


async def test_unknown_fields_are_ignored(harness: ServiceHarness) -> None:
    await harness.serve(greeter())
    answer = await harness.client.call(GREETER, "Say.Hello", {"name": "John", "shoe_size": 43})
    assert answer == {"msg": "Hello John!"}


@pytest.mark.parametrize(
    "error_class", [NotFound, Forbidden, Conflict, Overloaded, Draining, DeadlineExceeded, Unreachable]
)
async def test_error_of_a_handler_is_raised_with_the_same_class_by_the_client(
    harness: ServiceHarness, error_class: type[MicroError]
) -> None:
    server, runs = greeter(), []

    async def refuse() -> None:
        runs.append(1)
        raise error_class("not today", hint="tomorrow")

    server.add("Say.Refuse", refuse)
    await harness.serve(server)
    with pytest.raises(error_class) as caught:
        await harness.client.call(GREETER, "Say.Refuse", retries=3)
    error = caught.value
    assert (type(error), error.detail, error.hint, error.at) == (error_class, "not today", "tomorrow", "greeter-1")
    assert len(runs) == 1, "a call whose handler was started is not retried"


async def test_error_keeps_the_origin_and_the_id_that_the_handler_set(harness: ServiceHarness) -> None:
    server = greeter()

    async def refuse() -> None:
        raise NotFound("no such order", at="orders-3", id="order-not-found")

    server.add("Say.Refuse", refuse)
    await harness.serve(server)
    with pytest.raises(NotFound) as caught:
        await harness.client.call(GREETER, "Say.Refuse")
    assert (caught.value.at, caught.value.id) == ("orders-3", "order-not-found")


async def test_other_exception_becomes_an_internal_error_without_a_traceback(
    harness: ServiceHarness, caplog: pytest.LogCaptureFixture
) -> None:
    server = greeter()

    async def fail() -> None:
        raise ZeroDivisionError("by zero")

    server.add("Say.Fail", fail)
    await harness.serve(server)
    with pytest.raises(InternalError) as caught:
        await harness.client.call(GREETER, "Say.Fail")
    assert caught.value.detail == "ZeroDivisionError: by zero"
    assert "Traceback" in caplog.text
    assert counted(server)["calls_failed"] == 1


async def test_config_error_of_a_handler_becomes_an_internal_error(harness: ServiceHarness) -> None:
    server = greeter()

    async def fail() -> None:
        raise ConfigError("no such option")

    server.add("Say.Fail", fail)
    await harness.serve(server)
    with pytest.raises(InternalError, match="no such option"):
        await harness.client.call(GREETER, "Say.Fail")


async def test_unknown_service_is_not_found_at_once_with_a_hint_about_the_proxy(harness: ServiceHarness) -> None:
    with pytest.raises(ServiceNotFound, match="MICRO_PROXY") as caught:
        await asyncio.wait_for(harness.client.call("go.micro.srv.unknown", "Say.Hello"), 1.0)
    assert caught.value.at == "client"


async def test_unknown_endpoint_is_not_found_and_the_hint_lists_available_endpoints(harness: ServiceHarness) -> None:
    await harness.serve(greeter())
    with pytest.raises(EndpointNotFound, match=r"Say\.Hello"):
        await harness.client.call(GREETER, "Say.Helo")


async def test_instance_refuses_requests_for_another_service(harness: ServiceHarness) -> None:
    instance = await harness.serve(greeter())
    with pytest.raises(ServiceNotFound):
        await harness.client.call("go.micro.srv.other", "Say.Hello", {"name": "J"}, address=instance.address)


async def test_unary_call_to_a_streaming_endpoint_is_a_bad_request(harness: ServiceHarness) -> None:
    await harness.serve(greeter())
    with pytest.raises(BadRequest, match="server-stream"):
        await harness.client.call(GREETER, "Say.CountTo", 3)


async def test_answer_that_does_not_have_the_response_type_is_malformed(harness: ServiceHarness) -> None:
    await harness.serve(greeter())
    with pytest.raises(Malformed, match="msg: missing field"):
        await harness.client.call(GREETER, "Say.Echo", {"name": "J"}, response_type=HelloReply)


async def test_invalid_or_too_deep_body_fails_only_its_own_call(
    harness: ServiceHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    await harness.serve(greeter())
    await harness.client.call(GREETER, "Say.Echo", 1)
    deep = b"\x91" * (limits.MAX_NESTING + 5) + b"\x90"
    for body, expected in ((b"\xc1", Malformed), (deep, TooLarge)):
        with monkeypatch.context() as patch, pytest.raises(expected):  # noqa: PT012 - the block raises in the stream
            patch.setattr(codec, "encode", lambda *_, body=body: body)
            await harness.client.call(GREETER, "Say.Echo", 0)
    assert await harness.client.call(GREETER, "Say.Echo", 2) == 2
    assert len(harness.transport.sockets) == 1


# Deadlines and cancellation


async def test_deadline_ends_the_call_on_client_and_server(harness: ServiceHarness, until: Until) -> None:
    server, ended = greeter(), []

    async def hang() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(1)

    server.add("Say.Hang", hang)
    await harness.serve(server)
    started_at = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        await harness.client.call(GREETER, "Say.Hang", timeout_s=0.1)
    assert time.monotonic() - started_at < 1.0
    await until(lambda: bool(ended) and server.in_flight == 0)


async def test_server_ends_a_call_whose_client_does_not_enforce_the_deadline(
    harness: ServiceHarness, until: Until
) -> None:
    server, ended = greeter(), []

    async def hang(request: None, context: CallContext) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(context.cancelled)

    server.add("Say.Hang", hang)
    await harness.serve(server)
    stream = harness.client.stream(GREETER, "Say.Hang", None, timeout_s=0.05)
    async with stream:
        stream._timer.cancel()  # type: ignore[union-attr]
        with pytest.raises(DeadlineExceeded) as caught:
            await stream.receive()
    assert caught.value.at == "greeter-1"
    await until(lambda: ended == [True])


async def test_cancelling_the_client_cancels_the_handler(harness: ServiceHarness, until: Until) -> None:
    server, started, cancelled = greeter(), asyncio.Event(), []

    async def hang() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(1)
            raise

    server.add("Say.Hang", hang)
    await harness.serve(server)
    task = asyncio.create_task(harness.client.call(GREETER, "Say.Hang"))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: bool(cancelled) and server.in_flight == 0)
    assert counted(server)["calls_cancelled"] == 1
    assert all(connection.open_streams == 0 for connection in harness.connections)


async def test_handler_that_cancels_itself_causes_an_internal_error(harness: ServiceHarness) -> None:
    server = greeter()

    async def leave() -> None:
        raise asyncio.CancelledError

    server.add("Say.Leave", leave)
    await harness.serve(server)
    with pytest.raises(InternalError, match="cancelled"):
        await harness.client.call(GREETER, "Say.Leave")


async def test_lost_connection_ends_its_calls_on_both_sides(harness: ServiceHarness, until: Until) -> None:
    server, started = greeter(), []

    async def hang() -> None:
        started.append(1)
        await asyncio.Event().wait()

    server.add("Say.Hang", hang)
    await harness.serve(server)
    calls = [asyncio.create_task(harness.client.call(GREETER, "Say.Hang")) for _ in range(3)]
    await until(lambda: len(started) == 3)
    harness.transport.sockets[0].lose(LinkLost("cut"))
    assert [type(error) for error in await asyncio.gather(*calls, return_exceptions=True)] == [LinkLost] * 3
    await until(lambda: server.in_flight == 0)
    assert len(started) == 3, "a call whose handler was started is not retried"


# Streams


async def test_server_stream_yields_its_items(harness: ServiceHarness) -> None:
    await harness.serve(greeter())
    async with harness.client.stream(GREETER, "Say.CountTo", 5, mode=CallMode.SERVER_STREAM) as stream:
        assert [item async for item in stream] == [0, 1, 2, 3, 4]
        with pytest.raises(Ended):
            await stream.receive()


async def test_stream_that_was_not_opened_does_not_count_as_outstanding(harness: ServiceHarness) -> None:
    server = Server(GREETER)
    server.add("Say.Count", lambda: None)
    instance = await harness.serve(server)
    with pytest.raises(TooLarge):
        async with harness.client.stream(GREETER, "Say.Count", metadata={str(number): "x" for number in range(65)}):
            pass
    assert harness.client._selector.outstanding(instance.address) == 0


async def test_client_stream_is_answered_after_its_end(harness: ServiceHarness) -> None:
    await harness.serve(greeter())
    async with harness.client.stream(GREETER, "Say.AddUp", mode=CallMode.CLIENT_STREAM) as stream:
        for number in range(10):
            await stream.send(number)
        await stream.end()
        assert await stream.receive() == 45
        with pytest.raises(Ended):
            await stream.send(1)


async def test_bidirectional_stream_continues_after_half_close(harness: ServiceHarness) -> None:
    await harness.serve(greeter())
    async with harness.client.stream(GREETER, "Say.Double", mode=CallMode.BIDIRECTIONAL) as stream:
        for number in range(3):
            await stream.send(number)
            assert await stream.receive() == number * 2
        await stream.send(21)
        await stream.end()
        with pytest.raises(BadRequest):
            await stream.send(1)
        assert [item async for item in stream] == [42]


@pytest.mark.parametrize(
    ("endpoint", "sends", "expected"),
    [
        ("Say.CountTo", [3], [0, 1, 2]),
        ("Say.AddUp", [1, 2], [3]),
        ("Say.Double", [4, 5], [8, 10]),
        ("Say.Echo", ["x"], ["x"]),
    ],
)
async def test_default_stream_mode_works_for_every_kind_of_endpoint(
    harness: ServiceHarness, endpoint: str, sends: list[Any], expected: list[Any]
) -> None:
    await harness.serve(greeter())
    async with harness.client.stream(GREETER, endpoint) as stream:
        for item in sends:
            await stream.send(item)
        await stream.end()
        assert [item async for item in stream] == expected


async def test_stream_of_bytes_can_return_other_types(harness: ServiceHarness) -> None:
    server = greeter()

    async def measure(items: AsyncIterator[bytes]) -> int:
        return sum([len(item) async for item in items])

    async def measure_each(items: AsyncIterator[bytes]) -> AsyncIterator[int]:
        async for item in items:
            yield len(item)

    server.add("Say.Measure", measure)
    server.add("Say.MeasureEach", measure_each)
    await harness.serve(server)
    for endpoint, expected in (("Say.Measure", [5]), ("Say.MeasureEach", [2, 3])):
        async with harness.client.stream(GREETER, endpoint, content_type=codec.BYTES) as stream:
            await stream.send(b"ab")
            await stream.send(b"abc")
            await stream.end()
            assert [item async for item in stream] == expected


async def test_leaving_a_stream_cancels_the_handler(harness: ServiceHarness, until: Until) -> None:
    server, closed = greeter(), []

    async def forever() -> AsyncIterator[int]:
        try:
            while True:
                yield 1
                await asyncio.sleep(0)
        finally:
            closed.append(1)

    server.add("Say.Forever", forever)
    await harness.serve(server)
    async with harness.client.stream(GREETER, "Say.Forever", mode=CallMode.SERVER_STREAM) as stream:
        assert await stream.receive() == 1
    await until(lambda: bool(closed) and server.in_flight == 0)
    with pytest.raises(Closed):  # noqa: PT012 - the block raises in the stream
        while True:
            await stream.receive()


async def test_items_before_an_error_are_received_first(harness: ServiceHarness) -> None:
    server = greeter()

    async def two_then_fail() -> AsyncIterator[int]:
        yield 1
        yield 2
        raise NotFound("no third")

    server.add("Say.Fail", two_then_fail)
    await harness.serve(server)
    got = []
    with pytest.raises(NotFound, match="no third"):  # noqa: PT012 - the block raises in the stream
        async with harness.client.stream(GREETER, "Say.Fail", mode=CallMode.SERVER_STREAM) as stream:
            async for item in stream:
                got.append(item)  # noqa: PERF401 - a comprehension would lose the items before the error
    assert got == [1, 2]


async def test_invalid_item_fails_the_stream_with_a_bad_request(harness: ServiceHarness) -> None:
    await harness.serve(greeter())
    async with harness.client.stream(GREETER, "Say.AddUp", mode=CallMode.CLIENT_STREAM) as stream:
        await stream.send("three")
        with pytest.raises(BadRequest, match="expected int, got str"):
            await stream.receive()


async def test_handler_waits_for_a_client_that_does_not_read(harness: ServiceHarness, until: Until) -> None:
    server, sent = greeter(), []

    async def send_endlessly() -> AsyncIterator[bytes]:
        while True:
            sent.append(1)
            yield bytes(10_000)

    server.add("Say.Pour", send_endlessly)
    await harness.serve(server)
    async with harness.client.stream(GREETER, "Say.Pour", mode=CallMode.SERVER_STREAM) as stream:
        await stream.receive()
        stuck = await idle(lambda: len(sent))
        assert len(sent) * 10_000 < 2 * limits.STREAM_WINDOW_BYTES
        for _ in range(100):
            await stream.receive()
        assert len(sent) > stuck


async def test_client_waits_for_a_handler_that_does_not_read(harness: ServiceHarness) -> None:
    server = greeter()
    go_on = asyncio.Event()

    async def late(items: AsyncIterator[bytes]) -> int:
        await go_on.wait()
        return sum([len(item) async for item in items])

    server.add("Say.Late", late)
    await harness.serve(server)
    async with harness.client.stream(GREETER, "Say.Late", mode=CallMode.CLIENT_STREAM) as stream:

        async def send_all() -> None:
            for _ in range(1000):
                await stream.send(bytes(50_000))

        sending = asyncio.create_task(send_all())
        await idle(lambda: len(harness.transport.sockets[0].sent))
        assert not sending.done()
        assert len(harness.transport.sockets[0].sent) < 2 * limits.STREAM_WINDOW_BYTES
        sending.cancel()
        await asyncio.wait([sending])
        go_on.set()
        await stream.end()
        assert await stream.receive() >= 250_000


# Concurrency limit and shutdown


async def test_calls_above_the_limit_are_refused_as_overloaded(harness: ServiceHarness, until: Until) -> None:
    server, release = greeter(max_concurrent=2), asyncio.Event()

    async def wait() -> str:
        await release.wait()
        return "done"

    server.add("Say.Wait", wait)
    await harness.serve(server)
    running = [asyncio.create_task(harness.client.call(GREETER, "Say.Wait")) for _ in range(2)]
    await until(lambda: server.in_flight == 2)
    with pytest.raises(Overloaded):
        await harness.client.call(GREETER, "Say.Wait", retries=0)
    release.set()
    assert await asyncio.gather(*running) == ["done", "done"]
    assert await harness.client.call(GREETER, "Say.Wait", retries=0) == "done"


async def test_draining_server_finishes_running_calls_and_refuses_new_ones(
    harness: ServiceHarness, until: Until
) -> None:
    server, release = greeter(), asyncio.Event()

    async def wait() -> str:
        await release.wait()
        return "done"

    server.add("Say.Wait", wait)
    await harness.serve(server)
    running = asyncio.create_task(harness.client.call(GREETER, "Say.Wait"))
    await until(lambda: server.in_flight == 1)
    draining = asyncio.create_task(server.drain(5.0))
    await until(lambda: server.is_draining)
    with pytest.raises(Draining):
        await harness.client.call(GREETER, "Say.Echo", 1, retries=0)
    release.set()
    assert await running == "done"
    assert await draining is True


async def test_draining_cancels_calls_after_the_timeout(harness: ServiceHarness, until: Until) -> None:
    server = greeter()

    async def hang() -> None:
        await asyncio.Event().wait()

    server.add("Say.Hang", hang)
    await harness.serve(server)
    running = asyncio.create_task(harness.client.call(GREETER, "Say.Hang"))
    await until(lambda: server.in_flight == 1)
    assert await server.drain(0.01) is False
    with pytest.raises(InternalError):
        await running


# Interceptors


async def test_interceptors_wrap_calls_on_both_sides_the_first_outermost(harness: ServiceHarness) -> None:
    order: list[str] = []

    def named(name: str) -> Callable[[CallInfo, Next], Awaitable[Any]]:
        async def interceptor(call: CallInfo, proceed: Next) -> Any:
            order.append(f"{name} {call.side} {call.metadata.get('by', '')}".strip())
            call.metadata["by"] = name
            answer = await proceed(call)
            order.append(name)
            return answer

        return interceptor

    server = greeter(interceptors=[named("c"), named("d")])
    await harness.serve(server)
    client = harness.new_client(interceptors=[named("a"), named("b")])
    assert await client.call(GREETER, "Say.Hello", {"name": "J"}) == {"msg": "Hello J!"}
    assert order == ["a client", "b client a", "c server b", "d server c", "d", "c", "b", "a"]


async def test_interceptor_can_refuse_a_call_before_the_handler_runs(harness: ServiceHarness) -> None:
    async def guard(call: CallInfo, proceed: Next) -> Any:
        if call.metadata.get("token") != "secret":
            raise Forbidden("no token")
        return await proceed(call)

    await harness.serve(greeter(interceptors=[guard]))
    with pytest.raises(Forbidden):
        await harness.client.call(GREETER, "Say.Echo", 1)
    with pytest.raises(Forbidden):
        async with harness.client.stream(GREETER, "Say.Double") as stream:
            await stream.receive()
    assert await harness.client.call(GREETER, "Say.Echo", 1, metadata={"token": "secret"}) == 1


async def test_frame_of_an_unknown_call_closes_only_its_connection(harness: ServiceHarness, until: Until) -> None:
    instance = await harness.serve(greeter())
    await harness.client.call(GREETER, "Say.Echo", 1)
    bad = await harness.transport.dial(instance.address, timeout_s=1.0)
    bad.write(frames.encode(Kind.RESPONSE, 2, b"", b""))
    await until(lambda: any(connection.error is not None for connection in harness.connections))
    assert await harness.client.call(GREETER, "Say.Echo", 2) == 2
    assert len(harness.transport.dialed) == 2


# Messages from a node


async def test_message_reaches_all_subscribers_of_its_topic_although_one_fails(
    harness: ServiceHarness, until: Until, caplog: pytest.LogCaptureFixture
) -> None:
    server, received = greeter(), []

    async def good(order: dict[str, int]) -> None:
        received.append(order["number"])

    async def bad(order: dict[str, int]) -> None:
        raise ZeroDivisionError

    def in_a_thread(order: dict[str, int]) -> None:
        received.append(-order["number"])

    for handler in (bad, good, in_a_thread):
        server.add_subscriber("orders.created", handler)
    instance = await harness.serve(server)
    connection = Connection(await harness.transport.dial(instance.address, timeout_s=1.0), dialed=True)
    for topic, body in (("orders.created", codec.encode({"number": 5})), ("other", b""), ("orders.created", b"\xc1")):
        connection.send(
            b"".join(frames.encode_message(Kind.EVENT, 0, encode_header(EventHeader(topic, "0" * 32)), body))
        )
    await until(lambda: len(received) == 2 and counted(server).get("events_failed") == 4)
    assert sorted(received) == [-5, 5]
    assert "a subscriber failed" in caplog.text
    await connection.close()


async def test_slow_subscriber_loses_the_newest_messages(
    harness: ServiceHarness, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("micro_core.rpc.subscribers.MAX_CONCURRENT_EVENTS", 3)
    server, received, release = greeter(), [], asyncio.Event()

    async def slow(number: int) -> None:
        await release.wait()
        received.append(number)

    server.add_subscriber("numbers", slow)
    header = EventHeader("numbers", "0" * 32)
    for number in range(5):
        server.event_received(None, header, codec.encode(number))  # type: ignore[arg-type]  # the connection is not used
    release.set()
    await until(lambda: len(received) == 3)
    assert received == [0, 1, 2]
    assert counted(server)["events_dropped_overloaded"] == 2


@pytest.mark.parametrize("handler", [count_to, add_all])
def test_subscriber_must_take_exactly_one_message(handler: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError):
        greeter().add_subscriber("numbers", handler)
