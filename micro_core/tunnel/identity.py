"""The identity of a node (an Ed25519 key in a file) and the secret of its network (a token in another file).

The node id is a hash of the public key, so a node cannot claim the id of another node without its key.
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
        """Return a new random identity."""
        return cls.from_private_bytes(Ed25519PrivateKey.generate().private_bytes_raw())

    @classmethod
    def from_private_bytes(cls, raw: bytes) -> NodeIdentity:
        """Return the identity for a private key of 32 bytes. Raises ValueError for another length."""
        private = Ed25519PrivateKey.from_private_bytes(raw)
        public = private.public_key().public_bytes_raw()
        return cls(private, public, node_id_of(public))

    @classmethod
    def load_or_create(cls, path: Path) -> NodeIdentity:
        """Return the identity stored in `path`; create the file if it does not exist.

        Raises ConfigError when the file is readable by other users, does not contain a key, or cannot be written.
        """
        raw = _load_or_create(path, lambda: Ed25519PrivateKey.generate().private_bytes_raw().hex())
        try:
            return cls.from_private_bytes(bytes.fromhex(raw))
        except ValueError as error:
            raise ConfigError(
                f"{path} does not contain a node key", hint="remove the file; the node then gets a new id"
            ) from error

    def sign(self, data: bytes) -> bytes:
        """Return the signature of `data`, 64 bytes."""
        return self.private_key.sign(data)


def node_id_of(public_bytes: bytes) -> str:
    """Return the id of the node with this public key."""
    return base64.b32encode(hashlib.sha256(public_bytes).digest()[:20]).decode().lower()


def is_signed_by(public_bytes: bytes, signature: bytes, data: bytes) -> bool:
    """Return whether `signature` is a valid signature of `data` by the key of `public_bytes`."""
    if len(public_bytes) != PUBLIC_KEY_BYTES or len(signature) != SIGNATURE_BYTES:
        return False
    try:
        Ed25519PublicKey.from_public_bytes(public_bytes).verify(signature, data)
    except (InvalidSignature, ValueError):
        return False
    return True


def load_or_create_token(path: Path) -> str:
    """Return the token stored in `path`; create the file with a random token if it does not exist.

    Raises ConfigError when the file is readable by other users, is empty, or cannot be read or written.
    """
    return _load_or_create(path, lambda: secrets.token_urlsafe(TOKEN_BYTES))


def load_token(path: Path) -> str:
    """Return the token in a file that the user provides. Raises ConfigError when it is missing, empty or not private."""
    try:
        return _read_secret(path)
    except FileNotFoundError:
        raise ConfigError(
            f"the token file {path} does not exist",
            hint="print the token with `micro network token` on a node of the network",
        ) from None


def next_incarnation(path: Path, wall_ms: int) -> int:
    """Return the incarnation of a node at its start: `wall_ms` (wall-clock milliseconds), or the previous one plus 1.

    The incarnation is stored in `path`, because what a node sends after a restart must be newer than what it sent
    before, even if its clock was set back. An unreadable file is ignored. Raises ConfigError when `path` cannot be
    written.
    """
    previous = 0
    try:
        with path.open(encoding="ascii") as file:
            text = file.read(32).strip()
        previous = int(text) if text.isdigit() else 0
    except (OSError, UnicodeDecodeError):
        pass
    number = max(wall_ms, previous + 1)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        temporary.write_text(f"{number}\n", encoding="ascii")
        temporary.replace(path)
    except OSError as error:
        raise _unwritable(path, error) from error
    return number


def membership_proof(network: str, token: str, transcript: bytes) -> bytes:
    """Return the proof that the sender knows the token of the network: HMAC-SHA256 (RFC 2104) over `transcript`."""
    key = hashlib.sha256(b"micro network token\0" + network.encode() + b"\0" + token.encode()).digest()
    return hmac.digest(key, transcript, "sha256")


def is_member(network: str, token: str, transcript: bytes, proof: bytes) -> bool:
    """Return whether a peer's proof of membership is valid. The comparison takes constant time."""
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
    return ConfigError(f"cannot write {path}: {error.strerror}", hint="set MICRO_STATE_DIR to a writable directory")


def _create(path: Path, make: Callable[[], str]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(make())
            file.flush()
            os.fsync(file.fileno())
        # Creating a hard link fails if the file exists, so two processes that race end up with the same secret.
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
            raise ConfigError(f"{path} is readable by other users", hint=f"chmod 600 {path}")
        try:
            secret = file.read(MAX_SECRET_FILE_BYTES).strip()
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path} is not a text file", hint="check the path") from error
    if not secret:
        # An empty token would be known to everybody.
        raise ConfigError(f"{path} is empty", hint="remove the file, or write the secret to it")
    return secret
