"""Authentication: passwords, ACL users and TLS, and the errors for refused logins."""

from __future__ import annotations

import datetime as dt
import ipaddress
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from micro_core.contract import Forbidden, Instance, MicroError, OptionError, Unauthorized, Unreachable

if TYPE_CHECKING:
    from plugins.redis_registry.tests.conftest import (
        MakeRelay,
        MakeServer,
        OpenRegistry,
        OpenWatch,
        RedisServer,
        RegistryUnderTest,
    )

MakeInstance = Callable[..., Instance]
Until = Callable[..., Awaitable[None]]

README = Path(__file__).parents[1] / "README.md"
COMMANDS = "+@read +@write +@pubsub +@connection +eval +evalsha +time"


async def error_of_start(open_registry: OpenRegistry, url: str, **options: str) -> MicroError:
    opened = await open_registry(url, start=False, **options)
    with pytest.raises(MicroError) as caught:
        await opened.registry.start()
    return caught.value


async def check_registry(opened: RegistryUnderTest, open_watch: OpenWatch, wait_until: Until, record: Instance) -> None:
    watch = await open_watch(opened)
    await opened.registry.register(record, lease_s=0.4)
    await wait_until(
        lambda: watch.of(record.id) == ["created", "deleted"], "the record is created and expires with its lease"
    )


async def test_wrong_or_missing_password_fails_at_start_and_is_never_shown(
    open_registry: OpenRegistry, make_server: MakeServer
) -> None:
    server = await make_server(password="right").start()
    for options in ({}, {"password": "wrong"}, {"username": "unknown", "password": "wrong"}):
        error = await error_of_start(open_registry, server.url, **options)
        assert isinstance(error, Unauthorized)
        assert "redis.password" in error.hint
        assert "wrong" not in str(error).replace("wrong number", "")
    error = await error_of_start(open_registry, f"redis://:wrong@127.0.0.1:{server.port}")
    assert isinstance(error, Unauthorized)
    assert "wrong@" not in str(error)


async def test_password_is_read_from_the_option_the_url_or_a_file_that_may_change(
    open_registry: OpenRegistry, make_server: MakeServer, make_instance: MakeInstance, tmp_path: Path
) -> None:
    server = await make_server(password="p@ss word").start()
    await open_registry(server.url, password="p@ss word")
    await open_registry(f"redis://:p%40ss%20word@127.0.0.1:{server.port}/0")
    file = tmp_path / "password"
    file.write_text("p@ss word\n")
    opened = await open_registry(server.url, password_file=str(file))
    await opened.registry.register(make_instance(), lease_s=60)
    await server.client.config_set("requirepass", "new")
    await server.command("AUTH", "new")
    file.write_text("new")
    await server.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    assert await opened.registry.instances() == [make_instance()]
    file.unlink()
    await server.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    with pytest.raises(Unreachable, match="password file"):
        await opened.registry.instances()
    file.write_text("new")


@pytest.mark.parametrize("flags", ["", "Kgxe"], ids=["own-channel", "keyspace"])
async def test_permissions_listed_in_the_readme_suffice_without_config(
    open_registry: OpenRegistry,
    open_watch: OpenWatch,
    make_server: MakeServer,
    make_instance: MakeInstance,
    wait_until: Until,
    flags: str,
) -> None:
    assert COMMANDS in README.read_text()
    server = await make_server("--notify-keyspace-events", flags).start(
        f"all on >pw ~micro:* &* {COMMANDS}", f"ours on >pw ~micro:* resetchannels &micro:* {COMMANDS}"
    )
    opened = await open_registry(server.url, username="all", password="pw")
    await check_registry(opened, open_watch, wait_until, make_instance())
    assert opened.count_logged("keyspace notifications are enabled") == (1 if flags else 0), "detected without CONFIG"
    assert opened.count_logged("notifications are disabled") == (0 if flags else 1)
    # Without permission for notifications, the registry works without them.
    other = await open_registry(server.url, username="ours", password="pw")
    await check_registry(other, open_watch, wait_until, make_instance())
    assert other.count_logged("notifications are disabled") == 1
    assert await server.client.keys("*probe*") == []


