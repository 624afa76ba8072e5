"""The rules by which a node chooses its links, one at a time. Whole networks: `test_peers_network`."""

from __future__ import annotations

import random

import pytest

from micro_core.contract import Candidate
from micro_core.network.link_targets import PeerOptions
from micro_core.network.peer_events import (
    Dial,
    DialFailed,
    DialSucceeded,
    KeepLinked,
    LinkDeclined,
    Measured,
    NodeLeft,
    NodeSeen,
    PeerEffect,
    PeerEvent,
    PeerLinked,
    PeerLost,
    Probe,
    Probed,
    ProbeFailed,
    Reachability,
    Resolve,
    Resolved,
    Resumed,
    Seen,
    Unlink,
)
from micro_core.network.peer_plan import GRACE_S, HOLD_S, HOLD_SITE_S, MAX_ATTEMPT_S, MAX_DIALS, MAX_PROBES
from micro_core.network.peer_status import candidate_statuses
from micro_core.network.peer_table import MAX_ADDRESSES_PER_NODE, MAX_CANDIDATES, MAX_NODES, Attempt
from micro_core.network.peers import SHORT_LIVED_S, Peers


class Node:
    """One `Peers` with a clock, which collects the effects."""

    def __init__(self, *seeds: str, seed: int = 1, **options: float) -> None:
        self.peers = Peers(
            node_id="me",
            site="eu",
            seeds=seeds,
            options=PeerOptions(**options),  # type: ignore[arg-type]
            random=random.Random(seed),
        )
        self.now = 100.0
        self.effects: list[PeerEffect] = self.peers.start(self.now)

    def handle(self, event: PeerEvent) -> list[PeerEffect]:
        found = self.peers.handle(event, self.now)
        self.effects += found
        return found

    def resolve(self, *addresses: str) -> list[PeerEffect]:
        return self.handle(Resolved([Candidate(address=address) for address in addresses]))

    def answer(self, name: str, site: str = "us", rtt_s: float = 0.02, address: str = "") -> list[PeerEffect]:
        return self.handle(Probed(address=address or f"{name}:1", peer=name, name=name, site=site, rtt_s=rtt_s))

    def link(self, name: str, site: str = "us", address: str | None = None, rtt_s: float = 0.02) -> list[PeerEffect]:
        effects = self.handle(PeerLinked(peer=name, name=name, site=site, address=address, rtt_s=rtt_s))
        if address is not None:
            effects += self.handle(DialSucceeded(address, name, was_linked=False))
        return effects

    def run(self, seconds: float) -> list[PeerEffect]:
        """Let time pass, and return the effects since the last call."""
        found, self.effects = self.effects, []
        end, turns = self.now + seconds, 0
        while (wake_at := self.peers.wake_at) is not None and wake_at <= end:
            turns = turns + 1 if wake_at <= self.now else 0
            assert turns < 1_000, "it wakes again and again at the same moment"
            self.now = max(self.now, wake_at)
            found += self.peers.wake(self.now)
        self.now = end
        return found


def dialled(effects: list[PeerEffect]) -> list[str]:
    return [effect.address for effect in effects if isinstance(effect, Dial)]


def probed(effects: list[PeerEffect]) -> list[str]:
    return [effect.address for effect in effects if isinstance(effect, Probe)]


def seen(name: str, site: str = "us", neighbours: str = "xyz", *, is_start: bool = False) -> Seen:
    record = NodeSeen(
        id=name,
        name=name,
        site=site,
        addresses=(f"{name}:1",),
        neighbours=frozenset(neighbours) | {"me"},
        is_start=is_start,
    )
    return Seen((record,))


# ------------------------------------------------------------------------------ seeds


def test_start_keeps_seeds_linked_and_queries_resolvers() -> None:
    node = Node("a:1", "b:1")
    assert [effect.address for effect in node.effects if isinstance(effect, KeepLinked)] == ["a:1", "b:1"]
    assert Resolve() in node.effects


def test_seed_is_neither_dialled_nor_probed_by_the_network() -> None:
    node = Node("a:1")
    node.resolve("a:1")
    node.handle(DialFailed("a:1", "no answer"))
    effects = node.run(600.0)
    assert dialled(effects) == probed(effects) == []


