"""Whole networks of `Peers`: they become one component, again after each fault, with near links and bounded effort."""

from __future__ import annotations

import statistics

import pytest

from micro_core.network.link_targets import PeerOptions
from micro_core.network.peer_events import NodeLeft
from tests.network.peers_world import World

SEEDS = range(3)


def clouds(seed: int, *, sites: int = 4, nodes: int = 3, options: PeerOptions | None = None) -> World:
    """Return a world of several sites. Near and far sites alternate."""
    world = World(seed, options)
    for site in range(sites):
        for number in range(nodes):
            world.add(f"c{site}n{number}", f"c{site}")
    for one in range(sites):
        for other in range(one):
            world.delays[frozenset((f"c{one}", f"c{other}"))] = 0.02 + 0.04 * abs(one - other)
    world.list_all()
    return world


def settled(world: World, seconds: float = 30.0) -> World:
    world.start()
    world.run(seconds)
    assert world.is_connected()
    return world


@pytest.mark.parametrize("seed", SEEDS)
def test_nodes_that_start_at_once_become_one_component_with_the_wanted_links(seed: int) -> None:
    world = clouds(seed)
    world.start()
    took_s = world.run(30.0, world.is_connected)
    assert took_s < 5.0
    world.run(10.0)
    for name in world.nodes:
        inside, outside = world.open(name)
        assert inside == 2, f"{name}: {world.nodes[name].links}"
        assert outside >= 2, f"{name}: {world.nodes[name].links}"
    assert statistics.mean(len(node.links) for node in world.nodes.values()) <= 8


@pytest.mark.parametrize("seed", SEEDS)
def test_cloud_that_was_cut_off_is_linked_again_within_ten_seconds(seed: int) -> None:
    world = settled(clouds(seed))
    world.partition(["c0n0", "c0n1", "c0n2"])
    world.run(60.0)
    assert not world.is_connected()
    world.heal()
    assert world.run(30.0, world.is_connected) <= 10.0


@pytest.mark.parametrize(("seed", "minutes"), [*((seed, 1) for seed in SEEDS), (7, 20)])
def test_halves_with_enough_links_inside_find_each_other(seed: int, minutes: int) -> None:
    world = settled(clouds(seed))
    world.partition([name for name in world.nodes if name.startswith(("c0", "c1"))])
    world.run(60.0 * minutes)
    for name in world.nodes:
        assert min(world.open(name)) >= 1
    before = world.links_made()
    world.heal()
    assert world.run(30.0, world.is_connected) <= 10.0
    world.run(10.0)
    # One link would do. Each node makes at most about one.
    assert world.links_made() - before <= 2 * len(world.nodes)


@pytest.mark.parametrize("kind", ["stale", "partial", "both"])
@pytest.mark.parametrize("seed", SEEDS)
def test_halves_meet_with_stale_and_partial_answers_of_the_resolvers(seed: int, kind: str) -> None:
    world = clouds(seed)
    extra = [f"gone{number}:8085" for number in range(12)] if kind != "partial" else []
    # Each node knows the first node of each site only.
    world.list_all(extra, known=lambda _, name: kind == "stale" or name.endswith("n0"))
    settled(world)
    world.partition([name for name in world.nodes if name.startswith(("c0", "c1"))])
    world.run(120.0)
    world.heal()
    assert world.run(40.0, world.is_connected) <= 10.0


@pytest.mark.parametrize("seed", SEEDS)
def test_two_nodes_meet_after_a_long_partition(seed: int) -> None:
    world = World(seed)
    world.add("a", "eu")
    world.add("b", "us")
    world.list_all()
    settled(world)
    world.partition(["a"])
    world.run(900.0)
    world.heal()
    assert world.run(30.0, world.is_connected) <= 10.0


@pytest.mark.parametrize("spelling", ["{}:8085", "quic://{}:8085", "quic://{}:8085|tls://{}:8085"])
def test_no_node_dials_for_ever_what_another_one_has_linked(spelling: str) -> None:
    """Both ends dial, and the addresses of the resolvers and of the graph are spelled differently."""
    world = clouds(3)
    world.spelling = lambda name: spelling.format(name, name)
    world.list_all()
    settled(world, 60.0)
    for node in world.nodes.values():
        assert not node.in_progress
        assert [side.in_progress for side in node.peers.sides()] == [0, 0]
        assert [side.missing for side in node.peers.sides()] == [0, 0]


