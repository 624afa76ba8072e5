"""The certificate of a listener: created at start, or read from files if the network path requires a certain one.

Peers do not verify the certificate, because names and authorities prove nothing about a node. Its hash is the channel
binding of the link. In core's handshake both nodes sign the hash with their node keys, which authenticates them.
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
"""The protocol of nodes. Browsers, scanners and proxies that terminate TLS do not offer it and are rejected."""


def listening_context(certificate_file: str, key_file: str) -> tuple[ssl.SSLContext, bytes]:
    """Return the TLS context of a listener and the channel binding of its links.

    An empty `certificate_file` creates a new certificate. Raises OptionError if the files cannot be used, ConfigError if
    OpenSSL does not support TLS 1.3.
    """
    context = _context(ssl.PROTOCOL_TLS_SERVER)
    # Without session tickets every link has a full handshake, and there is no 0-RTT.
    context.num_tickets = 0
    if certificate_file:
        return context, _load_files(context, certificate_file, key_file)
    return context, _load_new_certificate(context)


def dialling_context() -> ssl.SSLContext:
    """Return the TLS context of the dialling end, without verification: the handshake of core authenticates the nodes.

    Raises ConfigError if OpenSSL does not support TLS 1.3.
    """
    context = _context(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def binding_of(certificate_der: bytes) -> bytes:
    """Return the SHA-256 digest of the certificate in DER (RFC 5929, `tls-server-end-point`)."""
    return hashlib.sha256(certificate_der).digest()


def make_certificate() -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """Return a new self-signed certificate (ECDSA P-256) and its key."""
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
            "the OpenSSL of this Python does not support TLS 1.3", hint="use a Python built with OpenSSL 1.1.1 or newer"
        )
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols([ALPN])
    return context


def _load_new_certificate(context: ssl.SSLContext) -> bytes:
    certificate, key = make_certificate()
    # `ssl` reads certificates and keys only from files. The key is on the disk for a moment, encrypted with a password
    # that only this process knows.
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
        # The first certificate in the file is that of the listener. The others are its chain.
        certificate = x509.load_pem_x509_certificate(Path(certificate_file).read_bytes())
    except (OSError, ValueError) as error:
        raise OptionError(f"cannot read tls.certificate_file {certificate_file!r}: {error}") from error
    try:
        # The empty password prevents OpenSSL from asking for one on the terminal.
        context.load_cert_chain(certificate_file, key_file, password=lambda: "")
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error.strerror if isinstance(error, OSError) else str(error)
        raise OptionError(
            f"cannot use tls.key_file {key_file!r} with {certificate_file!r}: {reason or error}",
            hint="it must be an unencrypted PEM key that belongs to the certificate",
        ) from error
    return binding_of(certificate.public_bytes(serialization.Encoding.DER))
