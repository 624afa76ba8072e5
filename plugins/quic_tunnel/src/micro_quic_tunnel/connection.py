"""aioquic's connection, extended by values that a link needs and that aioquic does not make public.

Only this file uses private attributes of aioquic. Tests check the behaviour of each value.
"""

from __future__ import annotations

from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection, QuicConnectionState
from aioquic.quic.events import ConnectionTerminated
from cryptography import x509


class LaneConnection(QuicConnection):
    """One QUIC connection without I/O: it receives datagrams and the time, and returns the datagrams to send."""

    def __init__(
        self,
        *,
        configuration: QuicConfiguration,
        ack_delay_s: float,
        original_destination_connection_id: bytes | None = None,
        retry_source_connection_id: bytes | None = None,
    ) -> None:
        super().__init__(
            configuration=configuration,
            original_destination_connection_id=original_destination_connection_id,
            retry_source_connection_id=retry_source_connection_id,
        )
        # Delay acknowledgements so that they are sent with data. Peers expect up to 25 ms (RFC 9000 section 18.2).
        self._ack_delay = ack_delay_s

    def has_decrypted_nothing(self) -> bool:
        """Return whether no packet could be decrypted so far."""
        return self._state is QuicConnectionState.FIRSTFLIGHT

    def termination(self) -> ConnectionTerminated | None:
        """Return why the connection ends, or None. aioquic's event follows only three probe timeouts later."""
        return self._close_event

    def unsent_bytes(self, stream_id: int) -> int:
        """Return how many bytes of a stream were never sent in a packet. Lost bytes are not counted again."""
        stream = self._streams.get(stream_id)
        return 0 if stream is None else stream.sender._buffer_stop - stream.sender.highest_offset

    def has_unacknowledged(self) -> bool:
        """Return whether any stream has bytes that the peer has not acknowledged."""
        return any(stream.sender._buffer_start != stream.sender._buffer_stop for stream in self._streams.values())

    def stream_count(self) -> int:
        """Return how many streams either end has opened, including those without delivered data."""
        return len(self._streams)

    def reassembly_bytes(self, stream_id: int) -> int:
        """Return the size of a stream's reassembly buffer, which holds out-of-order data and the gaps before it."""
        stream = self._streams.get(stream_id)
        return 0 if stream is None else len(stream.receiver._buffer)

    def smoothed_rtt_s(self) -> float | None:
        """Return the smoothed round-trip time in seconds (RFC 9002 section 5.3), or None before the first sample."""
        return float(self._loss._rtt_smoothed) if self._loss._rtt_initialized else None

    def peer_certificate(self) -> x509.Certificate | None:
        """Return the certificate of the listener; None at the listener itself and before the handshake."""
        found: x509.Certificate | None = self.tls._peer_certificate
        return found
