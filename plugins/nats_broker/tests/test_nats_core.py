"""The broker without JetStream, with real servers that keep running."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Any

import nats
import pytest
from micro_nats_broker import session as session_module

from micro_core.contract import BadRequest, Closed, Forbidden, Message, OptionError, Overloaded, TooLarge

TIMEOUT_S = 15.0


async def test_sites_and_networks_on_one_server_are_isolated(site: Any, shared_server: Any) -> None:
    eu, us = await site.broker(shared_server), await site.broker(shared_server, site="us")
    eu_handler, us_handler = site.handler(), site.handler()
    await eu.subscribe("orders", eu_handler)
    await us.subscribe(">", us_handler)
    await eu.publish("orders", site.message(1))
    await us.publish("orders", site.message(2))
    await site.until(lambda: eu_handler.messages and us_handler.messages)
    assert (eu_handler.numbers, us_handler.numbers) == ([1], [2])


async def test_messages_of_concurrent_publishers_arrive_in_order_per_publisher(site: Any, shared_server: Any) -> None:
    publishers = [await site.broker(shared_server) for _ in range(4)]
    subscriber, handler = await site.broker(shared_server), site.handler()
    await subscriber.subscribe("orders", handler)

    async def publish(index: int) -> None:
        for number in range(100):
            await publishers[index].publish("orders", site.message(number, publisher=str(index)))

    await asyncio.gather(*(publish(index) for index in range(4)))
    await site.until(lambda: len(handler.messages) == 400)
    for index in range(4):
        numbers = [int(each.headers["n"]) for each in handler.messages if each.headers["publisher"] == str(index)]
        assert numbers == list(range(100))


async def test_concurrent_publications_share_confirmations(site: Any, shared_server: Any) -> None:
    broker, handler = await site.broker(shared_server), site.handler()
    await broker.subscribe("orders", handler)
    session = broker._connection.session
    pings = 0
    rtt = session.client.rtt

    async def counting_rtt(**arguments: Any) -> float:
        nonlocal pings
        pings += 1
        return float(await rtt(**arguments))

    session.client.rtt = counting_rtt
    await asyncio.gather(*(broker.publish("orders", site.message(number)) for number in range(500)))
    await site.until(lambda: len(handler.messages) == 500)
    assert handler.numbers == list(range(500))
    assert pings < 50


async def test_confirmation_request_is_sent_after_the_message(site: Any, shared_server: Any) -> None:
    # nats-py itself writes a PING ahead of the messages in its write buffer.
    broker = await site.broker(shared_server)
    session = broker._connection.session
    written: list[bytes] = []
    writer = session.client.nats_transport._io_writer
    writelines, write = writer.writelines, writer.write

    def record_lines(lines: list[bytes]) -> None:
        written.extend(lines)
        writelines(lines)

    def record(data: bytes) -> None:
        written.append(data)
        write(data)

    writer.writelines, writer.write = record_lines, record
    await broker.publish("orders", site.message(1, b"the body"))
    assert [b"PING" in each for each in written if b"the body" in each or each == b"PING\r\n"] == [False, True]


async def test_queue_group_is_balanced_and_continues_without_a_closed_member(site: Any, shared_server: Any) -> None:
    publisher, members = await site.broker(shared_server), [site.handler() for _ in range(3)]
    subscriptions = [
        await (await site.broker(shared_server)).subscribe("jobs", each, queue="a b/ü.*") for each in members
    ]
    for number in range(300):
        await publisher.publish("jobs", site.message(number))
    await site.until(lambda: sum(len(each.messages) for each in members) == 300)
    assert all(len(each.messages) > 50 for each in members)
    await subscriptions[0].close()
    before = len(members[0].messages)
    for number in range(300, 400):
        await publisher.publish("jobs", site.message(number))
    await site.until(lambda: sum(len(each.messages) for each in members) == 400)
    assert len(members[0].messages) == before
    assert sorted(number for each in members for number in each.numbers) == list(range(400))


async def test_message_over_max_payload_is_refused_and_the_connection_stays_open(
    site: Any, start_server: Callable[..., Any]
) -> None:
    server = start_server(config="max_payload: 2KB\n")
    broker, handler = await site.broker(server), site.handler()
    await broker.subscribe("orders", handler)
    with pytest.raises(TooLarge, match=r"exceeds max_payload of the server \(2048\)"):
        await broker.publish("orders", site.message(1, bytes(2048)))
    with pytest.raises(TooLarge, match=r"exceeds max_payload of the server \(2048\)"):
        # The limit includes headers.
        await broker.publish("orders", site.message(2, b"", filler="x" * 2048))
    with pytest.raises(TooLarge, match=r"4194304"):
        await broker.publish("orders", site.message(2, bytes(5_000_000)))
    await broker.publish("orders", site.message(3, bytes(1500)))
    await site.until(lambda: handler.messages)
    assert handler.numbers == [3]
    assert site.count(broker, "broker_nats_connections_lost") == 0


async def test_slow_subscriber_loses_the_newest_messages_and_logs_once_per_burst(
    site: Any, shared_server: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "test.nats")
    publisher, slow, quick = await site.broker(shared_server), site.handler(), site.handler()
    subscriber = await site.broker(shared_server, max_waiting=10)
    await subscriber.subscribe("orders", slow)
    await subscriber.subscribe("orders", quick)
    for burst in range(2):
        slow.gate.clear()
        quick.messages.clear()
        slow.messages.clear()
        # One message is being handled and ten are queued.
        for number in range(50):
            await publisher.publish("orders", site.message(number))
            if number == 0:
                await site.until(lambda: slow.calls == 1 + 11 * burst)  # noqa: B023 - called at once
        await site.until(lambda: len(quick.messages) == 50)
        assert site.count(subscriber, "broker_messages_dropped_slow_subscriber") == 39 * (burst + 1)
        slow.gate.set()
        await site.until(lambda: len(slow.messages) == 11)
        assert slow.numbers == list(range(11))
        await site.until(lambda: len([r for r in caplog.records if "caught up" in r.message]) == burst + 1)  # noqa: B023
    assert len([record for record in caplog.records if "too slow" in record.message]) == 2


async def test_invalid_messages_are_counted_and_affect_no_others(site: Any, shared_server: Any) -> None:
    broker, handler = await site.broker(shared_server), site.handler()
    await broker.subscribe(">", handler)
    prefix = broker._subjects.prefix.encode()
    other_client = socket.create_connection(("127.0.0.1", shared_server.port))
    head = b'CONNECT {"verbose":false,"headers":true,"lang":"x","version":"0"}\r\n'
    garbage = [
        b"PUB " + prefix + b"a 5\r\nhello\r\n",
        # Header blocks that the parser of nats-py rejects: empty, a status that is not UTF-8, no line end.
        b"HPUB " + prefix + b"a 10 10\r\nNATS/1.0\r\n\r\n",
        b"HPUB " + prefix + b"a 18 18\r\nNATS/1.0 \xff\xff\xff x\r\n\r\n\r\n",
        b"HPUB " + prefix + b"a 8 9\r\nNATS/1.0x\r\n",
        b"HPUB " + prefix + b"a 27 28\r\nNATS/1.0\r\nMicro-Id: %zz\r\n\r\nx\r\n",
        # A subject that is not UTF-8.
        b"PUB " + prefix + b"\xff\xfe 0\r\n\r\n",
    ]
    other_client.sendall(head + b"".join(garbage) + b"PING\r\n")
    await broker.publish("a", site.message(1))
    await site.until(lambda: site.count(broker, "broker_nats_garbage") == len(garbage) and handler.messages)
    other_client.close()
    await broker.publish("a", site.message(2))
    await site.until(lambda: len(handler.messages) == 2)
    assert handler.numbers == [1, 2]
    assert site.count(broker, "broker_nats_connections_lost") == 0


async def test_other_nats_programs_can_publish_and_subscribe(site: Any, shared_server: Any) -> None:
    broker, handler = await site.broker(shared_server), site.handler()
    await broker.subscribe("orders", handler)
    other = await nats.connect(shared_server.url)
    try:
        subject = broker._subjects.of("orders")
        subscription = await other.subscribe(subject)
        # The broker has another connection, so the server must know the subscription before the message is published. The
        # first flush is not enough: nats-py sends its PING before the commands that it has queued.
        await other.flush()
        await other.flush()
        await broker.publish("orders", site.message(1, b"first", trace="a b"))
        received = await subscription.next_msg(timeout=TIMEOUT_S)
        assert received.headers is not None
        assert (received.data, received.headers["trace"]) == (b"first", "a b")
        await other.publish(subject, b"second", headers={"Micro-Id": "77", "Content-Type": "text/plain", "n": "2"})
        await site.until(lambda: len(handler.messages) == 2)
        assert handler.messages[1] == Message(id="77", body=b"second", content_type="text/plain", headers={"n": "2"})
    finally:
        await other.close()


async def test_handler_that_cancels_itself_does_not_block_other_handlers(site: Any, shared_server: Any) -> None:
    broker, other_handler = await site.broker(shared_server), site.handler()
    numbers: list[int] = []

    async def cancels_itself(_topic: str, message: Message) -> None:
        numbers.append(int(message.headers["n"]))
        raise asyncio.CancelledError

    await broker.subscribe("orders", cancels_itself)
    await broker.subscribe("orders", other_handler)
    for number in range(3):
        await broker.publish("orders", site.message(number))
    await site.until(lambda: numbers == other_handler.numbers == [0, 1, 2])
    assert site.count(broker, "broker_handlers_failed") == 3


async def test_handler_can_close_its_own_subscription(site: Any, shared_server: Any) -> None:
    broker, other_handler = await site.broker(shared_server), site.handler()
    numbers: list[int] = []

    async def close_subscription(_topic: str, message: Message) -> None:
        numbers.append(int(message.headers["n"]))
        await subscription.close()

    subscription = await broker.subscribe("orders", close_subscription)
    await broker.publish("orders", site.message(1))
    await site.until(lambda: numbers)
    await broker.subscribe("orders", other_handler)
    await broker.publish("orders", site.message(2))
    await site.until(lambda: other_handler.numbers == [2])
    assert numbers == [1]


async def test_close_handles_received_messages(site: Any, shared_server: Any) -> None:
    publisher, closing = await site.broker(shared_server), await site.broker(shared_server)
    handler = site.handler()
    handler.gate.clear()
    await closing.subscribe("orders", handler)
    for number in range(100):
        await publisher.publish("orders", site.message(number))
    await site.until(lambda: handler.calls == 1)
    close = asyncio.create_task(closing.close())
    await site.until(lambda: closing._is_closed)
    assert handler.numbers == []
    handler.gate.set()
    await close
    assert handler.numbers == list(range(100))
    with pytest.raises(Closed):
        await closing.publish("orders", site.message(1))
    with pytest.raises(Closed):
        await closing.subscribe("orders", handler)


async def test_broker_that_was_not_started_raises_closed(site: Any, shared_server: Any) -> None:
    broker = await site.broker(shared_server)
    await broker.close()
    await broker.close()
    not_started = type(broker)(broker._options, site.context())
    with pytest.raises(Closed, match="not started"):
        await not_started.publish("orders", site.message(1))
    await not_started.close()


async def test_publications_over_the_limit_are_refused_and_not_buffered(
    site: Any, shared_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "MAX_UNANSWERED", 20)
    broker = await site.broker(shared_server)
    results = await asyncio.gather(
        *(broker.publish("orders", site.message(number)) for number in range(100)), return_exceptions=True
    )
    refused = [each for each in results if each is not None]
    assert 0 < len(refused) < 100
    assert all(isinstance(each, Overloaded) for each in refused)


async def test_denied_operation_raises_forbidden(site: Any, start_server: Callable[..., Any]) -> None:
    server = start_server(
        config="""
        authorization { users: [
          {user: "writer", password: "w", permissions: {publish: "micro.>", subscribe: "_INBOX.>"}}
          {user: "reader", password: "r", permissions: {publish: "_INBOX.>", subscribe: "micro.>"}}
        ]}
        """
    )
    writer = await site.broker(server, user="writer", password="w")
    reader, handler = await site.broker(server, user="reader", password="r"), site.handler()
    await reader.subscribe("orders", handler)
    await writer.publish("orders", site.message(1))
    with pytest.raises(Forbidden, match="publish"):
        await reader.publish("orders", site.message(2))
    with pytest.raises(Forbidden, match="subscribe"):
        await writer.subscribe("orders", handler)
    await writer.publish("orders", site.message(3))
    await site.until(lambda: len(handler.messages) == 2)
    assert handler.numbers == [1, 3]


async def test_invalid_queue_name_is_rejected(site: Any, shared_server: Any) -> None:
    broker = await site.broker(shared_server)
    for queue in ("\ud800", "a\r\nb", "q" * 300):
        with pytest.raises(BadRequest):
            await broker.subscribe("orders", site.handler(), queue=queue)


async def test_invalid_dead_letter_topic_is_rejected(site: Any, shared_server: Any) -> None:
    with pytest.raises(OptionError, match="dead_letter_topic"):
        await site.broker(shared_server, dead_letter_topic="dead letters")


async def test_publishing_to_a_pattern_is_rejected(site: Any, shared_server: Any) -> None:
    broker = await site.broker(shared_server)
    for topic in ("orders.*", ">", "a b", ""):
        with pytest.raises(BadRequest):
            await broker.publish(topic, site.message(1))
