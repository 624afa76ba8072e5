"""One end of a TLS connection without I/O.

`receive_data` takes received bytes and returns the decrypted ones. `data_to_send` returns the bytes to send, including
handshake messages.
"""

from __future__ import annotations

import enum
import ssl

from micro_core.contract import LinkLost
from micro_tls_tunnel.certificate import ALPN

MAX_RECORD_BYTES = 16 * 1024
"""Maximum number of decrypted bytes in a record (RFC 8446 section 5.1)."""


class PipeState(enum.Enum):
    """The state of a connection."""

    HANDSHAKING = "handshaking"
    UP = "up"
    ENDED = "ended"
    """The peer sent close_notify, so no more data will arrive."""
    FAILED = "failed"
    """Final, after a violation of the protocol. At most an alert remains to be sent."""


class TlsPipe:
    """One end of a TLS connection. After a violation of the protocol its state is FAILED, and `error` has the reason."""

    def __init__(self, context: ssl.SSLContext, *, dialed: bool, server_name: str | None = None) -> None:
        self.state = PipeState.HANDSHAKING
        self.error: LinkLost | None = None
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._incoming, self._outgoing, server_side=not dialed, server_hostname=server_name
        )

    def start_handshake(self) -> None:
        """Start the handshake as the dialling end. Raises LinkLost if TLS fails."""
        self._continue_handshake()

    def receive_data(self, data: bytes | memoryview) -> bytes:
        """Process received bytes and return the decrypted data of all complete records.

        Raises LinkLost if the bytes violate the protocol and there is no data before the violation.
        """
        if self.state in (PipeState.ENDED, PipeState.FAILED):
            return b""
        self._incoming.write(data)
        if self.state is PipeState.HANDSHAKING:
            self._continue_handshake()
            if self.state is PipeState.HANDSHAKING:
                return b""
        return self._read()

    def write(self, data: bytes) -> None:
        """Encrypt data for `data_to_send`. The state must be UP. Raises LinkLost if TLS fails."""
        remaining = memoryview(data)
        try:
            while remaining:
                remaining = remaining[self._tls.write(remaining) :]
        except ssl.SSLError as error:
            raise self._fail(error) from error

    def close(self) -> None:
        """Queue close_notify if the handshake is complete."""
        if self.state not in (PipeState.UP, PipeState.ENDED):
            return
        try:
            self._tls.unwrap()
        except ssl.SSLWantReadError:
            # close_notify is queued. That of the peer is not awaited here.
            pass
        except ssl.SSLError as error:
            # In this state nothing can be sent, and close_notify is not needed.
            self._fail(error)

    def data_to_send(self) -> bytes:
        """Remove and return the bytes to send."""
        return self._outgoing.read() if self._outgoing.pending else b""

    def peer_certificate(self) -> bytes | None:
        """Return the certificate of the listener in DER; None at the listener itself and before the handshake."""
        return self._tls.getpeercert(binary_form=True)

    # ---------------------------------------------------------------- internal

    def _continue_handshake(self) -> None:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return
        except ssl.SSLError as error:
            raise self._fail(error) from error
        if self._tls.selected_alpn_protocol() != ALPN:
            self.state = PipeState.FAILED
            self.error = LinkLost(
                f"the peer uses TLS without the protocol {ALPN}: it is not a node, or a proxy terminates TLS"
            )
            raise self.error
        self.state = PipeState.UP

    def _read(self) -> bytes:
        chunks: list[bytes] = []
        try:
            while True:
                chunk = self._tls.read(MAX_RECORD_BYTES)
                if not chunk:
                    self.state = PipeState.ENDED
                    break
                chunks.append(chunk)
                if not self._incoming.pending and not self._tls.pending():
                    # Another read would only raise SSLWantReadError.
                    break
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.state = PipeState.ENDED
        except ssl.SSLError as error:
            failure = self._fail(error)
            if not chunks:
                raise failure from error
            # Return the complete records before the violation. The caller checks the state.
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def _fail(self, error: ssl.SSLError) -> LinkLost:
        self.state = PipeState.FAILED
        reason = (error.reason or str(error)).lower().replace("_", " ")
        self.error = LinkLost(f"invalid TLS data: {reason:.200}")
        return self.error
