"""The certificate of a listener: made at start, valid for nothing.

It is not verified by anybody. Its hash is the link's channel binding, which both nodes sign with their node keys: that
is what authenticates (micro_core.tunnel.handshake).
"""

from __future__ import annotations

import datetime as dt
import hashlib

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

NAME = "micro"


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


def binding_of(certificate: x509.Certificate) -> bytes:
    """SHA-256 of the certificate in DER (RFC 5929 `tls-server-end-point`)."""
    return hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).digest()
