"""Tests of the tokens of Retry packets."""

from __future__ import annotations

from micro_quic_tunnel.retry import LIFETIME_S, check_token, make_token

KEY = bytes(range(32))
ADDRESS = "('192.0.2.1', 4433)"


def token() -> bytes:
    return make_token(KEY, address=ADDRESS, original_cid=b"original", retry_cid=b"retry cid", now=100.0)


def test_token_contains_the_original_connection_id() -> None:
    assert check_token(KEY, token(), address=ADDRESS, retry_cid=b"retry cid", now=101.0) == b"original"


def test_token_is_valid_for_one_address_and_one_connection_id() -> None:
    assert check_token(KEY, token(), address="('192.0.2.2', 4433)", retry_cid=b"retry cid", now=101.0) is None
    assert check_token(KEY, token(), address=ADDRESS, retry_cid=b"another", now=101.0) is None


def test_expired_token_is_rejected() -> None:
    assert check_token(KEY, token(), address=ADDRESS, retry_cid=b"retry cid", now=100.0 + LIFETIME_S + 1) is None


def test_forged_token_is_rejected_at_any_position() -> None:
    valid = token()
    for position in range(len(valid)):
        forged = valid[:position] + bytes([valid[position] ^ 1]) + valid[position + 1 :]
        assert check_token(KEY, forged, address=ADDRESS, retry_cid=b"retry cid", now=101.0) is None
    for length in range(len(valid)):
        assert check_token(KEY, valid[:length], address=ADDRESS, retry_cid=b"retry cid", now=101.0) is None
    assert check_token(bytes(32), valid, address=ADDRESS, retry_cid=b"retry cid", now=101.0) is None
