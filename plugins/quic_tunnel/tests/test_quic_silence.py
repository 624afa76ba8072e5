"""The detection of a peer that acknowledges nothing, without time and without packets."""

from __future__ import annotations

import pytest
from micro_quic_tunnel.silence import MIN_SILENCE_S, SilenceDetector

RTT_S = 0.040
VARIANCE_S = 0.010


def due_at(silence: SilenceDetector) -> float | None:
    return silence.due_at(RTT_S, VARIANCE_S)


def test_traffic_that_continues_does_not_postpone_the_silence() -> None:
    silence = SilenceDetector()
    silence.packet_received(1.0)
    for number in range(1, 20):
        silence.packets_sent(1.0 + number / 10)
    assert due_at(silence) == pytest.approx(1.1 + MIN_SILENCE_S)


def test_peer_that_owes_no_answer_is_never_silent() -> None:
    silence = SilenceDetector()
    silence.packets_sent(0.5)
    assert due_at(silence) is not None
    silence.packet_received(1.0)
    # The packet that was sent before is not counted again.
    silence.packets_sent(0.5)
    assert due_at(silence) is None


def test_any_packet_ends_the_silence() -> None:
    silence = SilenceDetector()
    silence.packets_sent(1.0)
    silence.is_silent = True
    assert due_at(silence) is None, "it is reported once"
    silence.packet_received(2.0)
    assert not silence.is_silent


def test_long_path_has_three_round_trips() -> None:
    silence = SilenceDetector()
    silence.packets_sent(1.0)
    assert silence.due_at(0.4, 0.1) == pytest.approx(1.0 + 3 * 0.4 + 0.1)
