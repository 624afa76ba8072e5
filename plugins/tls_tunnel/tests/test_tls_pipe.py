"""TLS as pure protocol: two pipes, their bytes carried by hand."""

from __future__ import annotations

import random
import ssl

import pytest
from micro_tls_tunnel.certificate import NAME, binding_of, dialling_context, listening_context
from micro_tls_tunnel.half_open import HalfOpen
from micro_tls_tunnel.pipe import PipeState, TlsPipe

from micro_core.contract import LinkLost


class Pair:
    """Both ends; `carry` moves bytes until neither has any to send."""

    def __init__(self, dialling: ssl.SSLContext | None = None) -> None:
        context, self.binding = listening_context("", "")
        self.near = TlsPipe(dialling or dialling_context(), dialed=True, server_name=NAME)
        self.far = TlsPipe(context, dialed=False)

    def carry(self, piece: int = 1 << 20) -> tuple[bytes, bytes]:
        """What the near and the far end received, in pieces of that size on the way."""
        got: tuple[list[bytes], list[bytes]] = ([], [])
        while True:
            ways = [(self.near.data_to_send(), self.far, got[1]), (self.far.data_to_send(), self.near, got[0])]
            if not any(data for data, _, _ in ways):
                return b"".join(got[0]), b"".join(got[1])
            for data, target, into in ways:
                into += [target.receive_data(data[at : at + piece]) for at in range(0, len(data), piece)]

    def connect(self) -> Pair:
        self.near.begin()
        self.carry()
        assert self.near.state is self.far.state is PipeState.UP
        return self


@pytest.mark.parametrize("piece", [1, 7, 1000, 1 << 20])
def test_the_handshake_and_what_follows_come_through_in_pieces_of_any_size(piece: int) -> None:
    pair = Pair()
    pair.near.begin()
    pair.carry(piece)
    sent = random.Random(1).randbytes(50_000)
    pair.near.write(sent)
    pair.far.write(sent[::-1])
    assert pair.carry(piece) == (sent[::-1], sent)


def test_the_dialler_sees_the_certificate_that_the_listener_counts_as_its_binding() -> None:
    pair = Pair().connect()
    shown = pair.near.peer_certificate()
    assert shown is not None
    assert binding_of(shown) == pair.binding


def test_every_listener_has_a_certificate_of_its_own() -> None:
    assert Pair().binding != Pair().binding


def test_only_tls_1_3_is_spoken() -> None:
    old = dialling_context()
    old.minimum_version = ssl.TLSVersion.TLSv1_2
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    pair = Pair(old)
    pair.near.begin()
    with pytest.raises(LinkLost, match="unsupported protocol"):
        pair.carry()


def test_no_session_ticket_is_given_so_nothing_is_resumed() -> None:
    pair = Pair().connect()
    assert pair.near._tls.session is None or not pair.near._tls.session.has_ticket


def test_a_goodbye_is_an_end_after_all_that_was_said_before() -> None:
    pair = Pair().connect()
    pair.near.write(b"last words")
    pair.near.close()
    assert pair.carry() == (b"", b"last words")
    assert pair.far.state is PipeState.ENDED


def test_bytes_changed_on_the_way_break_the_link_and_are_not_delivered() -> None:
    pair = Pair().connect()
    pair.near.write(b"whole" * 100)
    data = bytearray(pair.near.data_to_send())
    data[-1] ^= 1
    with pytest.raises(LinkLost, match="not TLS as it should be"):
        pair.far.receive_data(bytes(data))
    assert pair.far.state is PipeState.BROKEN


def test_what_came_whole_before_a_broken_record_is_delivered() -> None:
    pair = Pair().connect()
    pair.near.write(b"whole")
    good = pair.near.data_to_send()
    assert pair.far.receive_data(good + b"\x17\x03\x03\x00\x40" + bytes(64)) == b"whole"
    assert pair.far.state is PipeState.BROKEN
    assert pair.far.error is not None


@pytest.mark.parametrize("seed", range(20))
def test_garbage_in_the_handshake_is_refused_at_either_end(seed: int) -> None:
    pair = Pair()
    pair.near.begin()
    garbage = random.Random(seed).randbytes(600) * 200
    for pipe in (pair.far, pair.near):
        with pytest.raises(LinkLost):
            pipe.receive_data(garbage)
        assert pipe.receive_data(garbage) == b""


def test_tls_without_our_protocol_is_no_node() -> None:
    browser = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    browser.check_hostname, browser.verify_mode = False, ssl.CERT_NONE
    pair = Pair(browser)
    pair.near._tls.selected_alpn_protocol = lambda: "micro/1"  # type: ignore[method-assign]
    pair.near.begin()
    with pytest.raises(LinkLost, match="no node"):
        pair.carry()


def test_at_the_bound_the_oldest_of_the_busiest_host_gives_way() -> None:
    waiting: HalfOpen[str] = HalfOpen(3)
    assert [waiting.add(name, "flood") for name in ("f1", "f2")] == [None, None]
    assert waiting.add("node", "honest") is None
    assert waiting.add("f3", "flood") == "f1"
    assert waiting.add("f4", "flood") == "f2"
    assert waiting.add("other", "honest too") == "f3"
    assert len(waiting) == 3
    assert waiting.discard("node")
    assert not waiting.discard("node")
    assert set(waiting.take_all()) == {"f4", "other"}
    assert len(waiting) == 0
