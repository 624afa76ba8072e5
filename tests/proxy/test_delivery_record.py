"""Since when a node knows which messages of other sites its site has received."""

from __future__ import annotations

from micro_core.proxy.delivery_record import DELAY_S, DeliveryRecord
from micro_core.proxy.handover import OVERLAP_S


def test_new_record_knows_nothing() -> None:
    record = DeliveryRecord()
    assert not record.is_complete_since("orders", 1_000.0)
    record.set_leader(False, 0.0)
    assert not record.is_complete_since("orders", 1_000.0)


def test_subscriber_knows_the_messages_of_its_topic_since_the_subscription() -> None:
    record = DeliveryRecord()
    record.subscribed("orders", 10.0)
    assert not record.is_complete_since("orders", 9.0)
    # The message may have been published a little before its sender received it.
    assert not record.is_complete_since("orders", 10.0 + DELAY_S / 2)
    assert record.is_complete_since("orders", 10.0 + DELAY_S)
    assert not record.is_complete_since("payments", 100.0)


def test_subscriber_that_has_unsubscribed_knows_nothing_until_it_subscribes_again() -> None:
    record = DeliveryRecord()
    record.subscribed("orders", 10.0)
    record.unsubscribed("orders")
    record.unsubscribed("orders")
    assert not record.is_complete_since("orders", 20.0)
    record.subscribed("orders", 30.0)
    assert not record.is_complete_since("orders", 20.0)
    assert record.is_complete_since("orders", 30.0 + DELAY_S)


def test_leader_knows_the_messages_of_all_topics_once_all_senders_know_it() -> None:
    record = DeliveryRecord()
    record.set_leader(True, 10.0)
    record.set_leader(True, 50.0)
    assert not record.is_complete_since("orders", 10.0 + OVERLAP_S / 2)
    assert record.is_complete_since("orders", 10.0 + OVERLAP_S)


def test_former_leader_knows_only_the_topics_that_it_subscribes_to() -> None:
    record = DeliveryRecord()
    record.subscribed("orders", 5.0)
    record.set_leader(True, 10.0)
    record.set_leader(False, 50.0)
    assert record.is_complete_since("orders", 20.0)
    assert not record.is_complete_since("payments", 20.0)
    record.set_leader(True, 60.0)
    assert not record.is_complete_since("payments", 20.0)


def test_interrupted_record_begins_again() -> None:
    record = DeliveryRecord()
    record.interrupted(5.0)
    assert not record.is_complete_since("orders", 100.0)
    record.subscribed("orders", 10.0)
    record.set_leader(True, 10.0)
    record.interrupted(50.0)
    assert not record.is_complete_since("orders", 40.0)
    assert not record.is_complete_since("payments", 40.0)
    assert record.is_complete_since("orders", 50.0 + DELAY_S)
    assert record.is_complete_since("payments", 50.0 + OVERLAP_S)
