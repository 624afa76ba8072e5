"""The certificate of a listener: created at start, or read from files if the network path requires a certain one.

Peers do not verify the certificate, because names and authorities prove nothing about a node. Its hash is the channel
binding of the link. In core's handshake both nodes sign the hash with their node keys, which authenticates them.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.x509.oid import NameOID

from micro_core.contract import OptionError

NAME = "micro"

Key = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey | rsa.RSAPrivateKey
"""The types of keys with which TLS 1.3 can sign."""


def make_certificate() -> tuple[x509.Certificate, Key]:
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


def read_certificate(certificate_file: str, key_file: str) -> tuple[x509.Certificate, Key]:
    """Return the certificate and the key in two PEM files.

    Raises OptionError if a file cannot be read or if the key does not belong to the certificate.
    """
    try:
        certificate = x509.load_pem_x509_certificate(Path(certificate_file).read_bytes())
    except (OSError, ValueError) as error:
        raise OptionError(f"cannot read quic.certificate_file {certificate_file!r}: {error}") from error
    try:
        key = serialization.load_pem_private_key(Path(key_file).read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise OptionError(f"cannot read quic.key_file {key_file!r}: {error}") from error
    if not isinstance(key, Key) or key.public_key() != certificate.public_key():
        raise OptionError(f"quic.key_file {key_file!r} does not belong to the certificate")
    return certificate, key


def binding_of(certificate: x509.Certificate) -> bytes:
    """Return the SHA-256 digest of the certificate in DER (RFC 5929, `tls-server-end-point`)."""
    return hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).digest()
