"""The conditions of the paths of the relay, on a clock of the test."""

from __future__ import annotations

import struct
from collections.abc import Callable

from benchmarks.wan.paths import MAX_QUEUE_S, Conditions, Path, checksum, fragmentation_needed


def path(random: Callable[[], float] = lambda: 0.5, **conditions: float) -> Path:
    return Path(Conditions(**conditions), random)  # type: ignore[arg-type]


def test_packet_arrives_after_the_delay_and_a_part_of_the_jitter() -> None:
    assert path(delay_s=0.02, jitter_s=0.01).due(100, 5.0) == 5.0 + 0.02 + 0.005


def test_packets_keep_their_order_when_jitter_or_delay_shrink() -> None:
    draws = iter([1.0, 0.0])
    jittery = path(lambda: next(draws), delay_s=0.02, jitter_s=0.01)
    first, second = jittery.due(100, 0.0), jittery.due(100, 0.001)
    assert (first, second) == (0.03, 0.03)


def test_packets_do_not_wait_for_those_of_a_much_longer_delay() -> None:
    changed = path(delay_s=10.0)
    changed.due(100, 0.0)
    changed.change(Conditions(delay_s=0.02))
    assert changed.due(100, 0.1) == 0.1 + 0.02


def test_share_of_the_packets_is_lost() -> None:
    draws = iter([0.009, 0.01, 0.5])
    lossy = path(lambda: next(draws), loss=0.01)
    assert [lossy.due(100, 0.0) is None for _ in range(3)] == [True, False, False]
    assert lossy.counts["lost"] == 1


def test_rate_spaces_packets_and_drops_those_that_would_wait_too_long() -> None:
    slow = path(rate_bps=80_000)
    times = [slow.due(1_000, 0.0) for _ in range(10)]
    arrived = [moment for moment in times if moment is not None]
    assert arrived[:3] == [0.1, 0.2, 0.30000000000000004]
    assert max(arrived) <= MAX_QUEUE_S + 0.1 + 1e-9
    assert slow.counts["queue_full"] == 10 - len(arrived)


def test_cut_path_loses_everything_until_it_is_changed() -> None:
    cut = path(is_cut=True)
    assert cut.due(100, 0.0) is None
    cut.change(Conditions())
    assert cut.due(100, 0.0) == 0.0


def test_packets_above_the_mtu_are_too_large() -> None:
    narrow = path(mtu=1_280)
    assert [narrow.is_too_large(size) for size in (1_280, 1_281)] == [False, True]
    assert narrow.counts["too_large"] == 1
    assert not path().is_too_large(65_000)


def test_icmp_message_contains_the_mtu_and_the_begin_of_the_packet() -> None:
    packet = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 1_400, 7, 0x4000, 64, 17, 0, b"\x0a\x01\0\1", b"\x0a\x02\0\1")
    packet += bytes(range(8)) + b"rest"
    message = fragmentation_needed(packet, 1_280)
    assert message[12:20] == b"\x0a\x02\0\1\x0a\x01\0\1"
    assert message[20:22] == b"\x03\x04"
    assert struct.unpack("!H", message[26:28]) == (1_280,)
    assert message[28:] == packet[:28]
    # The checksum over data that contains its own checksum is 0 (RFC 1071).
    assert checksum(message[:20]) == 0
    assert checksum(message[20:]) == 0
