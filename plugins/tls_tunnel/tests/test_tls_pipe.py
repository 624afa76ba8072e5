"""Tests of TLS without I/O: two pipes whose bytes the test transfers."""

from __future__ import annotations

import random
import ssl

import pytest
from micro_tls_tunnel.certificate import NAME, binding_of, dialling_context, listening_context
from micro_tls_tunnel.half_open import HalfOpen
from micro_tls_tunnel.pipe import PipeState, TlsPipe

from micro_core.contract import LinkLost


class Pair:
    """Both ends of a connection. `transfer` moves bytes until neither end has any to send."""

    def __init__(self, dialling: ssl.SSLContext | None = None) -> None:
        context, self.binding = listening_context("", "")
        self.near = TlsPipe(dialling or dialling_context(), dialed=True, server_name=NAME)
        self.far = TlsPipe(context, dialed=False)

    def transfer(self, chunk: int = 1 << 20) -> tuple[bytes, bytes]:
        """Transfer bytes in chunks of this size, and return what the near and the far end received."""
        received: tuple[list[bytes], list[bytes]] = ([], [])
        while True:
            directions = [
                (self.near.data_to_send(), self.far, received[1]),
                (self.far.data_to_send(), self.near, received[0]),
            ]
            if not any(data for data, _, _ in directions):
                return b"".join(received[0]), b"".join(received[1])
            for data, target, into in directions:
                into += [target.receive_data(data[start : start + chunk]) for start in range(0, len(data), chunk)]

    def connect(self) -> Pair:
        self.near.start_handshake()
        self.transfer()
        assert self.near.state is self.far.state is PipeState.UP
        return self


@pytest.mark.parametrize("chunk", [1, 7, 1000, 1 << 20])
def test_handshake_and_data_can_arrive_in_chunks_of_any_size(chunk: int) -> None:
    pair = Pair()
    pair.near.start_handshake()
    pair.transfer(chunk)
    sent = random.Random(1).randbytes(50_000)
    pair.near.write(sent)
    pair.far.write(sent[::-1])
    assert pair.transfer(chunk) == (sent[::-1], sent)


def test_dialling_end_receives_the_certificate_of_the_binding() -> None:
    pair = Pair().connect()
    certificate = pair.near.peer_certificate()
    assert certificate is not None
    assert binding_of(certificate) == pair.binding


def test_each_listener_has_its_own_certificate() -> None:
    assert Pair().binding != Pair().binding


def test_tls_1_2_is_rejected() -> None:
    old = dialling_context()
    old.minimum_version = ssl.TLSVersion.TLSv1_2
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    pair = Pair(old)
    pair.near.start_handshake()
    with pytest.raises(LinkLost, match="unsupported protocol"):
        pair.transfer()


def test_no_session_ticket_is_issued() -> None:
    pair = Pair().connect()
    assert pair.near._tls.session is None or not pair.near._tls.session.has_ticket


def test_close_notify_ends_the_connection_after_all_data() -> None:
    pair = Pair().connect()
    pair.near.write(b"final data")
    pair.near.close()
    assert pair.transfer() == (b"", b"final data")
    assert pair.far.state is PipeState.ENDED


def test_modified_data_fails_the_connection_and_is_not_delivered() -> None:
    pair = Pair().connect()
    pair.near.write(b"complete" * 100)
    data = bytearray(pair.near.data_to_send())
    data[-1] ^= 1
    with pytest.raises(LinkLost, match="invalid TLS data"):
        pair.far.receive_data(bytes(data))
    assert pair.far.state is PipeState.FAILED


def test_complete_records_before_an_invalid_one_are_delivered() -> None:
    pair = Pair().connect()
    pair.near.write(b"complete")
    valid = pair.near.data_to_send()
    assert pair.far.receive_data(valid + b"\x17\x03\x03\x00\x40" + bytes(64)) == b"complete"
    assert pair.far.state is PipeState.FAILED
    assert pair.far.error is not None


@pytest.mark.parametrize("seed", range(20))
def test_garbage_in_the_handshake_is_rejected_at_both_ends(seed: int) -> None:
    pair = Pair()
    pair.near.start_handshake()
    garbage = random.Random(seed).randbytes(600) * 200
    for pipe in (pair.far, pair.near):
        with pytest.raises(LinkLost):
            pipe.receive_data(garbage)
        assert pipe.receive_data(garbage) == b""


def test_tls_with_another_alpn_is_rejected() -> None:
    browser = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    browser.check_hostname, browser.verify_mode = False, ssl.CERT_NONE
    pair = Pair(browser)
    pair.near._tls.selected_alpn_protocol = lambda: "micro/1"  # type: ignore[method-assign]
    pair.near.start_handshake()
    with pytest.raises(LinkLost, match="not a node"):
        pair.transfer()


def test_oldest_connection_of_the_busiest_host_is_removed_above_the_limit() -> None:
    half_open: HalfOpen[str] = HalfOpen(3)
    assert [half_open.add(name, "flood") for name in ("f1", "f2")] == [None, None]
    assert half_open.add("node", "honest") is None
    assert half_open.add("f3", "flood") == "f1"
    assert half_open.add("f4", "flood") == "f2"
    assert half_open.add("other", "third") == "f3"
    assert len(half_open) == 3
    assert half_open.discard("node")
    assert not half_open.discard("node")
    assert set(half_open.take_all()) == {"f4", "other"}
    assert len(half_open) == 0