async def test_missing_permissions_are_named(
    open_registry: OpenRegistry, make_server: MakeServer, make_instance: MakeInstance
) -> None:
    server = await make_server().start(
        "scriptless on >pw ~* &* +@all -@scripting",
        "elsewhere on >pw ~other:* &* +@all",
        "readonly on >pw ~* &* +@read +@connection +eval +evalsha +time",
        f"deaf on >pw ~* resetchannels &other:* {COMMANDS}",
    )
    for user in ("scriptless", "elsewhere"):
        error = await error_of_start(open_registry, server.url, username=user, password="pw")
        assert isinstance(error, Forbidden), user
        assert "+evalsha" in error.hint
    opened = await open_registry(server.url, username="readonly", password="pw")
    assert await opened.registry.instances() == []
    with pytest.raises(Forbidden):
        await opened.registry.register(make_instance(), lease_s=1)
    deaf = await open_registry(server.url, username="deaf", password="pw")
    with pytest.raises(Forbidden):
        await deaf.registry.watch()


@pytest.mark.parametrize(
    "options",
    [
        {"password": "a", "password_file": "b"},
        {"username": "a"},
        {"ca_file": "ca.pem"},
        {"url": "rediss://h", "ca_file": "/nonexistent/ca.pem"},
        {"prefix": "a{b}"},
        {"namespace": "a b"},
        {"timeout_s": 0.0},
        {"keyspace_events": "perhaps"},
    ],
)
async def test_invalid_options_are_rejected(open_registry: OpenRegistry, options: dict[str, str]) -> None:
    url = options.pop("url", "redis://127.0.0.1:1")
    with pytest.raises(OptionError):
        await open_registry(url, start=False, **options)


# ---------------------------------------------------------------------------------------------- TLS


def certificate(directory: Path, name: str, address: str) -> tuple[Path, Path]:
    """Create a self-signed certificate for `address` and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    shown, secret = directory / f"{name}.pem", directory / f"{name}.key"
    shown.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return shown, secret


async def test_tls_certificates_are_verified_in_both_directions(
    open_registry: OpenRegistry,
    open_watch: OpenWatch,
    redis_server: RedisServer,
    make_relay: MakeRelay,
    make_instance: MakeInstance,
    wait_until: Until,
    tmp_path: Path,
) -> None:
    server_certificate, server_key = certificate(tmp_path, "server", "127.0.0.1")
    client_certificate, client_key = certificate(tmp_path, "client", "127.0.0.1")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(client_certificate))
    context.load_cert_chain(server_certificate, server_key)
    relay = await make_relay(redis_server.port, tls=context)
    url = f"rediss://127.0.0.1:{relay.port}"
    opened = await open_registry(url, ca_file=str(server_certificate))
    await check_registry(opened, open_watch, wait_until, make_instance())

    error = await error_of_start(open_registry, url)
    assert isinstance(error, Unreachable)
    assert "redis.ca_file" in error.hint
    error = await error_of_start(open_registry, f"rediss://127.0.0.1:{redis_server.port}", timeout_s=1.0)  # type: ignore[arg-type]
    assert isinstance(error, Unreachable)
    elsewhere, _ = certificate(tmp_path, "elsewhere", "127.0.0.2")
    assert isinstance(await error_of_start(open_registry, url, ca_file=str(elsewhere)), Unreachable)

    context.verify_mode = ssl.CERT_REQUIRED
    assert isinstance(await error_of_start(open_registry, url, ca_file=str(server_certificate)), Unreachable)
    client_files = {"cert_file": str(client_certificate), "key_file": str(client_key)}
    await check_registry(
        await open_registry(url, ca_file=str(server_certificate), **client_files),
        open_watch,
        wait_until,
        make_instance("2"),
    )
