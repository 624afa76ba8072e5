"""What `micro network connections` shows: the views of links, wanted numbers and nodes without a link."""

from __future__ import annotations

from micro_core.cli.network import _link_notes
from micro_core.network.peer_events import DialSucceeded, LinkDeclined, PeerLost, ProbeFailed, Reachability
from micro_core.network.peer_status import candidate_statuses, side_statuses
from micro_core.node.views import candidate_node_view, failing_view, links_view
from tests.network.test_peers import Node, full_node, probed, seen


def shown(node: Node) -> list[str]:
    """Return the lines that the command prints below the table."""
    candidates = candidate_statuses(node.peers, node.now)
    return _link_notes(
        {
            "links": links_view(side_statuses(node.peers), node.peers.options.max_links),
            "candidates": [candidate_node_view(candidate) for candidate in candidates],
        }
    )


def test_numbers_of_wanted_and_open_links_are_shown() -> None:
    node = full_node()
    assert links_view(side_statuses(node.peers), 64) == {
        "site": {"wanted": 0, "open": 0},
        "remote": {"wanted": 2, "open": 3},
        "max": 64,
    }
    assert shown(node) == ["links inside the site: 0, wanted 0", "links to other sites: 3, wanted 2"]


def test_node_linked_by_its_own_dial_is_not_listed_as_failing() -> None:
    node = full_node()
    node.handle(ProbeFailed("x:1", "connection refused"))
    node.handle(DialSucceeded("quic://x:1", "x", was_linked=True))
    assert failing_view(candidate_statuses(node.peers, node.now)) == []
    assert len(shown(node)) == 2


def test_reason_and_time_of_the_next_attempt_are_shown_for_an_unreachable_node() -> None:
    node = full_node()
    node.handle(seen("a"))
    node.run(1.0)
    node.handle(ProbeFailed("a:1", "no answer from a:1 within 4 s"))
    (line,) = shown(node)[2:]
    assert line.startswith("no link to a (us), unreachable: failing: no answer from a:1 within 4 s, next attempt in ")
    (entry,) = failing_view(candidate_statuses(node.peers, node.now))
    assert entry == {"address": "a:1", "reason": "no answer from a:1 within 4 s"}


def test_reason_of_the_peer_is_shown_when_it_closed_the_link() -> None:
    node = full_node()
    node.link("a", address="a:1")
    node.handle(Reachability(frozenset("xyza")))
    node.handle(LinkDeclined("a", "this node has more than 64 links (node.max_links)"))
    node.handle(PeerLost("a"))
    (line,) = shown(node)[2:]
    assert "no link to a (us), 20.00 ms away: closed by the node: this node has more than 64 links" in line


def test_reachable_node_that_is_not_needed_is_shown_as_such() -> None:
    node = full_node()
    node.handle(Reachability(frozenset("xyza")))
    node.handle(seen("a"))
    assert probed(node.run(1.0)) == []
    assert shown(node)[2:] == ["no link to a (us): not needed: there are enough links"]
