"""Propagation of the graph of nodes: changes do not wait for the periodic renewal."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from micro_core.lab import loop
from micro_core.lab.net import Lab
from micro_core.lab.simulated_links import Conditions
from micro_core.network.network import RENEW_S

MAX_PROPAGATION_S = 2.0
"""Much less than the interval of the periodic renewal of records."""


def on_virtual_time(run: Callable[[Lab], Awaitable[None]]) -> None:
    async def main() -> None:
        lab = Lab(1)
        await run(lab)
        await lab.close()

    loop.run(main())


def test_node_that_links_to_a_neighbour_is_known_soon() -> None:
    async def run(lab: Lab) -> None:
        a = await lab.add("a")
        await lab.add("b", links=[a])
        await lab.converged()
        await lab.add("c", links=["b"])
        await lab.converged(MAX_PROPAGATION_S)
        assert [node.record.name for node in a.node.network.nodes()] == ["a", "b", "c"]

    assert MAX_PROPAGATION_S < RENEW_S / 10
    on_virtual_time(run)


def test_link_between_two_networks_joins_their_graphs_soon() -> None:
    async def run(lab: Lab) -> None:
        a = await lab.add("a")
        b = await lab.add("b", links=[a])
        d = await lab.add("d")
        c = await lab.add("c", links=[d])
        await lab.converged()
        await lab.link(b, c)
        await lab.advance_time(0.5)
        await lab.converged(MAX_PROPAGATION_S)
        assert [(node.record.name, node.hops) for node in a.node.network.nodes()] == [
            ("a", 0),
            ("b", 1),
            ("c", 2),
            ("d", 3),
        ]

    on_virtual_time(run)


@pytest.mark.parametrize("seed", range(3))
def test_all_nodes_within_three_hops_are_known_soon_after_a_large_start(seed: int) -> None:
    async def main() -> None:
        lab = Lab(seed, conditions=Conditions(delay_s=0.010, jitter_s=0.005, loss=0.01))
        await lab.random_graph(30)
        await lab.converged(MAX_PROPAGATION_S)
        await lab.close()

    loop.run(main())
