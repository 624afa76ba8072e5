"""Without JetStream, against real servers that are there."""

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

PATIENCE_S = 15.0


async def test_sites_and_networks_that_share_a_server_stay_apart(site: Any, shared: Any) -> None:
    here, there = await site.broker(shared), await site.broker(shared, site="us")
    heard, elsewhere = site.heard(), site.heard()
    await here.subscribe("orders", heard)
    await there.subscribe(">", elsewhere)
    await here.publish("orders", site.message(1))
    await there.publish("orders", site.message(2))
    await site.until(lambda: heard.messages and elsewhere.messages)
    assert (heard.numbers, elsewhere.numbers) == ([1], [2])


async def test_publishers_that_run_together_are_each_heard_in_order(site: Any, shared: Any) -> None:
    publishers = [await site.broker(shared) for _ in range(4)]
    subscriber, heard = await site.broker(shared), site.heard()
    await subscriber.subscribe("orders", heard)

    async def publish(which: int) -> None:
        for number in range(100):
            await publishers[which].publish("orders", site.message(number, publisher=str(which)))

    await asyncio.gather(*(publish(which) for which in range(4)))
    await site.until(lambda: len(heard.messages) == 400)
    for which in range(4):
        own = [int(each.headers["n"]) for each in heard.messages if each.headers["publisher"] == str(which)]
        assert own == list(range(100))


async def test_many_publications_at_once_share_the_server_s_answers(site: Any, shared: Any) -> None:
    broker, heard = await site.broker(shared), site.heard()
    await broker.subscribe("orders", heard)
    session = broker._connection.session
    pings = 0
    rtt = session.client.rtt

    async def counted(**words: Any) -> float:
        nonlocal pings
        pings += 1
        return float(await rtt(**words))

    session.client.rtt = counted
    await asyncio.gather(*(broker.publish("orders", site.message(number)) for number in range(500)))
    await site.until(lambda: len(heard.messages) == 500)
    assert heard.numbers == list(range(500))
    assert pings < 50


async def test_the_answer_comes_behind_what_was_published(site: Any, shared: Any) -> None:
    # nats-py writes its PING past the messages that wait to be written.
    broker = await site.broker(shared)
    session = broker._connection.session
    written: list[bytes] = []
    line = session.client.nats_transport._io_writer
    writelines, write = line.writelines, line.write

    def all_written(lines: list[bytes]) -> None:
        written.extend(lines)
        writelines(lines)

    def one_written(data: bytes) -> None:
        written.append(data)
        write(data)

    line.writelines, line.write = all_written, one_written
    await broker.publish("orders", site.message(1, b"the body"))
    assert [b"PING" in each for each in written if b"the body" in each or each == b"PING\r\n"] == [False, True]


async def test_a_group_is_balanced_and_survives_a_member_that_leaves(site: Any, shared: Any) -> None:
    publisher, members = await site.broker(shared), [site.heard() for _ in range(3)]
    subscriptions = [await (await site.broker(shared)).subscribe("jobs", each, queue="a b/ü.*") for each in members]
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


async def test_a_message_over_the_server_s_bound_is_refused_and_the_connection_stays(
    site: Any, server: Callable[..., Any]
) -> None:
    one = server(config="max_payload: 2KB\n")
    broker, heard = await site.broker(one), site.heard()
    await broker.subscribe("orders", heard)
    with pytest.raises(TooLarge, match=r"exceeds max_payload of the server \(2048\)"):
        await broker.publish("orders", site.message(1, bytes(2048)))
    with pytest.raises(TooLarge, match=r"exceeds max_payload of the server \(2048\)"):
        # Headers count.
        await broker.publish("orders", site.message(2, b"", much="x" * 2048))
    with pytest.raises(TooLarge, match=r"4194304"):
        await broker.publish("orders", site.message(2, bytes(5_000_000)))
    await broker.publish("orders", site.message(3, bytes(1500)))
    await site.until(lambda: heard.messages)
    assert heard.numbers == [3]
    assert site.counted(broker, "broker_nats_connections_lost") == 0


