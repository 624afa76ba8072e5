"""aioquic's connection, and the few figures of it that a link needs and that it keeps to itself.

Whatever is not public in aioquic is touched in this file and nowhere else; tests pin each figure by its behaviour.
"""

from __future__ import annotations

from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection, QuicConnectionState
from aioquic.quic.events import ConnectionTerminated
from cryptography import x509


class LaneConnection(QuicConnection):
    """One connection; pure protocol: it is fed datagrams and time, and asked for datagrams."""

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
        # Acknowledgements may wait for data to travel with: the peer expects up to 25 ms (RFC 9000 section 18.2).
        self._ack_delay = ack_delay_s

    def has_understood_nothing(self) -> bool:
        """Whether no packet yet could be decrypted: what came was no handshake."""
        return self._state is QuicConnectionState.FIRSTFLIGHT

    def termination(self) -> ConnectionTerminated | None:
        """Why the connection is over, as soon as it is known; the event follows three probe timeouts later."""
        return self._close_event

    def unsent_bytes(self, stream_id: int) -> int:
        """Bytes written to a stream that were in no packet yet. Those to be sent again are not counted."""
        stream = self._streams.get(stream_id)
        return 0 if stream is None else stream.sender._buffer_stop - stream.sender.highest_offset

    def has_unacknowledged(self) -> bool:
        """Whether any stream holds bytes that the peer has not acknowledged."""
        return any(stream.sender._buffer_start != stream.sender._buffer_stop for stream in self._streams.values())

    def stream_count(self) -> int:
        """Streams that either side has opened, even where nothing could be delivered of them yet."""
        return len(self._streams)

    def held_bytes(self, stream_id: int) -> int:
        """Room taken by what arrived behind a gap, the gap included."""
        stream = self._streams.get(stream_id)
        return 0 if stream is None else len(stream.receiver._buffer)

    def smoothed_rtt_s(self) -> float | None:
        """RFC 9002 section 5.3, in seconds, or None before the first sample."""
        return float(self._loss._rtt_smoothed) if self._loss._rtt_initialized else None

    def peer_certificate(self) -> x509.Certificate | None:
        """The certificate that the other end has shown; None at a server, and before the handshake."""
        found: x509.Certificate | None = self.tls._peer_certificate
        return found
