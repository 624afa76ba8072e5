"""Tokens of Retry packets, which prove that a dialling node receives at its source address (RFC 9000 section 8.1.2).

Time and key are arguments. A token contains no secret, only its content and a keyed hash of the content.
"""

from __future__ import annotations

import hashlib
import hmac

LIFETIME_S = 30.0
"""A dialling node returns its token immediately, so an old token is a replayed one."""

_MAC_BYTES = 16
_TIME_BYTES = 8


def make_token(key: bytes, *, address: str, original_cid: bytes, retry_cid: bytes, now: float) -> bytes:
    """Return the token for a node at `address` that chose the id `original_cid` and has to use `retry_cid` instead."""
    issued = int(now * 1000).to_bytes(_TIME_BYTES, "big")
    return _mac(key, issued, original_cid, address, retry_cid) + issued + original_cid


def check_token(key: bytes, token: bytes, *, address: str, retry_cid: bytes, now: float) -> bytes | None:
    """Return the original connection id, or None if the token is forged, expired, or of another address."""
    mac, issued, original_cid = token[:_MAC_BYTES], token[_MAC_BYTES:][:_TIME_BYTES], token[_MAC_BYTES + _TIME_BYTES :]
    if not hmac.compare_digest(mac, _mac(key, issued, original_cid, address, retry_cid)):
        return None
    age_s = now - int.from_bytes(issued, "big") / 1000
    return original_cid if age_s <= LIFETIME_S else None


def _mac(key: bytes, issued: bytes, original_cid: bytes, address: str, retry_cid: bytes) -> bytes:
    fields = (issued, original_cid, address.encode(), retry_cid)
    text = b"".join(len(field).to_bytes(2, "big") + field for field in fields)
    return hmac.digest(key, text, hashlib.sha256)[:_MAC_BYTES]
