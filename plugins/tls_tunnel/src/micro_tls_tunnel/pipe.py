"""TLS as pure protocol: fed what arrived and what is to go, asked for what to send. No socket, no clock.

One end of one connection. `receive_data` gives the plain bytes that came of it; whatever is to be sent, handshake
messages included, waits in `data_to_send`.
"""

from __future__ import annotations

import enum
import ssl

from micro_core.contract import LinkLost
from micro_tls_tunnel.certificate import ALPN

RECORD_BYTES = 16 * 1024
"""The plain bytes of a record at most (RFC 8446 section 5.1)."""


class PipeState(enum.Enum):
    """How far a connection has come."""

    HANDSHAKING = "handshaking"
    UP = "up"
    ENDED = "ended"
    """The peer has said goodbye (close_notify); nothing more will come."""
    BROKEN = "broken"
    """Final: what is to be sent is an alert at most."""


class TlsPipe:
    """One end. A violation raises LinkLost, after which the end is BROKEN; `error` then says why."""

    def __init__(self, context: ssl.SSLContext, *, dialed: bool, server_name: str | None = None) -> None:
        self.state = PipeState.HANDSHAKING
        self.error: LinkLost | None = None
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._incoming, self._outgoing, server_side=not dialed, server_hostname=server_name
        )

    def begin(self) -> None:
        """The dialling side speaks first."""
        self._shake_hands()

    def receive_data(self, data: bytes | memoryview) -> bytes:
        """Bytes off the wire; returns the plain bytes that are whole by now."""
        if self.state in (PipeState.ENDED, PipeState.BROKEN):
            return b""
        self._incoming.write(data)
        if self.state is PipeState.HANDSHAKING:
            self._shake_hands()
            if self.state is PipeState.HANDSHAKING:
                return b""
        return self._read()

    def write(self, data: bytes) -> None:
        """Plain bytes to send; only once UP."""
        left = memoryview(data)
        try:
            while left:
                left = left[self._tls.write(left) :]
        except ssl.SSLError as error:
            raise self._broken(error) from error

    def close(self) -> None:
        """Say goodbye (close_notify), if there is anybody to say it to."""
        if self.state not in (PipeState.UP, PipeState.ENDED):
            return
        try:
            self._tls.unwrap()
        except ssl.SSLWantReadError:
            # Said; the peer's own is not waited for here.
            pass
        except ssl.SSLError as error:
            # Nothing more can be said over a connection in this state, and nothing more has to be.
            self._broken(error)

    def data_to_send(self) -> bytes:
        """What is to go onto the wire now."""
        return self._outgoing.read() if self._outgoing.pending else b""

    def peer_certificate(self) -> bytes | None:
        """The certificate the other end has shown, in DER; None at a listener."""
        return self._tls.getpeercert(binary_form=True)

    # ----------------------------------------------------------------- inside

    def _shake_hands(self) -> None:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return
        except ssl.SSLError as error:
            raise self._broken(error) from error
        if self._tls.selected_alpn_protocol() != ALPN:
            self.state = PipeState.BROKEN
            self.error = LinkLost(f"it speaks TLS, but not {ALPN}: it is no node, or something between ends TLS")
            raise self.error
        self.state = PipeState.UP

    def _read(self) -> bytes:
        parts: list[bytes] = []
        try:
            while True:
                part = self._tls.read(RECORD_BYTES)
                if not part:
                    self.state = PipeState.ENDED
                    break
                parts.append(part)
                if not self._incoming.pending and not self._tls.pending():
                    # Asking once more would cost an exception to learn nothing.
                    break
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.state = PipeState.ENDED
        except ssl.SSLError as error:
            broken = self._broken(error)
            if not parts:
                raise broken from error
            # Whole records came before it, and they count: the caller sees the state.
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _broken(self, error: ssl.SSLError) -> LinkLost:
        self.state = PipeState.BROKEN
        reason = (error.reason or str(error)).lower().replace("_", " ")
        self.error = LinkLost(f"not TLS as it should be: {reason:.200}")
        return self.error
