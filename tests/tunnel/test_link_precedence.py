"""Which of two links to one peer is kept: both ends decide alike."""

from __future__ import annotations

from dataclasses import dataclass, field

from micro_core.tunnel.handshake import Hello
from micro_core.tunnel.link_precedence import is_move, supersedes


@dataclass
class Driver:
    driver: str = "quic"


@dataclass
class Ranked:
    """A link between the nodes `a` and `b`, seen by `a`. Numbers are (incarnation, generation)."""

    a: tuple[int, int]
    b: tuple[int, int]
    dialed: bool
    peer_id: str = "b"
    link: Driver = field(default_factory=Driver)

    @property
    def own(self) -> Hello:
        return hello(*self.a)

    @property
    def peer(self) -> Hello:
        return hello(*self.b)

    def seen_by_b(self) -> Ranked:
        return Ranked(self.b, self.a, not self.dialed, "a", self.link)


def hello(incarnation: int, generation: int) -> Hello:
    return Hello(
        public_key=b"",
        network="",
        name="",
        site="",
        addresses=(),
        incarnation=incarnation,
        generation=generation,
    )


def kept(new: Ranked, old: Ranked) -> Ranked:
    """Return the link that both ends keep, whichever of the two is the later one."""
    decisions = {
        supersedes("a", new, old),
        not supersedes("a", old, new),
        supersedes("b", new.seen_by_b(), old.seen_by_b()),
        not supersedes("b", old.seen_by_b(), new.seen_by_b()),
    }
    assert len(decisions) == 1, "both ends keep the same link"
    return new if decisions.pop() else old


def test_link_of_a_later_incarnation_of_either_node_is_kept() -> None:
    for is_dialed in (True, False):
        old = Ranked((1, 7), (1, 7), dialed=not is_dialed)
        for new in (Ranked((2, 1), (1, 7), dialed=is_dialed), Ranked((1, 7), (2, 1), dialed=is_dialed)):
            assert kept(new, old) is new
            assert not is_move(new, old)
            assert not is_move(new.seen_by_b(), old.seen_by_b())


def test_later_one_of_two_links_dialled_by_one_node_is_kept() -> None:
    for is_dialed in (True, False):
        old, new = Ranked((1, 1), (1, 1), dialed=is_dialed), Ranked((1, 2), (1, 2), dialed=is_dialed)
        assert kept(new, old) is new


def test_link_dialled_by_the_smaller_id_is_kept_if_both_nodes_dialled() -> None:
    old, new = Ranked((1, 1), (1, 9), dialed=True), Ranked((1, 1), (1, 9), dialed=False)
    assert kept(new, old) is old


def test_link_over_another_driver_of_the_same_incarnations_is_a_move() -> None:
    old = Ranked((1, 1), (1, 1), dialed=True)
    assert is_move(Ranked((1, 2), (1, 1), dialed=True, link=Driver("tls")), old)
    assert not is_move(Ranked((1, 2), (1, 1), dialed=True), old)
    assert not is_move(Ranked((1, 2), (2, 1), dialed=True, link=Driver("tls")), old)