async def test_a_slow_subscriber_loses_the_newest_and_it_is_said_once_a_burst(
    site: Any, shared: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "test.nats")
    publisher, slow, quick = await site.broker(shared), site.heard(), site.heard()
    subscriber = await site.broker(shared, max_waiting=10)
    await subscriber.subscribe("orders", slow)
    await subscriber.subscribe("orders", quick)
    for burst in range(2):
        slow.gate.clear()
        quick.messages.clear()
        slow.messages.clear()
        # The first is being handled, ten wait.
        for number in range(50):
            await publisher.publish("orders", site.message(number))
            if number == 0:
                await site.until(lambda: slow.calls == 1 + 11 * burst)  # noqa: B023 - called at once
        await site.until(lambda: len(quick.messages) == 50)
        assert site.counted(subscriber, "broker_messages_dropped_slow_subscriber") == 39 * (burst + 1)
        slow.gate.set()
        await site.until(lambda: len(slow.messages) == 11)
        assert slow.numbers == list(range(11))
        await site.until(lambda: len([r for r in caplog.records if "caught up" in r.message]) == burst + 1)  # noqa: B023
    assert len([record for record in caplog.records if "too slow" in record.message]) == 2


async def test_garbage_of_strangers_is_counted_and_disturbs_nobody(site: Any, shared: Any) -> None:
    broker, heard = await site.broker(shared), site.heard()
    await broker.subscribe(">", heard)
    prefix = broker._subjects.prefix.encode()
    stranger = socket.create_connection(("127.0.0.1", shared.port))
    head = b'CONNECT {"verbose":false,"headers":true,"lang":"x","version":"0"}\r\n'
    garbage = [
        b"PUB " + prefix + b"a 5\r\nhello\r\n",
        # Header blocks that nats-py's parser stumbles over: nothing, a status that is no text, no line at all.
        b"HPUB " + prefix + b"a 10 10\r\nNATS/1.0\r\n\r\n",
        b"HPUB " + prefix + b"a 18 18\r\nNATS/1.0 \xff\xff\xff x\r\n\r\n\r\n",
        b"HPUB " + prefix + b"a 8 9\r\nNATS/1.0x\r\n",
        b"HPUB " + prefix + b"a 27 28\r\nNATS/1.0\r\nMicro-Id: %zz\r\n\r\nx\r\n",
        # A subject that is no text.
        b"PUB " + prefix + b"\xff\xfe 0\r\n\r\n",
    ]
    stranger.sendall(head + b"".join(garbage) + b"PING\r\n")
    await broker.publish("a", site.message(1))
    await site.until(lambda: site.counted(broker, "broker_nats_garbage") == len(garbage) and heard.messages)
    stranger.close()
    await broker.publish("a", site.message(2))
    await site.until(lambda: len(heard.messages) == 2)
    assert heard.numbers == [1, 2]
    assert site.counted(broker, "broker_nats_connections_lost") == 0


async def test_other_nats_programs_may_join_in(site: Any, shared: Any) -> None:
    broker, heard = await site.broker(shared), site.heard()
    await broker.subscribe("orders", heard)
    other = await nats.connect(shared.url)
    try:
        subject = broker._subjects.of("orders")
        theirs = await other.subscribe(subject)
        # On another connection: the server may read what is published there first.
        await other.flush()
        await broker.publish("orders", site.message(1, b"ours", trace="a b"))
        received = await theirs.next_msg(timeout=PATIENCE_S)
        assert received.headers is not None
        assert (received.data, received.headers["trace"]) == (b"ours", "a b")
        await other.publish(subject, b"theirs", headers={"Micro-Id": "77", "Content-Type": "text/plain", "n": "2"})
        await site.until(lambda: len(heard.messages) == 2)
        assert heard.messages[1] == Message(id="77", body=b"theirs", content_type="text/plain", headers={"n": "2"})
    finally:
        await other.close()