def test_only_seeds_are_linked_when_no_links_are_wanted() -> None:
    node = Node("a:1", links_site=0, links_remote=0)
    node.resolve("b:1")
    node.handle(seen("c"))
    node.handle(Reachability(frozenset()))
    effects = node.run(600.0)
    assert dialled(effects) == probed(effects) == []


# ----------------------------------------------------- one outcome, one node, any spelling


def test_node_linked_by_its_own_dial_is_not_counted_as_a_dial_in_progress() -> None:
    """Two addresses are dialled; meanwhile both nodes link by their own dials, so no link of ours comes up."""
    node = Node(links_site=0, links_remote=3)
    node.link("s", site="eu")
    node.resolve("a:1", "b:1", "c:1")
    node.answer("a")
    node.answer("b", site="asia")
    assert sorted(dialled(node.run(2.0))) == ["a:1", "b:1"]
    for name, site in (("a", "us"), ("b", "asia")):
        node.link(name, site=site)
        assert [(side.open, side.in_progress) for side in node.peers.sides()][1] == (1 + (name == "b"), name == "a")
        node.handle(DialSucceeded(f"{name}:1", name, was_linked=True))
    assert [(side.open, side.in_progress) for side in node.peers.sides()] == [(1, 0), (2, 0)]
    assert node.peers.table.attempts(Attempt.LINK) == []
    node.answer("c", site="africa")
    assert dialled(node.run(2.0)) == ["c:1"]


@pytest.mark.parametrize("spelling", ["quic://a:1", "quic://a:1|tls://a:1"])
def test_another_spelling_of_a_linked_node_is_identified_once_and_not_dialled(spelling: str) -> None:
    node = Node(links_site=0, links_remote=2)
    node.link("a")
    node.handle(Reachability(frozenset({"a"})))
    assert probed(node.resolve("a:1", spelling)) == ["a:1", spelling]
    node.answer("a", address="a:1")
    node.answer("a", address=spelling)
    node.run(1.0)
    effects = node.run(300.0)
    assert dialled(effects) == probed(effects) == []
    assert [side.missing for side in node.peers.sides()] == [0, 1]


def test_node_is_dialled_again_when_the_link_that_it_dialled_ends() -> None:
    node = Node(links_site=0, links_remote=1)
    node.resolve("a:1")
    node.answer("a")
    node.link("a")
    node.handle(DialSucceeded("a:1", "a", was_linked=True))
    node.run(60.0)
    node.handle(PeerLost("a"))
    assert dialled(node.run(1.0)) == ["a:1"]


def test_attempt_without_a_reported_outcome_counts_as_failed() -> None:
    node = Node(links_site=0, links_remote=1)
    node.link("s", site="eu")
    assert probed(node.resolve("a:1")) == ["a:1"]
    assert probed(node.run(MAX_ATTEMPT_S + 5.0)) == ["a:1", "a:1"]


def test_own_address_is_probed_once() -> None:
    node = Node()
    node.link("s", site="eu")
    assert probed(node.resolve("me:1")) == ["me:1"]
    node.handle(ProbeFailed("me:1", "the node dialled itself", is_permanent=True, is_own=True))
    node.run(1.0)
    assert probed(node.run(3_600.0)) == []


def test_address_in_the_record_of_another_node_that_leads_to_this_node_is_not_tried_again() -> None:
    node = full_node()
    node.handle(seen("a"))
    assert probed(node.run(1.0)) == ["a:1"]
    node.handle(ProbeFailed("a:1", "the node dialled itself", is_permanent=True, is_own=True))
    assert probed(node.run(3_600.0)) == []


def test_address_that_two_sites_use_belongs_to_the_node_that_answers() -> None:
    node = Node(links_remote=2)
    node.handle(seen("a"))
    node.handle(Probed(address="a:1", peer="b", name="b", site="asia", rtt_s=0.01))
    assert not node.peers.table.nodes["a"].addresses
    node.handle(seen("a"))
    assert not node.peers.table.nodes["a"].addresses, "a statement does not replace an answer"
    assert [*node.peers.table.nodes["b"].addresses] == ["a:1"]


# ---------------------------------------------------------------------------- the choice


def test_nodes_are_probed_before_they_are_dialled() -> None:
    node = Node()
    node.link("s", site="eu")
    effects = node.resolve("a:1", "b:1")
    assert sorted(probed(effects)) == ["a:1", "b:1"]
    assert dialled(effects) == []


