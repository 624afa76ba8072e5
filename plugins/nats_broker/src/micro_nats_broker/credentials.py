"""Who we are to the servers, and whom we believe: read from options and files, checked before anything is dialled."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import nkeys
from nats.aio.client import RawCredentials

from micro_core.contract import OptionError
from micro_nats_broker.options import NatsOptions

MAX_FILE_BYTES = 64 * 1024
_JWT, _SEED = "-----BEGIN NATS USER JWT-----", "-----BEGIN USER NKEY SEED-----"


def check_choice(options: NatsOptions) -> None:
    """Raise OptionError where options of who we are contradict each other; no file is opened."""
    ways = {
        "user": bool(options.user),
        "token": bool(options.token),
        "nkey_seed": bool(options.nkey_seed),
        "creds_file": bool(options.creds_file),
    }
    given = [name for name, is_given in ways.items() if is_given]
    if len(given) > 1:
        raise OptionError(f"nats: {' and '.join(given)} are given", hint="give one")
    if bool(options.user) != bool(options.password):
        raise OptionError("nats: user and password go together", hint="set both, or neither")
    if bool(options.tls_cert_file) != bool(options.tls_key_file):
        raise OptionError("nats: tls_cert_file and tls_key_file go together", hint="set both, or neither")


class Credentials:
    """Reads the files on construction; raises OptionError."""

    def __init__(self, options: NatsOptions) -> None:
        self._options = options
        if options.nkey_seed:
            _check_seed(options.nkey_seed.strip(), "nkey_seed")
        if options.creds_file:
            self._creds()
        wants_tls = options.tls_ca_file or options.tls_cert_file or any("tls://" in url for url in options.urls)
        # Reading the authorities of the machine costs some 20 ms.
        self._tls = self._tls_context() if wants_tls else None

    def arguments(self) -> dict[str, Any]:
        """Arguments of `Client.connect`. Raises OptionError when the credentials file has become unusable."""
        options = self._options
        arguments: dict[str, Any] = {"tls": self._tls}
        if options.user:
            arguments |= {"user": options.user, "password": options.password}
        elif options.token:
            arguments["token"] = options.token
        elif options.nkey_seed:
            arguments["nkeys_seed_str"] = options.nkey_seed.strip()
        elif options.creds_file:
            # Read again for each connection: such files are replaced when they are about to expire.
            arguments["user_credentials"] = RawCredentials(self._creds())
        return arguments

    def _creds(self) -> str:
        text = _read(self._options.creds_file, "creds_file")
        lines = text.splitlines()
        for mark in (_JWT, _SEED):
            # nats-py reads on for ever where a mark is missing.
            if mark not in lines[:-1]:
                raise OptionError(
                    f"nats: creds_file: there is no line {mark}", hint="nsc generate creds writes such files"
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
                f"nats: tls_ca_file: {options.tls_ca_file} holds no certificates: {error}", hint="PEM is wanted"
            ) from error
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if options.tls_cert_file:
            cert_file = _readable(options.tls_cert_file, "tls_cert_file")
            key_file = _readable(options.tls_key_file, "tls_key_file")
            try:
                # An empty passphrase: a key that wants one shall not ask the terminal.
                context.load_cert_chain(cert_file, key_file, password="")
            except (ssl.SSLError, OSError) as error:
                raise OptionError(
                    f"nats: tls_cert_file and tls_key_file do not fit: {error}", hint="PEM, without passphrase"
                ) from error
        return context


def _check_seed(seed: str, option: str) -> None:
    try:
        pair = nkeys.from_seed(bytearray(seed.encode()))
        pair.wipe()
    except Exception as error:  # noqa: BLE001 - nkeys raises of its own, of base64 and of binascii
        # Never with the seed, and the library's own message may hold it.
        raise OptionError(
            f"nats: {option}: that is not the seed of an nkey ({type(error).__name__})", hint="SU..., 58 characters"
        ) from None


def _readable(path: str, option: str) -> Path:
    found = Path(path).expanduser()
    try:
        with found.open("rb"):
            return found
    except OSError as error:
        raise OptionError(f"nats: {option}: {path} cannot be read: {error}", hint="give the path of a file") from error


def _read(path: str, option: str) -> str:
    with _readable(path, option).open("rb") as file:
        content = file.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise OptionError(f"nats: {option}: {path} is over {MAX_FILE_BYTES} bytes", hint="is it the right file?")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise OptionError(f"nats: {option}: {path} is not text", hint="is it the right file?") from error
