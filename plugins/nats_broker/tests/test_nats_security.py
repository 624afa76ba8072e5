"""Authentication in both directions, with real servers that require passwords, keys and certificates."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import datetime as dt
import hashlib
import ipaddress
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nkeys
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from micro_core.contract import OptionError, Unauthorized

NOW = dt.datetime.now(dt.UTC)

CA_KEY_USAGE = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)


class Authority:
    """Issues certificates for tests."""

    def __init__(self, directory: Path, name: str) -> None:
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.certificate = (
            self._builder(self._name, self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
            # Python 3.13 accepts only authorities with this extension (RFC 5280 section 4.2.1.3).
            .add_extension(CA_KEY_USAGE, critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.ca_file = directory / f"{name}.pem"
        self.ca_file.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))

    def issue(self, name: str, *hosts: str) -> tuple[Path, Path]:
        """Issue a certificate for `hosts`; return the paths of the certificate and the key."""
        key = ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = []
        for host in hosts:
            try:
                names.append(x509.IPAddress(ipaddress.ip_address(host)))
            except ValueError:
                names.append(x509.DNSName(host))
        certificate = (
            self._builder(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]), key.public_key())
            .add_extension(x509.SubjectAlternativeName(names or [x509.DNSName(name)]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        paths = self._directory / f"{name}.crt", self._directory / f"{name}.key"
        paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        paths[1].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return paths

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - dt.timedelta(days=1))
            .not_valid_after(NOW + dt.timedelta(days=1))
        )


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"), "authority")


def tls_config(authority: Authority, *, verify: bool = False) -> str:
    certificate, key = authority.issue("server", "127.0.0.1", "nats.example.org")
    client_option = f'ca_file: "{authority.ca_file}"\n verify: true' if verify else ""
    return f'tls {{ cert_file: "{certificate}"\n key_file: "{key}"\n timeout: 5\n {client_option} }}\n'


def tls_url(server: Any) -> str:
    return f"tls://127.0.0.1:{server.port}"


async def check_delivery(site: Any, broker: Any) -> None:
    handler = site.handler()
    await broker.subscribe("orders", handler)
    await broker.publish("orders", site.message(1))
    await site.until(lambda: handler.messages)


# -------------------------------------------------------------------------------------- passwords

USERS = 'authorization { user: "eu", password: "r1ght p@ss/phrase" }\n'


async def test_user_and_password_are_accepted(site: Any, start_server: Callable[..., Any]) -> None:
    await check_delivery(site, await site.broker(start_server(config=USERS), user="eu", password="r1ght p@ss/phrase"))


@pytest.mark.parametrize("options", [{}, {"user": "eu", "password": "wr0ng"}, {"token": "wr0ng"}])
async def test_wrong_credentials_fail_the_start(
    site: Any, start_server: Callable[..., Any], options: dict[str, str]
) -> None:
    server = start_server(config=USERS)
    with pytest.raises(Unauthorized, match="Authorization Violation") as caught:
        await site.broker(server, **options)
    assert "wr0ng" not in str(caught.value)


async def test_token_is_accepted(site: Any, start_server: Callable[..., Any]) -> None:
    await check_delivery(
        site, await site.broker(start_server(config='authorization { token: "t0ken" }\n'), token="t0ken")
    )


async def test_password_that_becomes_wrong_is_retried_until_it_is_accepted(
    site: Any, start_server: Callable[..., Any]
) -> None:
    server = start_server(config=USERS)
    broker, handler = await site.broker(server, user="eu", password="r1ght p@ss/phrase"), site.handler()
    await broker.subscribe("orders", handler)
    config = server._config.read_text()
    server.kill()
    server._config.write_text(config.replace("r1ght", "other"))
    server.start()
    await site.until(lambda: isinstance(broker._connection._failure, Unauthorized))
    server.kill()
    server._config.write_text(config)
    server.start()
    await site.until_connected(broker)
    await broker.publish("orders", site.message(1))
    await site.until(lambda: handler.messages)


# ------------------------------------------------------------------------------------------- keys


def key_pair(prefix: int) -> tuple[bytes, nkeys.KeyPair]:
    seed = nkeys.encode_seed(hashlib.sha256(b"%d %d" % (prefix, time.monotonic_ns())).digest(), prefix)
    return seed, nkeys.from_seed(bytearray(seed))


async def test_nkey_is_accepted(site: Any, start_server: Callable[..., Any]) -> None:
    seed, pair = key_pair(nkeys.PREFIX_BYTE_USER)
    server = start_server(config=f'authorization {{ users: [ {{ nkey: "{pair.public_key.decode()}" }} ] }}\n')
    await check_delivery(site, await site.broker(server, nkey_seed=seed.decode() + "\n"))
    other, _ = key_pair(nkeys.PREFIX_BYTE_USER)
    with pytest.raises(Unauthorized):
        await site.broker(server, nkey_seed=other.decode())


def signed_jwt(claims: dict[str, Any], by: nkeys.KeyPair, subject: str) -> str:
    """Return a NATS JWT, signed with the nkey of the issuer (Ed25519)."""

    def encode(content: bytes) -> str:
        return base64.urlsafe_b64encode(content).rstrip(b"=").decode()

    body = {"iat": int(time.time()), "iss": by.public_key.decode(), "sub": subject, **claims}
    body["jti"] = base64.b32encode(hashlib.sha256(json.dumps(body).encode()).digest()).rstrip(b"=").decode()
    header = encode(b'{"typ":"JWT","alg":"ed25519-nkey"}')
    signed = f"{header}.{encode(json.dumps(body).encode())}"
    return f"{signed}.{encode(bytes(by.sign(signed.encode())))}"


async def test_credentials_file_is_accepted(site: Any, start_server: Callable[..., Any], tmp_path: Path) -> None:
    _, operator = key_pair(nkeys.PREFIX_BYTE_OPERATOR)
    _, account = key_pair(nkeys.PREFIX_BYTE_ACCOUNT)
    seed, user = key_pair(nkeys.PREFIX_BYTE_USER)
    operator_id, account_id, user_id = (pair.public_key.decode() for pair in (operator, account, user))
    unlimited = dict.fromkeys(("subs", "data", "payload", "conn", "leaf", "imports", "exports"), -1)
    operator_jwt = signed_jwt({"name": "op", "nats": {"type": "operator", "version": 2}}, operator, operator_id)
    account_jwt = signed_jwt(
        {"name": "acc", "nats": {"type": "account", "version": 2, "limits": {**unlimited, "wildcards": True}}},
        operator,
        account_id,
    )
    limits = {"subs": -1, "data": -1, "payload": -1}
    user_jwt = signed_jwt(
        {"name": "user", "nats": {"type": "user", "version": 2, "pub": {}, "sub": {}, **limits}}, account, user_id
    )
    creds = tmp_path / "user.creds"
    creds.write_text(
        f"-----BEGIN NATS USER JWT-----\n{user_jwt}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{seed.decode()}\n------END USER NKEY SEED------\n"
    )
    server = start_server(
        config=f'operator: "{operator_jwt}"\nresolver: MEMORY\nresolver_preload: {{ {account_id}: "{account_jwt}" }}\n'
    )
    await check_delivery(site, await site.broker(server, creds_file=str(creds)))
    with pytest.raises(Unauthorized):
        await site.broker(server)


# -------------------------------------------------------------------------------------------- TLS


async def test_tls_with_a_private_authority_is_accepted(
    site: Any, start_server: Callable[..., Any], authority: Authority
) -> None:
    server = start_server(config=tls_config(authority) + USERS)
    broker = await site.broker(
        url=(tls_url(server),), tls_ca_file=str(authority.ca_file), user="eu", password="r1ght p@ss/phrase"
    )
    await check_delivery(site, broker)
    await site.until(lambda: broker._connection.session.client.nats_transport._is_encrypted)


async def test_server_certificate_of_an_unknown_authority_is_rejected(
    site: Any, start_server: Callable[..., Any], authority: Authority, tmp_path: Path
) -> None:
    server = start_server(config=tls_config(authority))
    with pytest.raises(Unauthorized, match="certificate"):
        await site.broker(url=(tls_url(server),))
    with pytest.raises(Unauthorized, match="certificate"):
        await site.broker(url=(tls_url(server),), tls_ca_file=str(Authority(tmp_path, "other").ca_file))


async def test_server_certificate_must_contain_the_host_name(
    site: Any, start_server: Callable[..., Any], authority: Authority
) -> None:
    server = start_server(config=tls_config(authority))
    options = {"url": (tls_url(server),), "tls_ca_file": str(authority.ca_file)}
    with pytest.raises(Unauthorized, match="certificate"):
        await site.broker(**options, tls_hostname="elsewhere.example.org")
    await check_delivery(site, await site.broker(**options, tls_hostname="nats.example.org"))


async def test_client_certificate_is_sent_if_the_server_requires_one(
    site: Any, start_server: Callable[..., Any], authority: Authority
) -> None:
    server = start_server(config=tls_config(authority, verify=True))
    options = {"url": (tls_url(server),), "tls_ca_file": str(authority.ca_file)}
    certificate, key = authority.issue("client")
    await check_delivery(site, await site.broker(**options, tls_cert_file=str(certificate), tls_key_file=str(key)))
    # In TLS 1.3 the server refuses after the handshake: the client receives an alert, or only the end of the connection.
    with contextlib.suppress(Unauthorized):
        broker = await site.broker(**options, subscribe_timeout_s=0.3)
        assert broker._connection.session is None


async def test_tls_url_never_falls_back_to_plain_text(site: Any) -> None:
    """A machine in the middle may answer in plain text that the server does not support TLS."""
    received = bytearray()

    async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"server_id":"x","version":"2.15.1","max_payload":1048576,"headers":true,"proto":1}\r\n')
        while data := await reader.read(4096):
            received.extend(data)
        writer.close()

    interceptor = await asyncio.start_server(accepted, "127.0.0.1", 0)
    port = interceptor.sockets[0].getsockname()[1]
    with pytest.raises(Unauthorized, match="does not support TLS"):
        await site.broker(url=(f"tls://127.0.0.1:{port}",), user="eu", password="s3cret", connect_timeout_s=1.0)
    interceptor.close()
    await interceptor.wait_closed()
    assert bytes(received) == b""


async def test_url_with_a_password_is_rejected(site: Any) -> None:
    with pytest.raises(OptionError, match="must not contain"):
        await site.broker(url=("nats://eu:s3cret@127.0.0.1:4222",))
