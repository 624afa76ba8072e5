"""One engine, spoken to by hand: each rule of the routing plane as a sentence."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest

from micro_core.contract.table import Route, RouteKey
from micro_core.routing import messages
from micro_core.routing.engine import Engine
from micro_core.routing.events import (
    UNREACHABLE_US,
    Ack,
    Advert,
    Announce,
    Count,
    DeleteRoute,
    Digest,
    Effect,
    InstanceDown,
    InstanceUp,
    LocalInstance,
    LocalServices,
    MessageReceived,
    NeighbourCost,
    NeighbourDown,
    NeighbourUp,
    PutRoute,
    Release,
    RoutingEvent,
    RoutingMessage,
    SendMessage,
    SequenceRequest,
    Solicit,
    Withdraw,
    WithdrawAll,
)
from micro_core.routing.neighbour import MAX_UNACKNOWLEDGED, RESEND_FIRST_S, RESYNC_AFTER_TRIES
from micro_core.routing.options import EngineOptions
from micro_core.routing.rib import Known
from micro_core.routing.rib_entry import TOMBSTONE_S
from micro_core.wire import limits

ME, LEFT, RIGHT, FAR, OTHER = ("m" * 32, "l" * 32, "r" * 32, "f" * 32, "o" * 32)
COST_US = 1_000


class Bench:
    """An engine with its table, the time, and what it said."""

    def __init__(self, *neighbours: str, seed: int = 1) -> None:
        self.engine = Engine(
            router=ME, network="n", site="s", incarnation=7, random=random.Random(seed), options=EngineOptions()
        )
        self.now = 100.0
        self.table: dict[RouteKey, Route] = {}
        self.counted: list[str] = []
        self.said: list[tuple[str, RoutingMessage]] = []
        self.numbers: dict[str, int] = {}
        for peer in neighbours:
            self.do(NeighbourUp(peer, COST_US))
            self.hear(peer, begins=True, ends=True)
        self.acknowledge()
        self.said.clear()

    def do(self, event: RoutingEvent) -> list[Effect]:
        return self._apply(self.engine.handle(event, self.now))

    def hear(
        self, peer: str, *entries: Announce | Withdraw, begins: bool = False, ends: bool = False, number: int = 0
    ) -> list[Effect]:
        """The next advert of `peer`, or the one numbered so."""
        if not number:
            number = self.numbers[peer] = self.numbers.get(peer, 0) + 1
        return self.listen(peer, Advert(number=number, entries=entries, begins=begins, ends=ends))

    def listen(self, peer: str, message: RoutingMessage) -> list[Effect]:
        return self.do(MessageReceived(peer, message))

    def up(self, service: str = "greeter", instance: str = "i", *, version: str = "", address: str = "") -> None:
        self.do(InstanceUp(service, instance, LocalInstance(address=address or f"tcp://{instance}", version=version)))

    def down(self, service: str = "greeter", instance: str = "i") -> None:
        self.do(InstanceDown(service, instance))

    def run(self, seconds: float, *, acknowledging: bool = True) -> None:
        end = self.now + seconds
        while self.engine.wake_at is not None and self.engine.wake_at <= end:
            self.now = max(self.now, self.engine.wake_at)
            self._apply(self.engine.wake(self.now))
            if acknowledging:
                self.acknowledge()
        self.now = end

    def acknowledge(self) -> None:
        for peer, message in [*self.said]:
            if isinstance(message, Advert):
                self.listen(peer, Ack(message.number))

    def take_said(self) -> list[tuple[str, RoutingMessage]]:
        said, self.said = self.said, []
        return said

    def take_entries(self, peer: str) -> list[Announce | Withdraw]:
        said = self.take_said()
        return [e for to, message in said if to == peer and isinstance(message, Advert) for e in message.entries]

    def gateways(self, service: str = "greeter") -> list[str]:
        return sorted(route.gateway for route in self.table.values() if route.service == service)

    def _apply(self, effects: list[Effect]) -> list[Effect]:
        for effect in effects:
            match effect:
                case PutRoute(route):
                    self.table[route.key] = route
                case DeleteRoute(key):
                    del self.table[key]
                case SendMessage(peer, message):
                    assert messages.decode(messages.encode(message)) == message
                    self.said.append((peer, message))
                case Count(name, _):
                    self.counted.append(name)
        return effects


def announce(
    *path: str, sequence: int = 1, incarnation: int = 1, service: str = "greeter", metric_us: int = 0
) -> Announce:
    return Announce(
        origin=path[0],
        incarnation=incarnation,
        sequence=sequence,
        service=service,
        versions=(),
        capacity=0,
        site="s",
        network="n",
        metric_us=metric_us,
        path=path,
    )


def withdraw(
    origin: str, *, sequence: int = 1, incarnation: int = 1, is_final: bool = False, service: str = "greeter"
) -> Withdraw:
    return Withdraw(origin=origin, incarnation=incarnation, sequence=sequence, service=service, is_final=is_final)


def kinds(said: Iterable[tuple[str, RoutingMessage]]) -> list[type]:
    return [type(message) for _, message in said]


# ---------------------------------------------------------------------------- this site


def test_one_of_three_instances_restarted_is_told_to_nobody() -> None:
    bench = Bench(LEFT)
    for instance in "abc":
        bench.up(instance=instance)
    bench.run(1)
    bench.take_said()
    bench.down(instance="b")
    bench.run(2)
    bench.up(instance="b")
    bench.run(2)
    assert bench.take_said() == []


def test_down_and_up_of_one_of_several_within_the_window_is_told_to_nobody() -> None:
    bench = Bench(LEFT)
    bench.up(instance="a")
    bench.up(instance="b")
    bench.run(1)
    bench.take_said()
    bench.down(instance="b")
    bench.up(instance="b")
    bench.run(2)
    assert bench.take_said() == []


def test_a_new_service_is_told_within_half_a_second_and_not_before_a_quarter() -> None:
    for seed in range(20):
        bench = Bench(LEFT, seed=seed)
        bench.up()
        bench.run(0.249)
        assert bench.take_entries(LEFT) == []
        bench.run(0.252)
        (entry,) = bench.take_entries(LEFT)
        assert isinstance(entry, Announce)
        assert (entry.origin, entry.service, entry.path, entry.metric_us) == (ME, "greeter", (ME,), 0)


def test_the_last_instance_going_is_told_at_once_and_for_good() -> None:
    bench = Bench(LEFT, RIGHT)
    bench.up()
    bench.run(1)
    bench.take_said()
    bench.down()
    for peer, message in bench.take_said():
        assert peer in (LEFT, RIGHT)
        assert isinstance(message, Advert)
        (entry,) = message.entries
        assert isinstance(entry, Withdraw)
        assert entry.is_final
        assert entry.sequence == 2


def test_a_new_version_beside_the_old_one_is_news() -> None:
    bench = Bench(LEFT)
    bench.up(instance="a", version="1")
    bench.run(1)
    bench.take_said()
    bench.up(instance="b", version="2")
    bench.run(1)
    (entry,) = bench.take_entries(LEFT)
    assert isinstance(entry, Announce)
    assert entry.versions == ("1", "2")


def test_the_table_holds_each_local_address_once_for_as_long_as_any_instance_has_it() -> None:
    bench = Bench()
    bench.up(instance="a", address="tcp://x")
    bench.up(instance="b", address="tcp://x")
    bench.down(instance="a")
    assert [route.address for route in bench.table.values()] == ["tcp://x"]
    bench.up(instance="b", address="tcp://y")
    assert [route.address for route in bench.table.values()] == ["tcp://y"]
    bench.down(instance="b")
    assert bench.table == {}


def test_a_registry_read_anew_replaces_what_was_known() -> None:
    bench = Bench(LEFT)
    bench.up("old")
    bench.up("kept")
    bench.run(1)
    bench.take_said()
    local = LocalInstance(address="tcp://i")
    bench.do(LocalServices({"kept": {"i": local}, "new": {"i": local}}))
    bench.run(1)
    assert {route.service for route in bench.table.values()} == {"kept", "new"}
    told = {(entry.service, type(entry)) for entry in bench.take_entries(LEFT)}
    assert told == {("old", Withdraw), ("new", Announce)}


def test_unknown_instances_going_is_nothing() -> None:
    bench = Bench(LEFT)
    assert bench.do(InstanceDown("greeter", "i")) == []


def test_draining_withdraws_everything_at_once_and_announces_nothing_more() -> None:
    bench = Bench(LEFT, RIGHT)
    bench.up()
    bench.hear(RIGHT, announce(FAR, RIGHT, service="far"))
    bench.run(1)
    bench.take_said()
    bench.do(WithdrawAll())
    bench.acknowledge()
    own, beyond = sorted(bench.take_entries(LEFT), key=lambda entry: entry.service, reverse=True)
    assert isinstance(own, Withdraw)
    assert (own.service, own.is_final) == ("greeter", True)
    assert isinstance(beyond, Withdraw)
    assert (beyond.service, beyond.is_final) == ("far", False), "others may have a way to it"
    bench.up("late")
    bench.hear(RIGHT, announce(FAR, RIGHT, service="further"))
    bench.run(2)
    assert bench.take_entries(LEFT) == []
    assert {route.service for route in bench.table.values()} == {"greeter", "late", "far", "further"}
    bench.do(NeighbourUp(LEFT, COST_US))
    assert bench.take_entries(LEFT) == []


# --------------------------------------------------------------------------- versions


def test_a_tombstone_beats_a_late_advert() -> None:
    bench = Bench(LEFT, RIGHT)
    bench.hear(LEFT, announce(FAR, LEFT, sequence=1))
    bench.hear(LEFT, withdraw(FAR, sequence=2, is_final=True))
    bench.hear(RIGHT, announce(FAR, OTHER, RIGHT, sequence=1))
    bench.hear(RIGHT, announce(FAR, OTHER, RIGHT, sequence=2))
    assert bench.table == {}
    assert bench.counted.count("routing_entries_outdated") == 2


def test_an_origin_s_withdrawal_buries_every_way_whoever_brings_it() -> None:
    bench = Bench(LEFT, RIGHT)
    bench.hear(LEFT, announce(FAR, LEFT))
    bench.hear(RIGHT, announce(FAR, OTHER, RIGHT))
    bench.hear(RIGHT, withdraw(FAR, sequence=2, is_final=True))
    assert bench.table == {}


def test_a_neighbour_s_lost_way_is_no_tombstone() -> None:
    bench = Bench(LEFT, RIGHT)
    bench.hear(LEFT, announce(FAR, LEFT))
    bench.hear(RIGHT, announce(FAR, OTHER, RIGHT))
    bench.hear(LEFT, withdraw(FAR))
    assert bench.gateways() == [RIGHT]
    bench.hear(RIGHT, withdraw(FAR))
    assert bench.gateways() == []
    bench.hear(LEFT, announce(FAR, LEFT))
    assert bench.gateways() == [LEFT], "the very version that was lost is believed again"


def test_a_service_that_comes_back_has_a_later_version_than_its_tombstone() -> None:
    bench = Bench(LEFT)
    bench.hear(LEFT, announce(FAR, LEFT))
    bench.hear(LEFT, withdraw(FAR, sequence=2, is_final=True))
    bench.hear(LEFT, announce(FAR, LEFT, sequence=3))
    assert bench.gateways() == [LEFT]


def test_a_tombstone_is_forgotten_after_its_time_with_all_that_is_known_of_its_origin() -> None:
    bench = Bench(LEFT)
    bench.hear(LEFT, announce(FAR, LEFT), announce(FAR, LEFT, service="second"))
    bench.hear(LEFT, withdraw(FAR, sequence=2, is_final=True), withdraw(FAR, sequence=2, service="second"))
    bench.run(TOMBSTONE_S + 1)
    assert vars(bench.engine._known) == vars(Known())


def test_load_that_changes_is_told_and_is_no_flap() -> None:
    bench = Bench(LEFT)
    for load_us in [4_000 << step % 6 for step in range(60)]:
        bench.do(InstanceUp("greeter", "i", LocalInstance(address="tcp://i", load_us=load_us)))
        bench.run(2)
    assert bench.engine.damper.view(bench.now) == []
    told = [entry for entry in bench.take_entries(LEFT) if isinstance(entry, Announce)]
    assert told[-1].metric_us == told[-1].load_us == 4_000 << 59 % 6


def test_what_other_origins_withdraw_again_and_again_is_seen_and_not_held() -> None:
    bench = Bench(LEFT)
    for sequence in range(1, 21, 2):
        bench.hear(LEFT, announce(FAR, LEFT, sequence=sequence))
        assert bench.gateways() == [LEFT]
        bench.hear(LEFT, withdraw(FAR, sequence=sequence + 1, is_final=True))
        bench.hear(LEFT, withdraw(FAR, sequence=sequence + 1, is_final=True))
    (flap,) = bench.engine.observed.view(bench.now)
    assert (flap.service.split(), flap.losses, flap.is_held) == ([FAR, "greeter"], 10, False)


def test_any_number_of_origins_may_come_and_go() -> None:
    """Nodes that are thrown away after each run have a new id every time."""
    bench = Bench(LEFT)
    for number in range(50):
        origin = "ab"[number % 2] * 16 + "cdefghijklmnopqrstuvwxyz234567"[number % 30] * 16
        bench.hear(LEFT, announce(origin, LEFT, incarnation=number + 1))
        bench.hear(LEFT, withdraw(origin, incarnation=number + 1, sequence=2, is_final=True))
        bench.run(TOMBSTONE_S + 1)
    assert vars(bench.engine._known) == vars(Known())


def test_a_later_life_of_an_origin_supersedes_all_of_the_earlier_one() -> None:
    bench = Bench(LEFT, RIGHT)
    bench.hear(LEFT, announce(FAR, LEFT, sequence=9), announce(FAR, LEFT, sequence=8, service="old"))
    bench.hear(RIGHT, announce(FAR, RIGHT, sequence=1, incarnation=2))
    assert bench.gateways() == [RIGHT]
    assert bench.gateways("old") == []
    bench.hear(LEFT, announce(FAR, LEFT, sequence=10))
    assert bench.gateways() == [RIGHT]


def test_nothing_is_believed_of_an_earlier_life_even_of_services_unknown_so_far() -> None:
    bench = Bench(LEFT, RIGHT)
    bench.hear(RIGHT, announce(FAR, RIGHT, incarnation=2))
    bench.hear(LEFT, announce(FAR, LEFT, sequence=9, service="old"))
    assert bench.gateways("old") == []
    assert "routing_entries_outdated" in bench.counted


# ------------------------------------------------------------------------------- paths


@pytest.mark.parametrize(
    ("path", "counted"),
    [
        ((FAR, ME, LEFT), "routing_loops_refused"),
        ((FAR, OTHER), "routing_paths_refused"),
        ((LEFT, RIGHT), "routing_paths_refused"),
    ],
)
def test_paths_that_cannot_be_are_refused(path: tuple[str, ...], counted: str) -> None:
    bench = Bench(LEFT)
    bench.hear(LEFT, announce(*path))
    assert bench.table == {}
    assert counted in bench.counted


def test_a_way_that_now_leads_through_us_is_no_way_any_more() -> None:
    bench = Bench(LEFT)
    bench.hear(LEFT, announce(FAR, LEFT))
    bench.hear(LEFT, announce(FAR, ME, LEFT))
    assert bench.table == {}


def test_paths_that_are_too_long_are_refused() -> None:
    bench = Bench(LEFT)
    between = ["abcdeghijkpqstuv"[place] * 32 for place in range(limits.MAX_HOPS - 2)]
    bench.hear(LEFT, announce(FAR, *between, LEFT))
    assert bench.table == {}
    bench.hear(LEFT, announce(FAR, *between[1:], LEFT))
    assert bench.gateways() == [LEFT]
    bench.run(1)


def test_nobody_is_believed_about_our_own_services() -> None:
    bench = Bench(LEFT)
    bench.hear(LEFT, announce(ME, LEFT), withdraw(ME, sequence=99, is_final=True))
    assert bench.table == {}
    assert bench.counted.count("routing_entries_of_our_own") == 2


def test_nothing_is_told_to_the_neighbour_it_leads_through() -> None:
    bench = Bench(LEFT, RIGHT)
    bench.hear(LEFT, announce(FAR, LEFT))
    bench.run(1)
    assert {peer for peer, message in bench.said if isinstance(message, Advert)} == {RIGHT}
    (entry,) = bench.take_entries(RIGHT)
    assert isinstance(entry, Announce)
    assert (entry.path, entry.metric_us) == ((FAR, LEFT, ME), COST_US)


def test_nothing_is_told_to_a_neighbour_that_is_on_the_path_already() -> None:
    bench = Bench(LEFT, RIGHT)
    bench.hear(LEFT, announce(FAR, RIGHT, LEFT))
    bench.run(1)
    assert bench.take_entries(RIGHT) == []


def test_a_neighbour_that_becomes_the_best_way_is_told_that_ours_is_gone() -> None:
    bench = Bench(LEFT, RIGHT)
    bench.hear(LEFT, announce(FAR, LEFT, metric_us=10_000))
    bench.run(1)
    bench.take_said()
    bench.hear(RIGHT, announce(FAR, RIGHT, metric_us=100))
    bench.run(1)
    told = {(peer, type(e)) for peer, message in bench.said if isinstance(message, Advert) for e in message.entries}
    assert told == {(RIGHT, Withdraw), (LEFT, Announce)}


def test_strangers_are_not_heard() -> None:
    bench = Bench(LEFT)
    assert bench.hear(RIGHT, announce(FAR, RIGHT), begins=True) == [Count("routing_messages_from_strangers")]


# ------------------------------------------------------------------------------ choice


def test_alternates_that_are_surely_free_of_loops_stand_in_the_table_and_take_over_at_once() -> None:
    bench = Bench(LEFT, RIGHT, OTHER)
    bench.hear(LEFT, announce(FAR, LEFT))
    bench.hear(RIGHT, announce(FAR, RIGHT, metric_us=COST_US - 1))
    assert bench.gateways() == [LEFT, RIGHT]
    bench.run(1)
    bench.take_said()
    bench.do(NeighbourDown(LEFT))
    assert bench.gateways() == [RIGHT]
    bench.run(1)
    (entry,) = bench.take_entries(OTHER)
    assert isinstance(entry, Announce), "no withdrawal in between"
    assert entry.metric_us == 2 * COST_US - 1


# ------------------------------------------------------------------------------ feasibility


def test_a_neighbour_that_is_no_nearer_to_the_origin_than_we_were_is_not_used() -> None:
    """Its way might lead through us: it says so only later (RFC 8966 section 3.5.1)."""
    bench = Bench(LEFT, RIGHT)
    bench.hear(LEFT, announce(FAR, LEFT))
    bench.hear(RIGHT, announce(FAR, OTHER, RIGHT, metric_us=COST_US))
    assert bench.gateways() == [LEFT]
    bench.hear(LEFT, withdraw(FAR))
    assert bench.gateways() == []


def test_who_is_left_without_a_way_that_is_free_of_loops_asks_for_a_later_sequence_and_uses_it() -> None:
    bench = Bench(LEFT, RIGHT, OTHER)
    bench.hear(LEFT, announce(FAR, LEFT, sequence=4))
    bench.hear(RIGHT, announce(FAR, RIGHT, sequence=4, metric_us=5_000))
    bench.run(1)
    bench.take_said()
    bench.do(NeighbourDown(LEFT))
    requests = [(peer, said) for peer, said in bench.take_said() if isinstance(said, SequenceRequest)]
    ((peer, request),) = requests
    assert peer == RIGHT
    assert (request.origin, request.service, request.at) == (FAR, "greeter", (1, 4))
    bench.hear(RIGHT, announce(FAR, RIGHT, sequence=5, metric_us=5_000))
    assert bench.gateways() == [RIGHT]
    (entry,) = bench.take_entries(OTHER)
    assert isinstance(entry, Announce), "told on at once: others may wait for it, too"


def test_a_neighbour_that_brings_a_way_while_others_are_asked_is_asked_as_well() -> None:
    bench = Bench(LEFT, RIGHT, OTHER)

    def asked() -> list[str]:
        return [peer for peer, said in bench.take_said() if isinstance(said, SequenceRequest)]

    bench.hear(LEFT, announce(FAR, LEFT, sequence=4))
    bench.hear(RIGHT, announce(FAR, RIGHT, sequence=4, metric_us=5_000))
    bench.run(1)
    bench.take_said()
    bench.do(NeighbourDown(LEFT))
    assert asked() == [RIGHT]
    bench.hear(OTHER, announce(FAR, OTHER, sequence=4, metric_us=6_000))
    assert asked() == [OTHER], "what RIGHT names may be a circle"
    bench.hear(RIGHT, announce(FAR, RIGHT, sequence=4, metric_us=5_001))
    assert asked() == [], "each once in a while"


def test_an_origin_that_is_asked_tells_the_same_with_a_later_sequence_at_once() -> None:
    bench = Bench(LEFT, RIGHT)
    bench.up()
    bench.run(1)
    (first,) = bench.take_entries(LEFT)
    request = SequenceRequest(origin=ME, service="greeter", incarnation=7, sequence=first.sequence, hops_left=9)
    bench.listen(LEFT, request)
    (second,) = bench.take_entries(RIGHT)
    assert second.sequence > first.sequence
    bench.listen(LEFT, request)
    assert bench.take_entries(LEFT) == [], "what was asked for has been told"


def test_a_request_is_passed_on_towards_the_origin_once() -> None:
    bench = Bench(LEFT, RIGHT)
    bench.hear(LEFT, announce(FAR, LEFT, sequence=4))
    bench.run(1)
    bench.take_said()
    request = SequenceRequest(origin=FAR, service="greeter", incarnation=1, sequence=4, hops_left=3)
    bench.listen(RIGHT, request)
    ((peer, onward),) = bench.take_said()
    assert peer == LEFT
    assert isinstance(onward, SequenceRequest)
    assert onward.hops_left == 2
    bench.listen(RIGHT, request)
    assert bench.take_said() == []
    bench.now += 2
    bench.listen(RIGHT, SequenceRequest(origin=FAR, service="greeter", incarnation=1, sequence=4, hops_left=1))
    assert bench.take_said() == [], "its hops are used up"


def test_a_request_that_we_can_answer_goes_no_further() -> None:
    bench = Bench(LEFT, RIGHT)
    bench.hear(LEFT, announce(FAR, LEFT, sequence=5))
    bench.take_said()
    request = SequenceRequest(origin=FAR, service="greeter", incarnation=1, sequence=4, hops_left=3)
    bench.listen(RIGHT, request)
    ((peer, said),) = bench.take_said()
    assert peer == RIGHT
    assert isinstance(said, Advert)


def test_a_request_for_what_nobody_knows_is_nothing() -> None:
    bench = Bench(LEFT, RIGHT)
    for origin in (FAR, ME):
        bench.listen(RIGHT, SequenceRequest(origin=origin, service="x.y", incarnation=1, sequence=4, hops_left=3))
    assert bench.take_said() == []


def test_the_way_told_on_changes_only_for_a_clearly_better_one() -> None:
    bench = Bench(LEFT, RIGHT, OTHER)
    bench.hear(LEFT, announce(FAR, LEFT, metric_us=9_000))
    bench.run(1)
    bench.take_said()
    bench.hear(RIGHT, announce(FAR, RIGHT, metric_us=8_000))
    bench.run(1)
    assert bench.take_entries(OTHER) == []
    bench.hear(RIGHT, announce(FAR, RIGHT, metric_us=6_000))
    bench.run(1)
    (entry,) = bench.take_entries(OTHER)
    assert isinstance(entry, Announce)
    assert entry.path == (FAR, RIGHT, ME)


def test_a_link_s_cost_is_believed_at_its_second_measurement() -> None:
    bench = Bench(LEFT, OTHER)
    bench.hear(LEFT, announce(FAR, LEFT))
    bench.do(NeighbourCost(LEFT, COST_US))
    bench.run(1)
    bench.take_said()
    bench.do(NeighbourCost(LEFT, 9_000))
    assert [route.metric for route in bench.table.values()] == [COST_US]
    bench.do(NeighbourCost(LEFT, 9_000))
    assert [route.metric for route in bench.table.values()] == [9_000]
    bench.run(1)
    (entry,) = bench.take_entries(OTHER)
    assert isinstance(entry, Announce)
    assert entry.metric_us == 9_000


def test_a_way_that_costs_too_much_to_count_is_told_to_nobody() -> None:
    bench = Bench(LEFT, OTHER)
    bench.hear(LEFT, announce(FAR, LEFT, metric_us=UNREACHABLE_US - 1))
    bench.run(1)
    assert bench.take_entries(OTHER) == []


# -------------------------------------------------------------------- leases and digests


def digest_of(number: int, *entries: Announce) -> Digest:
    checksum = 0
    for entry in entries:
        checksum ^= entry.checksum()
    return Digest(number, len(entries), checksum)


def test_a_way_without_digests_dies_with_its_lease_and_the_table_is_asked_for() -> None:
    bench = Bench(LEFT)
    bench.hear(LEFT, announce(FAR, LEFT))
    bench.run(89.9)
    assert bench.gateways() == [LEFT]
    bench.take_said()
    bench.run(0.2)
    assert bench.gateways() == []
    assert "routing_leases_expired" in bench.counted
    assert (LEFT, Solicit()) in bench.take_said()


def test_a_digest_renews_the_ways_of_its_neighbour_and_no_other() -> None:
    bench = Bench(LEFT, RIGHT)
    first, second = announce(FAR, LEFT), announce(FAR, LEFT, service="second")
    bench.hear(LEFT, first, second)
    bench.hear(RIGHT, announce(FAR, RIGHT))
    for _ in range(5):
        bench.run(30)
        bench.listen(LEFT, digest_of(2, second, first))
    assert bench.gateways() == [LEFT]
    assert bench.gateways("second") == [LEFT]


def test_a_digest_covers_what_was_refused_too() -> None:
    bench = Bench(LEFT)
    good, loop = announce(FAR, LEFT), announce(OTHER, ME, LEFT, service="round")
    bench.hear(LEFT, good, loop)
    bench.take_said()
    bench.listen(LEFT, digest_of(2, good, loop))
    assert bench.take_said() == []


def test_a_digest_that_differs_asks_for_the_full_table() -> None:
    bench = Bench(LEFT)
    entry = announce(FAR, LEFT)
    bench.hear(LEFT, entry)
    bench.take_said()
    for wrong in (
        digest_of(2),
        digest_of(2, entry, announce(FAR, LEFT, service="second")),
        digest_of(2, announce(FAR, LEFT, metric_us=1)),
    ):
        bench.listen(LEFT, wrong)
        assert bench.take_said() == [(LEFT, Solicit())]
    assert bench.counted.count("routing_digests_differ") == 3


def test_a_digest_that_is_ahead_or_behind_says_nothing() -> None:
    bench = Bench(LEFT)
    bench.hear(LEFT, announce(FAR, LEFT))
    bench.take_said()
    for number in (1, 3):
        bench.listen(LEFT, digest_of(number))
    assert bench.take_said() == []
    bench.run(91)
    assert bench.gateways() == [], "and renews nothing"


def test_a_node_tells_three_digests_a_lease_of_what_it_told() -> None:
    bench = Bench(LEFT)
    bench.up()
    bench.run(300)
    digests = [message for _, message in bench.said if isinstance(message, Digest)]
    assert 10 <= len(digests) <= 12
    (told,) = bench.take_entries(LEFT)
    assert isinstance(told, Announce)
    assert {(one.count, one.checksum) for one in digests} == {(1, told.checksum())}


def test_names_that_were_offered_once_are_not_kept_for_ever() -> None:
    bench = Bench(LEFT)
    for number in range(20):
        bench.up(f"once.{number}")
        bench.run(2)
        bench.down(f"once.{number}")
    bench.run(60)
    assert bench.engine._origin.services == {}


# -------------------------------------------------------------------------- acknowledging


def test_a_lost_advert_is_told_again_with_growing_pauses_and_then_as_a_full_table() -> None:
    bench = Bench(LEFT)
    bench.up()
    bench.run(0.5, acknowledging=False)
    bench.run(29, acknowledging=False)
    adverts = [message for _, message in bench.take_said() if isinstance(message, Advert)]
    again, full = adverts[:RESYNC_AFTER_TRIES], adverts[RESYNC_AFTER_TRIES]
    assert len({message.number for message in again}) == 1
    assert full.begins
    assert full.ends
    assert [entry.service for entry in full.entries] == ["greeter"]
    assert "routing_neighbours_resynced" in bench.counted


def test_what_was_acknowledged_is_not_told_again() -> None:
    bench = Bench(LEFT)
    bench.up()
    bench.run(60)
    assert len(bench.take_entries(LEFT)) == 1


def test_acknowledging_a_later_advert_acknowledges_those_before() -> None:
    bench = Bench(LEFT)
    for service in ("one", "two", "three"):
        bench.up(service)
        bench.run(0.5, acknowledging=False)
    last = max(message.number for _, message in bench.take_said() if isinstance(message, Advert))
    bench.listen(LEFT, Ack(last))
    bench.run(20, acknowledging=False)
    assert bench.take_entries(LEFT) == []


def test_a_silent_neighbour_is_told_a_bounded_number_of_adverts() -> None:
    bench = Bench(LEFT)
    for number in range(MAX_UNACKNOWLEDGED + 50):
        bench.up(f"s{number}")
        bench.engine.wake(bench.now + 0.001 * number)
        bench.now += 0.002
    numbers: set[int] = set()
    for _ in range(100):
        bench.up()
        bench.run(0.6, acknowledging=False)
        bench.down()
        numbers |= {message.number for _, message in bench.take_said() if isinstance(message, Advert)}
    assert len(bench.engine._neighbours[LEFT]._on_the_way) <= MAX_UNACKNOWLEDGED


def test_a_gap_asks_for_the_table_once_however_many_follow() -> None:
    bench = Bench(LEFT)
    for number in (5, 6, 7, 8):
        bench.hear(LEFT, announce(FAR, LEFT, sequence=number), number=number)
    assert bench.take_said() == [(LEFT, Solicit())]
    assert bench.table == {}
    bench.hear(LEFT, number=5)
    assert bench.take_said() == [(LEFT, Solicit())], "told again: the question was lost"


def test_adverts_that_come_twice_are_acknowledged_and_change_nothing() -> None:
    bench = Bench(LEFT)
    bench.hear(LEFT, announce(FAR, LEFT, sequence=1))
    bench.hear(LEFT, announce(FAR, LEFT, sequence=2, metric_us=70))
    before = dict(bench.table)
    bench.take_said()
    bench.hear(LEFT, announce(FAR, LEFT, sequence=1), number=2)
    assert bench.table == before
    assert bench.take_said() == [(LEFT, Ack(3))]


def test_a_full_table_that_comes_again_late_does_not_undo_what_came_after() -> None:
    bench = Bench(LEFT)
    bench.hear(LEFT, announce(FAR, LEFT, service="old"), begins=True, ends=True)
    full = bench.numbers[LEFT]
    bench.hear(LEFT, withdraw(FAR, service="old"), announce(FAR, LEFT, sequence=2, service="new"))
    bench.hear(LEFT, announce(FAR, LEFT, service="old"), begins=True, ends=True, number=full)
    assert {route.service for route in bench.table.values()} == {"new"}
    bench.hear(LEFT, announce(FAR, LEFT, sequence=3, service="newer"))
    assert {route.service for route in bench.table.values()} == {"new", "newer"}


def test_numbers_rise_from_link_to_link_and_from_life_to_life() -> None:
    bench = Bench()
    numbers = []
    for _ in range(3):
        bench.do(NeighbourUp(LEFT, COST_US))
        for _, message in bench.take_said():
            assert isinstance(message, Advert)
            numbers.append(message.number)
    assert numbers == sorted(set(numbers))
    assert numbers[0] > 7, "its incarnation"


def test_a_full_table_in_pieces_drops_what_it_did_not_name_when_it_ends() -> None:
    bench = Bench(LEFT)
    bench.hear(LEFT, *(announce(FAR, LEFT, service=name) for name in ("a", "b", "c")))
    bench.hear(LEFT, announce(FAR, LEFT, service="a"), begins=True)
    assert {route.service for route in bench.table.values()} == {"a", "b", "c"}
    bench.hear(LEFT, announce(FAR, LEFT, service="c"), ends=True)
    assert {route.service for route in bench.table.values()} == {"a", "c"}


def test_a_solicit_is_answered_with_everything_in_pieces_that_fit() -> None:
    bench = Bench(LEFT)
    count = 1_000
    for number in range(count):
        for instance in range(16):
            bench.do(
                InstanceUp(
                    f"{number:0250d}",
                    f"i{instance}",
                    LocalInstance(address=f"a{instance}", version=f"{instance}" + "é" * 125),
                )
            )
    bench.run(2)
    bench.take_said()
    bench.listen(LEFT, Solicit())
    adverts = [message for _, message in bench.take_said() if isinstance(message, Advert)]
    assert sum(len(advert.entries) for advert in adverts) == count
    assert all(len(messages.encode(advert)) <= limits.MAX_ADVERT_BYTES for advert in adverts)
    assert [advert.begins for advert in adverts] == [True] + [False] * (len(adverts) - 1)
    assert [advert.ends for advert in adverts] == [False] * (len(adverts) - 1) + [True]
    assert [advert.number for advert in adverts] == [adverts[0].number + place for place in range(len(adverts))]


def test_a_new_link_is_told_everything_and_brings_the_same_version_back() -> None:
    bench = Bench(LEFT)
    bench.up()
    bench.hear(LEFT, announce(FAR, LEFT, service="far"))
    bench.run(1)
    bench.do(NeighbourDown(LEFT))
    assert bench.gateways("far") == []
    bench.take_said()
    bench.do(NeighbourUp(LEFT, COST_US))
    ((peer, message),) = bench.take_said()
    assert isinstance(message, Advert)
    assert (peer, message.begins, message.ends) == (LEFT, True, True)
    assert [entry.service for entry in message.entries] == ["greeter"]
    bench.hear(LEFT, announce(FAR, LEFT, service="far"), begins=True, ends=True, number=1)
    assert bench.gateways("far") == [LEFT]


def test_adverts_before_a_full_table_are_not_built_upon() -> None:
    bench = Bench()
    bench.do(NeighbourUp(LEFT, COST_US))
    bench.take_said()
    bench.hear(LEFT, announce(FAR, LEFT))
    assert bench.table == {}
    assert bench.take_said() == [(LEFT, Solicit())]


# ------------------------------------------------------------------------ bounds, sameness


def test_routes_over_the_bound_of_a_neighbour_are_refused_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_ROUTES_PER_NEIGHBOUR", 2)
    bench = Bench(LEFT, RIGHT)
    bench.hear(LEFT, *(announce(FAR, LEFT, service=name) for name in ("a", "b", "c")))
    assert {route.service for route in bench.table.values()} == {"a", "b"}
    assert bench.counted.count("routing_routes_over_the_bound") == 1
    bench.hear(LEFT, announce(FAR, LEFT, service="a", sequence=2))
    assert bench.counted.count("routing_routes_over_the_bound") == 1, "known ones are renewed"
    bench.hear(RIGHT, announce(FAR, RIGHT, service="c"))
    assert bench.gateways("c") == [RIGHT], "the bound is each neighbour's own"


def test_an_advert_is_told_again_after_a_second_and_not_before() -> None:
    bench = Bench(LEFT)
    bench.up()
    bench.run(0.5, acknowledging=False)
    bench.take_said()
    bench.run(RESEND_FIRST_S - 0.5, acknowledging=False)
    assert bench.take_said() == []
    bench.run(0.5, acknowledging=False)
    assert kinds(bench.take_said()) == [Advert]


def test_the_timer_never_spins() -> None:
    """After a wake the next one is later, whatever the times round to."""
    source = random.Random(3)
    bench = Bench(LEFT, RIGHT)
    for number in range(300):
        bench.now += source.random() * 7.3
        sequence = number * 2 + 1
        bench.hear(LEFT, announce(FAR, LEFT, sequence=sequence, service=f"s{number % 5}"))
        if source.random() < 0.5:
            bench.hear(
                LEFT, withdraw(FAR, sequence=sequence + 1, service=f"s{number % 5}", is_final=source.random() < 0.5)
            )
        bench.acknowledge()
        wake_at = bench.engine.wake_at
        assert wake_at is not None
        bench.now = max(bench.now, wake_at)
        bench._apply(bench.engine.wake(bench.now))
        assert bench.engine.wake_at is None or bench.engine.wake_at > bench.now


def test_the_same_seed_gives_the_same_effects() -> None:
    def story(seed: int) -> list[tuple[str, RoutingMessage]]:
        bench = Bench(LEFT, RIGHT, seed=seed)
        for service in ("c", "a", "b"):
            bench.up(service)
        bench.hear(RIGHT, announce(FAR, RIGHT, service="far"))
        bench.run(100)
        return bench.said

    assert story(5) == story(5)


def test_the_story_of_a_service_tells_what_happened() -> None:
    bench = Bench(LEFT)
    bench.hear(LEFT, announce(FAR, LEFT))
    bench.do(NeighbourDown(LEFT))
    assert [what for _, what in bench.engine.story("greeter")] == [
        f"via {LEFT[:8]} at {COST_US} µs",
        f"via {LEFT[:8]}: its link is gone",
    ]
    assert bench.engine.story("other") == []


# ------------------------------------------------------------------------------ damping


def flap(bench: Bench, times: int, period_s: float = 2.0) -> None:
    for _ in range(times):
        bench.down()
        bench.run(period_s / 2)
        bench.up()
        bench.run(period_s / 2)


def test_a_service_that_flaps_is_withdrawn_at_once_and_held_back_and_let_out_with_its_latest_state() -> None:
    bench = Bench(LEFT)
    bench.up()
    bench.run(1)
    flap(bench, 8)
    told = bench.take_entries(LEFT)
    assert isinstance(told[-1], Withdraw), "the last word is the bad one"
    assert sum(isinstance(entry, Announce) for entry in told) < 8
    bench.up(instance="j", version="2")
    bench.run(119)
    (entry,) = bench.take_entries(LEFT)
    assert isinstance(entry, Announce)
    assert entry.versions == ("2",), "the latest state, with what came while it was held"


def test_a_withdrawal_is_never_held() -> None:
    bench = Bench(LEFT)
    for _ in range(40):
        bench.up()
        bench.run(30)
        bench.take_said()
        was_told = ("greeter", ME) in {(key[1], key[0]) for key in bench.engine._neighbours[LEFT].told}
        bench.down()
        assert [type(entry) for entry in bench.take_entries(LEFT)] == ([Withdraw] if was_told else [])
        bench.run(0.1)


def test_a_new_neighbour_is_not_told_what_is_held_back() -> None:
    bench = Bench(LEFT)
    bench.up()
    flap(bench, 8)
    bench.take_said()
    bench.do(NeighbourUp(RIGHT, COST_US))
    assert bench.take_entries(RIGHT) == []


def test_an_honest_restart_waits_for_the_coalescing_time_alone() -> None:
    bench = Bench(LEFT)
    bench.up()
    bench.run(600)
    bench.take_said()
    bench.down()
    bench.acknowledge()
    bench.run(3)
    bench.up()
    bench.run(0.5)
    assert [type(entry) for entry in bench.take_entries(LEFT)] == [Withdraw, Announce]


def test_an_operator_s_release_goes_out_with_the_next_look() -> None:
    bench = Bench(LEFT)
    bench.up()
    flap(bench, 8)
    bench.take_said()
    bench.do(Release("greeter"))
    (entry,) = bench.take_entries(LEFT)
    assert isinstance(entry, Announce)
