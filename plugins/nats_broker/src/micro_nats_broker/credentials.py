"""Credentials and trusted certificates from options and files, checked before the first connection."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import nkeys
from nats.aio.client import RawCredentials

from micro_core.contract import OptionError
from micro_nats_broker.options import NatsOptions

MAX_FILE_BYTES = 64 * 1024
"""Maximum size of a credentials file."""
_JWT, _SEED = "-----BEGIN NATS USER JWT-----", "-----BEGIN USER NKEY SEED-----"


def check_credentials(options: NatsOptions) -> None:
    """Check that the credential options are consistent, without opening files. Raises OptionError."""
    methods = {
        "user": bool(options.user),
        "token": bool(options.token),
        "nkey_seed": bool(options.nkey_seed),
        "creds_file": bool(options.creds_file),
    }
    given = [name for name, is_given in methods.items() if is_given]
    if len(given) > 1:
        raise OptionError(f"nats: {' and '.join(given)} are set", hint="set only one of them")
    if bool(options.user) != bool(options.password):
        raise OptionError("nats: user and password must be set together", hint="set both or neither")
    if bool(options.tls_cert_file) != bool(options.tls_key_file):
        raise OptionError("nats: tls_cert_file and tls_key_file must be set together", hint="set both or neither")


class Credentials:
    """The credentials of one broker; the files are read on construction. Raises OptionError."""

    def __init__(self, options: NatsOptions) -> None:
        self._options = options
        if options.nkey_seed:
            _check_seed(options.nkey_seed.strip(), "nkey_seed")
        if options.creds_file:
            self._creds()
        wants_tls = options.tls_ca_file or options.tls_cert_file or any("tls://" in url for url in options.urls)
        # Loading the authorities of the machine takes about 20 ms.
        self._tls = self._tls_context() if wants_tls else None

    def arguments(self) -> dict[str, Any]:
        """Return the arguments for `Client.connect`. Raises OptionError if the credentials file has become invalid."""
        options = self._options
        arguments: dict[str, Any] = {"tls": self._tls}
        if options.user:
            arguments |= {"user": options.user, "password": options.password}
        elif options.token:
            arguments["token"] = options.token
        elif options.nkey_seed:
            arguments["nkeys_seed_str"] = options.nkey_seed.strip()
        elif options.creds_file:
            # Read the file for each connection, since it is replaced before the credentials expire.
            arguments["user_credentials"] = RawCredentials(self._creds())
        return arguments

    def _creds(self) -> str:
        text = _read(self._options.creds_file, "creds_file")
        lines = text.splitlines()
        for marker in (_JWT, _SEED):
            # nats-py would loop for ever if a marker is missing.
            if marker not in lines[:-1]:
                raise OptionError(
                    f"nats: creds_file: the line {marker} is missing", hint="create it with nsc generate creds"
                )
        _check_seed(lines[lines.index(_SEED) + 1].strip(), "creds_file")
        return text

    def _tls_context(self) -> ssl.SSLContext:
        options = self._options
        ca_file = _readable(options.tls_ca_file, "tls_ca_file") if options.tls_ca_file else None
        try:
            context = ssl.create_default_context(cafile=ca_file)
        except (ssl.SSLError, OSError) as error:
            raise OptionError(
                f"nats: tls_ca_file: no certificates in {options.tls_ca_file}: {error}", hint="use a PEM file"
            ) from error
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if options.tls_cert_file:
            cert_file = _readable(options.tls_cert_file, "tls_cert_file")
            key_file = _readable(options.tls_key_file, "tls_key_file")
            try:
                # An empty passphrase, so that an encrypted key does not prompt on the terminal.
                context.load_cert_chain(cert_file, key_file, password="")
            except (ssl.SSLError, OSError) as error:
                raise OptionError(
                    f"nats: tls_cert_file and tls_key_file do not match: {error}",
                    hint="use PEM files without passphrase",
                ) from error
        return context


def _check_seed(seed: str, option: str) -> None:
    try:
        pair = nkeys.from_seed(bytearray(seed.encode()))
        pair.wipe()
    except Exception as error:  # noqa: BLE001 - nkeys raises its own errors and those of base64 and binascii
        # Do not include the message of the library, which may contain the seed.
        raise OptionError(
            f"nats: {option}: invalid nkey seed ({type(error).__name__})", hint="use a seed of 58 characters, SU..."
        ) from None


def _readable(path: str, option: str) -> Path:
    found = Path(path).expanduser()
    try:
        with found.open("rb"):
            return found
    except OSError as error:
        raise OptionError(f"nats: {option}: cannot read {path}: {error}", hint="use the path of a file") from error


def _read(path: str, option: str) -> str:
    with _readable(path, option).open("rb") as file:
        content = file.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise OptionError(f"nats: {option}: {path} is larger than {MAX_FILE_BYTES} bytes", hint="check the path")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise OptionError(f"nats: {option}: {path} is not text", hint="check the path") from error
