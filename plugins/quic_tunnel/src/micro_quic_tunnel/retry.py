"""Tokens of Retry packets: proof that a dialler receives at the address it gives (RFC 9000 section 8.1.2).

Pure: time and the key are arguments. A token holds no secret, only a keyed hash over what it says.
"""

from __future__ import annotations

import hashlib
import hmac

LIFETIME_S = 30.0
"""A dialler returns its token at once; an old one is somebody's recording."""

_MAC_BYTES = 16
_TIME_BYTES = 8


def make_token(key: bytes, *, address: str, original_cid: bytes, retry_cid: bytes, now: float) -> bytes:
    """The token for a dialler at `address` that chose `original_cid` and is told to use `retry_cid`."""
    issued = int(now * 1000).to_bytes(_TIME_BYTES, "big")
    return _mac(key, issued, original_cid, address, retry_cid) + issued + original_cid


def check_token(key: bytes, token: bytes, *, address: str, retry_cid: bytes, now: float) -> bytes | None:
    """The original connection id, or None for a token that is forged, old, or of another address."""
    mac, issued, original_cid = token[:_MAC_BYTES], token[_MAC_BYTES:][:_TIME_BYTES], token[_MAC_BYTES + _TIME_BYTES :]
    if not hmac.compare_digest(mac, _mac(key, issued, original_cid, address, retry_cid)):
        return None
    age_s = now - int.from_bytes(issued, "big") / 1000
    return original_cid if age_s <= LIFETIME_S else None


def _mac(key: bytes, issued: bytes, original_cid: bytes, address: str, retry_cid: bytes) -> bytes:
    parts = (issued, original_cid, address.encode(), retry_cid)
    text = b"".join(len(part).to_bytes(2, "big") + part for part in parts)
    return hmac.digest(key, text, hashlib.sha256)[:_MAC_BYTES]
