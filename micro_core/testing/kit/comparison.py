"""Comparison of byte strings that are too long to be shown in a failure."""

from __future__ import annotations

from micro_core.testing.kit.waiting import fail


def assert_same_bytes(found: bytes | bytearray, expected: bytes, clause: str) -> None:
    """Fail with the violated clause and the position of the first difference, unless both values are equal.

    A plain `assert` is not used here: if the environment variable `CI` is set, pytest prints the full difference of long
    values, which takes minutes for some hundred thousand bytes.
    """
    __tracebackhide__ = True
    if found == expected:
        return
    length = min(len(found), len(expected))
    position = next((index for index in range(length) if found[index] != expected[index]), length)
    fail(
        f"{clause}: got {len(found):,} of {len(expected):,} expected bytes, and the first difference is at byte {position:,}"
    )
