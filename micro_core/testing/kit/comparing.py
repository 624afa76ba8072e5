"""Comparing what is too long to be shown."""

from __future__ import annotations

from micro_core.testing.kit.waiting import fail


def assert_same_bytes(found: bytes | bytearray, expected: bytes, clause: str) -> None:
    """Fails with the clause, and the place of the first difference, unless both are equal.

    No bare `assert`: where the variable `CI` is set pytest prints all that differs between long values, and for some
    hundred thousand bytes that takes minutes.
    """
    __tracebackhide__ = True
    if found == expected:
        return
    length = min(len(found), len(expected))
    place = next((at for at in range(length) if found[at] != expected[at]), length)
    fail(f"{clause}: {len(found):,} bytes of {len(expected):,}, which differ from byte {place:,} on")