def test_one_address_is_dialled_without_a_probe_while_there_is_no_link() -> None:
    node = Node()
    effects = node.resolve("a:1", "b:1", "c:1")
    (first,) = dialled(effects)
    assert sorted([first, *probed(effects)]) == ["a:1", "b:1", "c:1"]
    assert len(probed(node.resolve(*(f"n{number}:1" for number in range(9))))) == 0, "the first link comes first"
    assert len(dialled(node.handle(DialFailed(first, "no answer")))) == 1
    other = probed(effects)[0].removesuffix(":1")
    assert dialled(node.answer(other)) == [f"{other}:1"]


def test_address_of_the_registry_of_the_site_is_dialled_first() -> None:
    node = Node()
    listed = [Candidate(address=f"a{number}:1") for number in range(20)]
    effects = node.handle(Resolved([*listed, Candidate(address="near:1", node_id="near")]))
    assert dialled(effects) == ["near:1"]


def test_addresses_of_a_node_that_left_and_starts_again_need_no_probe() -> None:
    node = full_node()
    node.resolve("x:1", "quic://x:1")
    for address in probed(node.run(1.0)):
        node.answer("x", site="x", address=address)
    node.handle(NodeLeft("x"))
    node.handle(PeerLost("x"))
    node.handle(Reachability(frozenset("yzx")))
    node.handle(seen("x", site="x", is_start=True))
    assert probed(node.run(30.0)) == []
    assert sorted(node.peers.table.nodes["x"].addresses) == ["quic://x:1", "x:1"]


def test_near_nodes_and_distinct_sites_come_first() -> None:
    node = Node(links_site=0, links_remote=2)
    node.handle(Reachability(frozenset("zabc")))
    node.link("z", site="us")
    node.resolve("a:1", "b:1", "c:1")
    node.answer("a", site="us", rtt_s=0.001)
    node.answer("b", site="asia", rtt_s=0.3)
    node.answer("c", site="africa", rtt_s=0.1)
    assert dialled(node.run(3.0)) == ["c:1"]


def test_links_inside_the_site_and_to_other_sites_are_counted_separately() -> None:
    node = Node(links_site=1, links_remote=1)
    node.link("x", site="us")
    node.link("y", site="asia")
    node.handle(Reachability(frozenset({"x", "y", "a", "b"})))
    node.resolve("a:1", "b:1")
    node.answer("a", site="africa")
    node.answer("b", site="eu")
    assert dialled(node.run(3.0)) == ["b:1"]


def test_nearly_equal_nodes_are_chosen_at_random() -> None:
    chosen = set()
    for seed in range(30):
        node = Node(seed=seed, links_site=0, links_remote=1)
        node.handle(Reachability(frozenset("xabc")))
        node.link("x", site="eu")
        node.resolve("a:1", "b:1", "c:1")
        for name, rtt_s in (("a", 0.02), ("b", 0.021), ("c", 0.2)):
            node.answer(name, rtt_s=rtt_s)
        chosen.update(dialled(node.run(3.0)))
    assert chosen == {"a:1", "b:1"}


def test_number_of_probes_at_once_is_bounded() -> None:
    node = Node()
    node.link("s", site="eu")
    assert len(probed(node.resolve(*(f"n{number}:1" for number in range(50))))) == MAX_PROBES


def test_number_of_links_dialled_at_once_is_bounded() -> None:
    node = Node(links_site=1, links_remote=3 * MAX_DIALS)
    node.link("s", site="eu")
    names = [f"n{number}" for number in range(3 * MAX_DIALS)]
    node.handle(Reachability(frozenset(names)))
    node.resolve(*(f"{name}:1" for name in names))
    for name in names:
        node.answer(name, site=name)
    assert len(dialled(node.run(3.0))) == MAX_DIALS


# ------------------------------------------------------------------------ unreachable nodes


def full_node(seed: int = 1) -> Node:
    """Return a node with enough links, to x, y and z."""
    node = Node(seed=seed, links_site=0, links_remote=2)
    node.handle(Reachability(frozenset("xyz")))
    for name in "xyz":
        node.handle(seen(name, site=name))
        node.link(name, site=name)
    node.run(1.0)
    return node


