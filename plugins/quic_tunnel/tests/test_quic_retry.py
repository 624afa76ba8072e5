"""Tokens of Retry packets."""

from __future__ import annotations

from micro_quic_tunnel.retry import LIFETIME_S, check_token, make_token

KEY = bytes(range(32))
HERE = "('192.0.2.1', 4433)"


def token() -> bytes:
    return make_token(KEY, address=HERE, original_cid=b"original", retry_cid=b"retry cid", now=100.0)


def test_a_token_gives_back_the_original_connection_id() -> None:
    assert check_token(KEY, token(), address=HERE, retry_cid=b"retry cid", now=101.0) == b"original"


def test_a_token_is_good_for_one_address_and_one_connection_id() -> None:
    assert check_token(KEY, token(), address="('192.0.2.2', 4433)", retry_cid=b"retry cid", now=101.0) is None
    assert check_token(KEY, token(), address=HERE, retry_cid=b"another", now=101.0) is None


def test_an_old_token_is_refused() -> None:
    assert check_token(KEY, token(), address=HERE, retry_cid=b"retry cid", now=100.0 + LIFETIME_S + 1) is None


def test_a_forged_token_is_refused_wherever_it_was_changed() -> None:
    good = token()
    for place in range(len(good)):
        forged = good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :]
        assert check_token(KEY, forged, address=HERE, retry_cid=b"retry cid", now=101.0) is None
    for length in range(len(good)):
        assert check_token(KEY, good[:length], address=HERE, retry_cid=b"retry cid", now=101.0) is None
    assert check_token(bytes(32), good, address=HERE, retry_cid=b"retry cid", now=101.0) is None
