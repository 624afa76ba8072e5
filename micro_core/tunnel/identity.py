"""Who a node is, and what it shares with its network: an Ed25519 key in a file, and a token in another.

The node id is the hash of the public key, so nobody can claim another's id without its key.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import secrets
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from micro_core.contract.errors import ConfigError

PUBLIC_KEY_BYTES = 32
SIGNATURE_BYTES = 64
TOKEN_BYTES = 32
MAX_SECRET_FILE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class NodeIdentity:
    """A node's key pair. `node_id` is 160 bits of SHA-256 of the public key, in 32 characters of base32."""

    private_key: Ed25519PrivateKey
    public_bytes: bytes
    node_id: str

    @classmethod
    def generate(cls) -> NodeIdentity:
        return cls.from_private_bytes(Ed25519PrivateKey.generate().private_bytes_raw())

    @classmethod
    def from_private_bytes(cls, raw: bytes) -> NodeIdentity:
        private = Ed25519PrivateKey.from_private_bytes(raw)
        public = private.public_key().public_bytes_raw()
        return cls(private, public, node_id_of(public))

    @classmethod
    def load_or_create(cls, path: Path) -> NodeIdentity:
        """The identity kept in `path`, made at the first start. Raises ConfigError for a file others may read."""
        raw = _load_or_create(path, lambda: Ed25519PrivateKey.generate().private_bytes_raw().hex())
        try:
            return cls.from_private_bytes(bytes.fromhex(raw))
        except ValueError as error:
            raise ConfigError(
                f"{path} does not hold a node key", hint="remove it, and the node gets a new id"
            ) from error

    def sign(self, data: bytes) -> bytes:
        return self.private_key.sign(data)


def node_id_of(public_bytes: bytes) -> str:
    """The id of the node with this public key."""
    return base64.b32encode(hashlib.sha256(public_bytes).digest()[:20]).decode().lower()


def is_signed_by(public_bytes: bytes, signature: bytes, data: bytes) -> bool:
    """Whether `signature` over `data` was made with the key of `public_bytes`."""
    if len(public_bytes) != PUBLIC_KEY_BYTES or len(signature) != SIGNATURE_BYTES:
        return False
    try:
        Ed25519PublicKey.from_public_bytes(public_bytes).verify(signature, data)
    except (InvalidSignature, ValueError):
        return False
    return True


def load_or_create_token(path: Path) -> str:
    """The token of a network for this user on this machine, made at the first use."""
    return _load_or_create(path, lambda: secrets.token_urlsafe(TOKEN_BYTES))


def load_token(path: Path) -> str:
    """A token somebody put into a file; raises ConfigError."""
    try:
        return _read_secret(path)
    except FileNotFoundError:
        raise ConfigError(
            f"the token file {path} does not exist", hint="micro network token, where the network is"
        ) from None


def next_incarnation(path: Path, wall_ms: int) -> int:
    """The number of this life of a node: `wall_ms` (wall-clock milliseconds), or one more than the last life's.

    Kept in `path`: what a node says after a start must count for newer than what it said before, whatever became of
    its clock. A file that cannot be read counts for none.
    """
    last = 0
    try:
        with path.open(encoding="ascii") as file:
            text = file.read(32).strip()
        last = int(text) if text.isdigit() else 0
    except (OSError, UnicodeDecodeError):
        pass
    number = max(wall_ms, last + 1)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        temporary.write_text(f"{number}\n", encoding="ascii")
        temporary.replace(path)
    except OSError as error:
        raise _unwritable(path, error) from error
    return number


def membership_proof(network: str, token: str, transcript: bytes) -> bytes:
    """What shows that its maker holds the network's token: HMAC-SHA256 (RFC 2104) over `transcript`."""
    key = hashlib.sha256(b"micro network token\0" + network.encode() + b"\0" + token.encode()).digest()
    return hmac.digest(key, transcript, "sha256")


def is_member(network: str, token: str, transcript: bytes, proof: bytes) -> bool:
    """Check a peer's membership, in constant time. Certificates of membership will be checked here."""
    return hmac.compare_digest(membership_proof(network, token, transcript), proof)


def _load_or_create(path: Path, make: Callable[[], str]) -> str:
    try:
        return _read_secret(path)
    except FileNotFoundError:
        pass
    try:
        return _create(path, make)
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"cannot write {path}: {error.strerror}", hint="MICRO_STATE_DIR=... for a place that can be written"
    )


def _create(path: Path, make: Callable[[], str]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(make())
            file.flush()
            os.fsync(file.fileno())
        # A link fails where a file stands: of two processes that race, both end up with the same secret.
        os.link(temporary, path)
    except FileExistsError:
        return _read_secret(path)
    finally:
        temporary.unlink(missing_ok=True)
    return _read_secret(path)


def _opened(path: Path) -> TextIO:
    try:
        return path.open(encoding="utf-8")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error


def _read_secret(path: Path) -> str:
    with _opened(path) as file:
        mode = os.fstat(file.fileno()).st_mode
        if os.name == "posix" and stat.S_IMODE(mode) & 0o077:
            raise ConfigError(f"{path} may be read by others", hint=f"chmod 600 {path}")
        try:
            secret = file.read(MAX_SECRET_FILE_BYTES).strip()
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path} is not a text", hint="is it the right file?") from error
    if not secret:
        # An empty token would be one that everybody knows.
        raise ConfigError(f"{path} is empty", hint="remove it, or put the secret in")
    return secret