def test_unreachable_node_is_dialled_though_there_are_enough_links() -> None:
    node = full_node()
    node.handle(Reachability(frozenset("xyza")))
    node.handle(seen("a"))
    assert probed(node.run(20.0)) == []
    node.handle(Reachability(frozenset("xyz")))
    assert probed(node.run(1.0)) == ["a:1"]
    node.answer("a")
    assert dialled(node.run(3.0)) == ["a:1"]


def test_node_that_becomes_reachable_before_it_is_dialled_is_not_linked() -> None:
    node = full_node()
    node.handle(seen("a"))
    node.run(1.0)
    node.answer("a")
    node.handle(Reachability(frozenset("xyza")))
    assert dialled(node.run(30.0)) == []


def test_node_is_dialled_as_unreachable_only_after_a_second() -> None:
    node = full_node()
    node.link("a", address="a:1")
    node.handle(Reachability(frozenset("xyza")))
    node.run(SHORT_LIVED_S)
    node.handle(PeerLost("a"))
    node.handle(Reachability(frozenset("xyz")))
    assert dialled(node.run(0.9 * GRACE_S)) == []
    assert dialled(node.run(0.5 * GRACE_S)) == ["a:1"]


@pytest.mark.parametrize(("site", "hold_s"), [("us", HOLD_SITE_S), ("asia", HOLD_S)])
def test_next_unreachable_node_waits_for_the_routes_over_a_new_link(site: str, hold_s: float) -> None:
    """The random times differ, so several seeds are tried."""
    for seed in range(10):
        node = full_node(seed)
        node.handle(seen("a"))
        node.handle(seen("b", site=site))
        node.run(2.0)
        node.answer("a")
        assert dialled(node.run(1.0)) == ["a:1"]
        node.answer("b", site=site)
        node.link("a", address="a:1")
        assert dialled(node.run(0.74 * hold_s)) == []
        assert dialled(node.run(2.0)) == ["b:1"]


def test_one_unreachable_node_per_site_is_dialled_at_once() -> None:
    node = full_node()
    for name in "abc":
        node.handle(seen(name))
    node.run(2.0)
    for name in "abc":
        node.answer(name)
    assert len(dialled(node.run(1.5))) == 1


def test_resolvers_are_queried_when_a_node_becomes_unreachable() -> None:
    node = full_node()
    node.handle(Reachability(frozenset("xyza")))
    node.handle(seen("a"))
    node.resolve("a:1")
    node.run(300.0)
    node.handle(Reachability(frozenset("xyz")))
    assert Resolve() in node.run(0.6)


def test_resolvers_are_queried_rarely_while_nothing_is_missing() -> None:
    node = full_node()
    node.run(20.0)
    assert node.run(600.0).count(Resolve()) <= 12


def test_unreachable_node_is_probed_every_few_seconds_for_ever() -> None:
    node = full_node()
    node.handle(seen("a"))
    last = node.now
    for _ in range(400):
        for address in probed(node.run(0.5)):
            assert node.now - last <= 6.0
            last = node.now
            node.handle(ProbeFailed(address, "no answer"))
    assert node.now - last <= 6.0


def test_nodes_that_become_unreachable_are_probed_at_once_however_often_that_failed_before() -> None:
    node = full_node()
    for name in "ab":
        node.handle(seen(name))
    for _ in range(60):
        for address in probed(node.run(1.0)):
            node.handle(ProbeFailed(address, "no answer"))
    node.handle(Reachability(frozenset("xyzab")))
    node.run(1.0)
    node.handle(Reachability(frozenset("xyz")))
    assert sorted(probed(node.run(0.5))) == ["a:1", "b:1"]


def test_node_that_left_is_not_dialled() -> None:
    node = full_node()
    node.handle(NodeLeft("x"))
    node.handle(PeerLost("x"))
    node.handle(Reachability(frozenset("yz")))
    effects = node.run(600.0)
    assert dialled(effects) == probed(effects) == []


def test_node_that_started_again_is_tried_at_once() -> None:
    node = full_node()
    node.handle(seen("a"))
    for _ in range(100):
        for address in probed(node.run(1.0)):
            node.handle(ProbeFailed(address, "no answer"))
    node.handle(seen("a", is_start=True))
    assert probed(node.run(0.5)) == ["a:1"]