@pytest.mark.parametrize("seed", SEEDS)
def test_near_sites_are_linked_directly(seed: int) -> None:
    world = settled(clouds(seed), 200.0)
    for site, near in (("c0", "c1"), ("c3", "c2")):
        links = {peer[:2] for name, node in world.nodes.items() if name.startswith(site) for peer in node.links}
        assert near in links


def test_calm_network_makes_no_further_links_and_few_probes() -> None:
    world = settled(clouds(1), 600.0)
    links, probes = world.links_made(), sum(node.probes for node in world.nodes.values())
    world.run(3_600.0)
    assert world.links_made() - links <= len(world.nodes), "exchanges only"
    # Each node measures each other one at most about six times per hour.
    made = sum(node.probes for node in world.nodes.values()) - probes
    assert made <= 7 * len(world.nodes) * (len(world.nodes) - 1)


def test_dead_addresses_cost_less_than_one_probe_per_second() -> None:
    world = clouds(2)
    world.list_all([f"gone{number}:8085" for number in range(20)])
    settled(world, 300.0)
    before = {name: node.probes for name, node in world.nodes.items()}
    world.run(300.0)
    for name, node in world.nodes.items():
        # Each of 20 addresses about once per minute, and one every three seconds.
        assert (node.probes - before[name]) / 300.0 <= 1.0


@pytest.mark.parametrize("seed", SEEDS)
def test_rolling_restart_leaves_no_cloud_without_links(seed: int) -> None:
    world = settled(clouds(seed))
    for name in [*world.nodes]:
        old = world.nodes[name]
        for peer in [*old.links]:
            world.handle(world.nodes[peer], NodeLeft(name))
            world.break_link(name, peer)
        old.is_alive = False
        world.run(1.0)
        answer = old.answer
        world.add(name, old.site)
        world.nodes[name].answer = answer
        world.start(name)
        assert world.run(10.0, world.is_connected) <= 3.0
        world.run(3.0)
    assert world.is_connected()


@pytest.mark.parametrize("seed", SEEDS)
def test_random_faults_every_dial_ends_and_the_network_heals(seed: int) -> None:
    world = clouds(seed, sites=5, nodes=2)
    world.list_all([f"gone{number}:8085" for number in range(5)])
    settled(world)
    for _ in range(25):
        match world.random.randrange(0, 4):
            case 0:
                names = [*world.nodes]
                world.partition(world.random.sample(names, world.random.randrange(1, len(names))))
            case 1:
                world.heal()
            case 2:
                node = world.random.choice(world.alive())
                if node.links:
                    world.break_link(node.name, world.random.choice([*node.links]))
            case 3:
                world.run(world.random.uniform(1.0, 60.0))
        world.run(world.random.uniform(0.0, 5.0))
    world.heal()
    assert world.run(30.0, world.is_connected) <= 12.0
    world.run(60.0)
    for node in world.nodes.values():
        started = node.dials + node.probes
        assert started == sum(node.outcomes.values()) + len(node.in_progress)


def test_exchange_prefers_a_nearer_node_and_keeps_the_last_link_to_a_site() -> None:
    world = World(5, PeerOptions(links_site=0, links_remote=1))
    world.add("me", "home", options=PeerOptions(links_site=0, links_remote=1))
    for name in ("far", "far2", "near"):
        world.add(name, name)
    for name, rtt_s in (("far", 0.3), ("far2", 0.3), ("near", 0.01)):
        world.delays[frozenset(("home", name))] = rtt_s
    world.list_all()
    settled(world, 60.0)
    assert "near" in world.nodes["me"].links


def test_sixty_nodes_at_thirty_sites_become_one_component_with_few_links() -> None:
    world = World(1)
    for site in range(30):
        for number in range(1 + site % 3):
            world.add(f"s{site}n{number}", f"s{site}")
    for one in range(30):
        for other in range(one):
            world.delays[frozenset((f"s{one}", f"s{other}"))] = 0.01 + 0.003 * abs(one - other)
    world.list_all()
    world.start(spread_s=1.0)
    assert world.run(60.0, world.is_connected) <= 10.0
    world.run(30.0)
    assert world.is_connected()
    assert statistics.mean(len(node.links) for node in world.nodes.values()) <= 12
