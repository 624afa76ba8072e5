"""The certificate of a listener: made at start, or read from files where somebody on the way insists.

It is not verified by anybody, on purpose: names and authorities would prove nothing about a node. Its hash is the
link's channel binding, which both nodes sign with their node keys: that is what authenticates, in core's handshake.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import secrets
import ssl
import tempfile
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from micro_core.contract import ConfigError, OptionError

NAME = "micro"
ALPN = "micro/1"
"""Whoever does not speak this is no node: a browser, a scanner, a proxy that ends TLS."""


def listening_context(certificate_file: str, key_file: str) -> tuple[ssl.SSLContext, bytes]:
    """A context for a listener and the binding of its links; a fresh certificate where no file is named.

    Raises OptionError for files that do not fit.
    """
    context = _context(ssl.PROTOCOL_TLS_SERVER)
    # No tickets: every link has a whole handshake, and there is no 0-RTT.
    context.num_tickets = 0
    if certificate_file:
        return context, _load_files(context, certificate_file, key_file)
    return context, _load_fresh(context)


def dialling_context() -> ssl.SSLContext:
    """A context for the side that dials; the nodes' own handshake authenticates."""
    context = _context(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def binding_of(certificate_der: bytes) -> bytes:
    """SHA-256 of the certificate in DER (RFC 5929 `tls-server-end-point`)."""
    return hashlib.sha256(certificate_der).digest()


def make_certificate() -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """A fresh self-signed certificate (ECDSA P-256) and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=3650))
        .sign(key, hashes.SHA256())
    )
    return certificate, key


def _context(protocol: int) -> ssl.SSLContext:
    if not ssl.HAS_TLSv1_3:
        raise ConfigError(
            "tls: this Python's OpenSSL has no TLS 1.3", hint="use a Python built with OpenSSL 1.1.1 or newer"
        )
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols([ALPN])
    return context


def _load_fresh(context: ssl.SSLContext) -> bytes:
    certificate, key = make_certificate()
    # `ssl` reads certificates and keys from files only. What touches the disk is encrypted, for a moment, with a
    # password that only this process knows.
    password = secrets.token_bytes(32)
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(password.hex().encode()),
    )
    with tempfile.TemporaryDirectory(prefix="micro-tls-") as directory:
        path = Path(directory) / "listener.pem"
        path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM) + pem)
        context.load_cert_chain(path, password=password.hex())
    return binding_of(certificate.public_bytes(serialization.Encoding.DER))


def _load_files(context: ssl.SSLContext, certificate_file: str, key_file: str) -> bytes:
    try:
        # The first of the file is the listener's own; those after it are its chain.
        certificate = x509.load_pem_x509_certificate(Path(certificate_file).read_bytes())
    except (OSError, ValueError) as error:
        raise OptionError(f"tls.certificate_file: cannot read {certificate_file!r}: {error}") from error
    try:
        # An encrypted key would make OpenSSL ask at the terminal.
        context.load_cert_chain(certificate_file, key_file, password=lambda: "")
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error.strerror if isinstance(error, OSError) else str(error)
        raise OptionError(
            f"tls.key_file: {key_file!r} does not serve with {certificate_file!r}: {reason or error}",
            hint="an unencrypted PEM key that belongs to the certificate",
        ) from error
    return binding_of(certificate.public_bytes(serialization.Encoding.DER))
