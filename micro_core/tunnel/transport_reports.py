"""What the driver of a link reports about its transport, if it can. See `contract.transport_reports`."""

from __future__ import annotations

from collections.abc import Callable

from micro_core.contract.tunnel import Link


class TransportReports:
    """The reports of one link. What its driver cannot report is never reported."""

    __slots__ = ("_acknowledgements", "_loss", "_silence")

    def __init__(self, link: Link) -> None:
        self._loss: Callable[[], float | None] | None = getattr(link, "transport_loss", None)
        self._silence: Callable[[Callable[[bool], None]], None] | None = getattr(link, "watch_silence", None)
        self._acknowledgements: Callable[[Callable[[float], None]], None] | None = getattr(
            link, "watch_acknowledgement", None
        )

    @property
    def has_acknowledgements(self) -> bool:
        """Whether `watch_acknowledgement` leads to a report."""
        return self._acknowledgements is not None

    def loss(self, *, otherwise: float) -> float:
        """Return the share of lost packets, or `otherwise` if it is not known."""
        measured = self._loss() if self._loss is not None else None
        return otherwise if measured is None else measured

    def watch_silence(self, report: Callable[[bool], None]) -> None:
        """Call `report` when the peer becomes silent, and when it no longer is."""
        if self._silence is not None:
            self._silence(report)

    def watch_acknowledgement(self, report: Callable[[float], None]) -> None:
        """Call `report` with the round trip of the next packet."""
        if self._acknowledgements is not None:
            self._acknowledgements(report)
