"""What a link may report if its protocol can: lost packets, silence of the peer, acknowledgements.

These methods are not part of `Link`, because not every driver can have them. Core checks each link for them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class ReportsLoss(Protocol):
    """A link whose protocol detects lost packets. Otherwise, core shows the share of pings that were not answered."""

    def transport_loss(self) -> float | None:
        """Return the share of sent packets that were lost, 0 to 1, averaged over about ten seconds, or None."""
        ...


class ReportsSilence(Protocol):
    """A link whose protocol acknowledges packets. Otherwise, it is suspect only when a ping is unanswered for over a second."""

    def watch_silence(self, report: Callable[[bool], None]) -> None:
        """Call `report(True)` when sent packets are unanswered for too long, and `report(False)` when anything arrives.

        Too long is about three round trips, and at least 0.3 s. A busy peer may be reported, too: the link is only
        avoided for new work. Core calls this at most once.
        """
        ...


class ReportsAcknowledgements(Protocol):
    """A link whose protocol acknowledges packets at once if it is quiet. Otherwise, each ping needs an answer of core."""

    def watch_acknowledgement(self, report: Callable[[float], None]) -> None:
        """Call `report(seconds)` once, when a packet with data that is sent from now on has been acknowledged.

        The seconds are those from sending that packet to its acknowledgement, without the time for which the peer delayed
        it on purpose. Core calls this at each ping, also before the last report.
        """
        ...