def test_pauses_end_when_the_process_ran_again_after_a_stop() -> None:
    node = full_node()
    node.resolve("a:1")
    for _ in range(100):
        for address in probed(node.run(1.0)):
            node.handle(ProbeFailed(address, "no answer"))
    effects = node.handle(Resumed())
    assert probed(effects) == ["a:1"]
    assert Resolve() in effects


# --------------------------------------------------------- flapping, exchange and eviction


def test_link_that_ends_soon_again_and_again_is_dialled_ever_later() -> None:
    node = Node(links_site=1, links_remote=1)
    node.handle(Reachability(frozenset("xa")))
    node.link("x", site="eu")
    node.link("a", address="a:1")
    count = 0
    for _ in range(120):
        node.handle(PeerLost("a"))
        if dialled(node.run(1.0)):
            count += 1
            node.link("a", address="a:1")
    assert 4 <= count <= 10


def exchange(worst_site: str, new_site: str, new_rtt_s: float, neighbours: str = "") -> tuple[Node, list[PeerEffect]]:
    """Give a node two far links that it dialled, and let it measure a nearer node.

    `neighbours` are the links of the farthest node to nodes of other sites, besides that to this node.
    """
    node = Node(links_site=0, links_remote=2)
    node.handle(Reachability(frozenset("xyadef")))
    for name in "def":
        node.peers.table.add_stated(name, ())
        node.peers.table.nodes[name].site = worst_site if name == "d" else "elsewhere"
    for name, site, rtt_s in (("x", "us", 0.2), ("y", worst_site, 0.3)):
        node.handle(seen(name, site=site, neighbours="d"))
        node.link(name, site=site, address=f"{name}:1", rtt_s=rtt_s)
    node.handle(seen("y", site=worst_site, neighbours="de" + neighbours))
    node.run(1.0)
    node.handle(seen("a", site=new_site))
    effects: list[PeerEffect] = []
    for _ in range(200):
        found = node.run(1.0)
        effects += found
        if dialled(found):
            break
        for address in probed(found):
            assert address == "a:1"
            node.answer("a", site=new_site, rtt_s=new_rtt_s)
        node.handle(Measured({"x": 0.2, "y": 0.3}))
    return node, effects


def test_worst_link_is_exchanged_for_a_nearer_node_and_closed_afterwards() -> None:
    node, effects = exchange("us", "us", 0.1)
    assert dialled(effects) == ["a:1"]
    assert not any(isinstance(effect, Unlink) for effect in effects), "not before the new link is up"
    (unlink,) = [effect for effect in node.link("a", address="a:1") if isinstance(effect, Unlink)]
    assert unlink.peer == "y"


def test_failed_exchange_gives_up_no_link() -> None:
    node, effects = exchange("us", "us", 0.1)
    assert dialled(effects) == ["a:1"]
    node.handle(DialFailed("a:1", "no answer"))
    assert not any(isinstance(effect, Unlink) for effect in node.link("a", address="a:1")), (
        "a later dial is not an exchange"
    )


def test_exchange_for_a_node_that_was_linked_meanwhile_gives_up_no_link() -> None:
    node, _ = exchange("us", "us", 0.1)
    node.link("a")
    assert not any(isinstance(effect, Unlink) for effect in node.handle(DialSucceeded("a:1", "a", was_linked=True)))


def test_link_is_not_exchanged_for_a_node_that_is_only_a_little_nearer() -> None:
    assert dialled(exchange("us", "us", 0.25)[1]) == []


def test_last_link_to_a_site_is_exchanged_only_for_another_one_to_it_or_if_the_site_has_enough() -> None:
    assert dialled(exchange("asia", "asia", 0.05)[1]) == ["a:1"]
    assert dialled(exchange("asia", "africa", 0.05)[1]) == []
    node, effects = exchange("asia", "africa", 0.05, neighbours="f")
    assert dialled(effects) == ["a:1"]
    (unlink,) = [effect for effect in node.link("a", site="africa", address="a:1") if isinstance(effect, Unlink)]
    assert unlink.peer == "y"


def test_accepted_link_above_the_limit_is_closed_but_not_the_only_link_to_a_site() -> None:
    node = Node(max_links=3)
    node.link("a", site="us", rtt_s=0.1)
    node.link("b", site="us", rtt_s=0.2)
    node.link("c", site="asia", rtt_s=0.9)
    effects = node.link("d", site="africa", rtt_s=0.9)
    assert [effect.peer for effect in effects if isinstance(effect, Unlink)] == ["b"]
    node.handle(PeerLost("b"))
    effects = node.link("e", site="australia")
    assert not any(isinstance(effect, Unlink) for effect in effects), "each link is the only one to its site"