async def test_a_handler_that_hangs_or_cancels_itself_holds_up_nobody(site: Any, shared: Any) -> None:
    broker, after = await site.broker(shared), site.heard()
    seen: list[int] = []

    async def cancels_itself(_topic: str, message: Message) -> None:
        seen.append(int(message.headers["n"]))
        raise asyncio.CancelledError

    await broker.subscribe("orders", cancels_itself)
    await broker.subscribe("orders", after)
    for number in range(3):
        await broker.publish("orders", site.message(number))
    await site.until(lambda: seen == after.numbers == [0, 1, 2])
    assert site.counted(broker, "broker_handlers_failed") == 3


async def test_a_subscription_that_its_own_handler_ends(site: Any, shared: Any) -> None:
    broker, seen = await site.broker(shared), []

    async def once(_topic: str, message: Message) -> None:
        seen.append(message.id)
        await subscription.close()

    subscription = await broker.subscribe("orders", once)
    await broker.publish("orders", site.message(1))
    await site.until(lambda: seen)
    await broker.publish("orders", site.message(2))
    assert len(seen) == 1


async def test_closing_handles_what_has_arrived(site: Any, shared: Any) -> None:
    publisher, leaving = await site.broker(shared), await site.broker(shared)
    handled: list[int] = []

    async def takes_a_moment(_topic: str, message: Message) -> None:
        await asyncio.sleep(0.002)
        handled.append(int(message.headers["n"]))

    await leaving.subscribe("orders", takes_a_moment)
    for number in range(100):
        await publisher.publish("orders", site.message(number))
    await leaving.close()
    assert handled == list(range(100))
    with pytest.raises(Closed):
        await leaving.publish("orders", site.message(1))
    with pytest.raises(Closed):
        await leaving.subscribe("orders", takes_a_moment)


async def test_a_broker_that_was_not_started_says_so(site: Any, shared: Any) -> None:
    broker = await site.broker(shared)
    await broker.close()
    await broker.close()
    fresh = type(broker)(broker._options, site.context())
    with pytest.raises(Closed, match="not started"):
        await fresh.publish("orders", site.message(1))
    await fresh.close()


async def test_too_much_at_once_is_refused_not_buffered(
    site: Any, shared: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "MAX_UNANSWERED", 20)
    broker = await site.broker(shared)
    results = await asyncio.gather(
        *(broker.publish("orders", site.message(number)) for number in range(100)), return_exceptions=True
    )
    refused = [each for each in results if each is not None]
    assert 0 < len(refused) < 100
    assert all(isinstance(each, Overloaded) for each in refused)


async def test_what_the_server_does_not_allow_is_forbidden(site: Any, server: Callable[..., Any]) -> None:
    one = server(
        config="""
        authorization { users: [
          {user: "writer", password: "w", permissions: {publish: "micro.>", subscribe: "_INBOX.>"}}
          {user: "reader", password: "r", permissions: {publish: "_INBOX.>", subscribe: "micro.>"}}
        ]}
        """
    )
    writer = await site.broker(one, user="writer", password="w")
    reader, heard = await site.broker(one, user="reader", password="r"), site.heard()
    await reader.subscribe("orders", heard)
    await writer.publish("orders", site.message(1))
    with pytest.raises(Forbidden, match="publish"):
        await reader.publish("orders", site.message(2))
    with pytest.raises(Forbidden, match="subscribe"):
        await writer.subscribe("orders", heard)
    await writer.publish("orders", site.message(3))
    await site.until(lambda: len(heard.messages) == 2)
    assert heard.numbers == [1, 3]


async def test_a_queue_that_is_no_text_is_refused(site: Any, shared: Any) -> None:
    broker = await site.broker(shared)
    for queue in ("\ud800", "a\r\nb", "q" * 300):
        with pytest.raises(BadRequest):
            await broker.subscribe("orders", site.heard(), queue=queue)


async def test_a_dead_letter_topic_that_is_no_topic_is_a_wrong_option(site: Any, shared: Any) -> None:
    with pytest.raises(OptionError, match="dead_letter_topic"):
        await site.broker(shared, dead_letter_topic="dead letters")


async def test_a_pattern_is_refused_where_a_topic_is_wanted(site: Any, shared: Any) -> None:
    broker = await site.broker(shared)
    for topic in ("orders.*", ">", "a b", ""):
        with pytest.raises(BadRequest):
            await broker.publish(topic, site.message(1))
