"""Detects a peer from which nothing arrives although packets wait for an acknowledgement. Pure: callers pass the time.

The probe timeout of RFC 9002 cannot do it: each packet that is sent starts it again.
"""

from __future__ import annotations

MIN_SILENCE_S = 0.3
"""A peer may be busy for this time. Round trips below 100 ms do not make it shorter."""

ROUND_TRIPS = 3.0
"""An answer that takes more round trips than this is missing, and not late: the probes of QUIC are unanswered, too."""


class SilenceDetector:
    """The silence of the peer of one connection."""

    __slots__ = ("_received_at", "_since", "is_silent")

    def __init__(self) -> None:
        self.is_silent = False
        """Whether the last packets are unanswered for too long. False again with the next packet of the peer."""
        self._received_at = 0.0
        self._since: float | None = None
        """When the first packet after the last received one was sent that the peer must acknowledge."""

    def packet_received(self, now: float) -> None:
        """Account for any valid packet of the peer."""
        self._received_at = now
        self._since = None
        self.is_silent = False

    def packets_sent(self, last_sent_at: float) -> None:
        """Account for sent packets. `last_sent_at` is when the last one was sent that the peer must acknowledge."""
        if self._since is None and last_sent_at > self._received_at:
            self._since = last_sent_at

    def due_at(self, rtt_s: float, rtt_variance_s: float) -> float | None:
        """Return when the peer becomes silent unless a packet arrives. None if it owes no answer, or is silent already."""
        if self._since is None or self.is_silent:
            return None
        return self._since + max(MIN_SILENCE_S, ROUND_TRIPS * rtt_s + rtt_variance_s)
