"""Messages on sites with several nodes: each subscriber and each queue group receives each message exactly once."""

from __future__ import annotations

import pytest

from micro_core.lab import loop
from micro_core.lab.lab_node import SiteBroker
from micro_core.lab.net import Lab
from micro_core.lab.options import LabOptions
from micro_core.lab.topologies import flat, four_clouds
from micro_core.lab.traffic import Messages


async def deliveries(broker: SiteBroker, queue: str) -> tuple[int, int, int, int]:
    """Return the numbers of (expected deliveries, doubled ones, lost ones, dropped copies between sites)."""
    lab = Lab(1, options=LabOptions(keep_log=False))
    groups = await four_clouds(lab, 2, broker=broker)
    messages = Messages(lab, "orders")
    for group in groups[:2]:
        for node in group:
            await messages.subscribe(node, queue=queue)
    await lab.advance_time(10)
    messages.publish_from(flat(groups), per_s=20)
    await lab.advance_time(5)
    await messages.stop()
    await lab.advance_time(2)
    result = (
        messages.count(),
        len(messages.doubled()),
        len(messages.lost()),
        lab.counted("topics_copies_dropped"),
    )
    await lab.close()
    return result


@pytest.mark.parametrize("queue", ["", "workers"])
@pytest.mark.parametrize("broker", [SiteBroker.NODES, SiteBroker.SHARED])
def test_each_message_is_received_once(broker: SiteBroker, queue: str) -> None:
    expected, doubled, lost, _ = loop.run(deliveries(broker, queue))
    assert (doubled, lost) == (0, 0), f"{doubled} doubled and {lost} lost of {expected}"


@pytest.mark.parametrize("broker", [SiteBroker.NODES, SiteBroker.SHARED])
def test_each_message_is_sent_to_a_site_once(broker: SiteBroker) -> None:
    expected, _, _, dropped = loop.run(deliveries(broker, ""))
    assert dropped == 0, f"{dropped} copies dropped, {expected} deliveries"


async def test_one_copy_with_all_targets_goes_along_each_next_hop(micro_net: Lab) -> None:
    hub, publisher, *others = await micro_net.star(5)
    messages = Messages(micro_net, "orders")
    for node in others:
        await messages.subscribe(node)
    await micro_net.converged()
    await micro_net.advance_time(2)
    messages.publish_from([publisher], per_s=10)
    await micro_net.advance_time(2)
    await messages.stop()
    await micro_net.advance_time(2)
    count = len(messages.records)
    assert count >= 20
    assert messages.lost() == []
    assert publisher.counted("topics_messages_sent") == count
    assert hub.counted("topics_messages_sent") == len(others) * count
