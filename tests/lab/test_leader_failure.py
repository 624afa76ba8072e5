"""Messages of a site with several nodes while the node that leads the site fails."""

from __future__ import annotations

import pytest

from micro_core.lab import loop
from micro_core.lab.lab_node import LabNode, SiteBroker
from micro_core.lab.net import Lab
from micro_core.lab.options import LabOptions
from micro_core.lab.topologies import four_clouds
from micro_core.lab.traffic import DETECTION_S, Messages


async def longest_loss_s(broker: SiteBroker, fault: str) -> tuple[float, int]:
    """Return the longest time for which a subscriber missed messages of one publisher, and the lost messages."""
    lab = Lab(1, options=LabOptions(keep_log=False))
    groups = await four_clouds(lab, 2, broker=broker)
    messages = Messages(lab, "orders")
    for group in groups[:2]:
        # The node with the larger id does not lead its site.
        await messages.subscribe(max(group, key=_node_id))
    await lab.advance_time(10)
    messages.publish_from([max(group, key=_node_id) for group in groups[:2]], per_s=8)
    await lab.advance_time(5)
    leader = min(groups[0], key=_node_id)
    began_at = lab.now
    if fault == "killed":
        await leader.kill(with_services=False)
    else:
        leader.sleep(60.0)
    await lab.advance_time(10)
    await messages.stop()
    await lab.advance_time(2)
    result = messages.longest_loss_s(began_at), len(messages.lost(began_at))
    await lab.close()
    return result


def _node_id(node: LabNode) -> str:
    return node.id


@pytest.mark.parametrize("fault", ["killed", "stopped"])
@pytest.mark.parametrize("broker", [SiteBroker.NODES, SiteBroker.SHARED])
def test_messages_are_missing_only_until_the_failed_leader_is_detected(broker: SiteBroker, fault: str) -> None:
    loss_s, lost = loop.run(longest_loss_s(broker, fault))
    assert loss_s <= DETECTION_S, f"{lost} messages lost, for up to {loss_s:.1f} s"