def test_link_that_the_peer_gives_up_is_replaced_before_it_ends() -> None:
    node = Node(links_site=0, links_remote=2)
    node.link("x")
    node.link("a", site="asia", address="a:1")
    node.handle(Reachability(frozenset("xab")))
    node.answer("b", site="africa")
    assert dialled(node.run(3.0)) == [], "there are enough links"
    node.handle(LinkDeclined("a", "exchanged"))
    assert dialled(node.run(2.0)) == ["b:1"]


def test_link_that_was_given_up_soon_does_not_count_as_flap() -> None:
    node = Node(links_site=0, links_remote=2)
    node.link("a", site="asia", address="a:1")
    node.handle(LinkDeclined("a", "exchanged"))
    node.handle(PeerLost("a"))
    assert node.peers.table.nodes["a"].flaps == 0


def test_node_that_closed_the_link_is_not_dialled_again_unless_it_is_unreachable() -> None:
    node = Node(links_site=0, links_remote=2)
    node.link("x")
    node.link("a", site="asia", address="a:1")
    node.handle(Reachability(frozenset("xa")))
    node.handle(LinkDeclined("a", "more than 64 links"))
    node.handle(PeerLost("a"))
    node.run(1.0)
    assert dialled(node.run(60.0)) == []
    node.handle(Reachability(frozenset("x")))
    assert probed(node.run(1.0)) == ["a:1"]
    node.answer("a", site="asia")
    assert dialled(node.run(3.0)) == ["a:1"]


# --------------------------------------------------------------------------------- bounds


def test_number_of_known_nodes_and_addresses_is_bounded() -> None:
    node = Node()
    node.resolve(*(f"r{number}:1" for number in range(2 * MAX_CANDIDATES)))
    assert len(node.peers.table.addresses) == MAX_CANDIDATES
    for first in range(0, 2 * MAX_NODES, 64):
        records = [one for number in range(first, first + 64) for one in seen(f"n{number}").nodes]
        node.peers.handle(Seen(tuple(records)), node.now)
    assert len(node.peers.table.nodes) == MAX_NODES
    assert node.peers.table.dropped >= MAX_NODES
    assert len(node.peers.table.addresses) <= MAX_CANDIDATES + MAX_NODES


def test_addresses_of_one_record_are_bounded() -> None:
    node = Node()
    addresses = tuple(f"a:{port}" for port in range(1, 2 * MAX_ADDRESSES_PER_NODE))
    node.handle(
        Seen((NodeSeen(id="a", name="a", site="us", addresses=addresses, neighbours=frozenset(), is_start=False),))
    )
    assert len(node.peers.table.addresses) == MAX_ADDRESSES_PER_NODE


def test_node_that_does_not_answer_for_an_hour_is_forgotten() -> None:
    node = full_node()
    node.handle(seen("a"))
    for _ in range(2_000):
        for address in probed(node.run(2.0)):
            node.handle(ProbeFailed(address, "no answer"))
    assert "a" not in node.peers.table.nodes


# --------------------------------------------------------------------------------- status


def test_status_explains_why_a_node_is_not_linked() -> None:
    node = full_node()
    node.handle(Reachability(frozenset("xyzb")))
    node.handle(seen("a"))
    node.handle(seen("b"))
    node.resolve("c:1", "me:1")
    node.run(2.0)
    for address in ("a:1", "c:1"):
        node.handle(ProbeFailed(address, f"no answer from {address}"))
    node.handle(ProbeFailed("me:1", "the node dialled itself", is_permanent=True, is_own=True))
    found = {status.name or status.addresses[0]: status for status in candidate_statuses(node.peers, node.now)}
    assert {name: status.state for name, status in found.items()} == {
        "a": "failing",
        "b": "not needed",
        "c:1": "failing",
        "me:1": "this node",
    }
    assert found["a"].why == "no answer from a:1"
    assert found["a"].retry_s is not None
    assert found["a"].retry_s > 0
    assert "x" not in found, "linked by its own dial"
