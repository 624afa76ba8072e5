"""The HTTP resolver with real servers on 127.0.0.1."""

from __future__ import annotations

import asyncio
import datetime as dt
import http.server
import ipaddress
import json
import logging
import random
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from micro_http_resolver import create, fetching, micro_resolver
from micro_http_resolver.document import MAX_NODES, parse_nodes
from micro_http_resolver.options import HttpOptions
from micro_http_resolver.resolver import HttpResolver

from micro_core.contract import (
    Candidate,
    CountersInMemory,
    DriverContext,
    Forbidden,
    Malformed,
    MicroError,
    OptionError,
    TooLarge,
    Unreachable,
)

NODES = {
    "nodes": [{"address": "b.example:8085", "priority": 5, "weight": 2}, {"address": "192.0.2.1:8085", "priority": 1}]
}


class ManualClock:
    """A clock that the test advances."""

    def __init__(self) -> None:
        self.time = 1000.0

    def now(self) -> float:
        return self.time

    def wall(self) -> float:
        return self.time


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests.append((self.path, dict(self.headers)))
        status, headers, body = self.server.answer(self.path)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        try:
            self.wfile.write(body)
        except OSError:
            self.server.broken_writes += 1

    def log_message(self, *args: object) -> None:
        """Suppress the log of the base class."""


class Server(http.server.ThreadingHTTPServer):
    """An HTTP server; `answer` returns status, headers and body for a path."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.broken_writes = 0
        self.answer: Callable[[str], tuple[int, dict[str, str], bytes]] = lambda _: (
            200,
            {},
            json.dumps(NODES).encode(),
        )
        self.scheme = "http"

    def respond_with(
        self, document: object = None, *, body: bytes = b"", status: int = 200, cache_control: str = ""
    ) -> None:
        content = body or json.dumps(document).encode()
        headers = {"Cache-Control": cache_control} if cache_control else {}
        self.answer = lambda _: (status, headers, content)

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def url(self, path: str = "/nodes", host: str = "127.0.0.1") -> str:
        return f"{self.scheme}://{host}:{self.port}{path}"


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def context(clock: ManualClock | None = None) -> DriverContext:
    return DriverContext(
        node_id="test",
        network="go.micro",
        site="eu",
        state_dir="/nonexistent",
        clock=clock or ManualClock(),
        random=random.Random(1),
        logger=logging.getLogger("test.http"),
        counters=CountersInMemory(),
    )


async def start_resolver(options: HttpOptions, clock: ManualClock | None = None) -> HttpResolver:
    resolver = HttpResolver(options, context(clock))
    await resolver.start()
    return resolver


async def resolve(options: HttpOptions) -> list[Candidate]:
    return await (await start_resolver(options)).resolve("go.micro")


async def error_of(options: HttpOptions) -> MicroError:
    with pytest.raises(MicroError) as caught:
        await resolve(options)
    return caught.value


def test_hook_describes_the_driver_and_token_is_a_secret() -> None:
    driver = micro_resolver()
    assert (driver.name, driver.options, driver.create) == ("http", HttpOptions, create)
    assert HttpOptions.__dataclass_fields__["token"].metadata["secret"] is True
    assert isinstance(create(HttpOptions(url="http://h/"), context()), HttpResolver)


async def test_nodes_are_returned_by_priority(server: Server) -> None:
    assert await resolve(HttpOptions(url=server.url(), ttl_s=30.0)) == [
        Candidate(address="192.0.2.1:8085", priority=1, ttl_s=30.0),
        Candidate(address="b.example:8085", priority=5, weight=2, ttl_s=30.0),
    ]


async def test_network_name_is_inserted_into_url_and_token_is_sent(server: Server) -> None:
    await resolve(HttpOptions(url=server.url("/nodes?name={network}"), token="secret"))
    resolver = await start_resolver(HttpOptions(url=server.url("/nodes?name={network}")))
    await resolver.resolve("a b/c")
    assert [path for path, _ in server.requests] == ["/nodes?name=go.micro", "/nodes?name=a%20b%2Fc"]
    assert server.requests[0][1]["Authorization"] == "Bearer secret"
    assert server.requests[0][1]["Host"] == f"127.0.0.1:{server.port}"
    assert "Authorization" not in server.requests[1][1]


@pytest.mark.parametrize(
    ("cache_control", "cached_s"),
    [("", 60), ("public, max-age=300", 300), ("no-store, max-age=300", 1)],
)
async def test_document_is_cached_for_its_max_age(server: Server, cache_control: str, cached_s: float) -> None:
    server.respond_with(NODES, cache_control=cache_control)
    clock = ManualClock()
    resolver = await start_resolver(HttpOptions(url=server.url(), ttl_s=60.0), clock)
    assert {candidate.ttl_s for candidate in await resolver.resolve("go.micro")} == {cached_s}
    clock.time += cached_s - 0.5
    await asyncio.gather(*(resolver.resolve("go.micro") for _ in range(5)))
    assert len(server.requests) == 1
    clock.time += 0.5
    await asyncio.gather(*(resolver.resolve("go.micro") for _ in range(5)))
    assert len(server.requests) == 2


async def test_failure_is_not_cached(server: Server) -> None:
    server.respond_with({}, status=503)
    resolver = await start_resolver(HttpOptions(url=server.url()))
    with pytest.raises(Unreachable, match="503"):
        await resolver.resolve("go.micro")
    server.respond_with(NODES)
    assert len(await resolver.resolve("go.micro")) == 2


@pytest.mark.parametrize("status", [204, 404, 401, 500])
async def test_status_other_than_200_raises_unreachable(server: Server, status: int) -> None:
    server.respond_with(NODES, status=status)
    error = await error_of(HttpOptions(url=server.url()))
    assert isinstance(error, Unreachable)
    assert str(status) in error.detail
    assert ("token" in error.hint) == (status in (401, 404))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"<html>", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "list of nodes"),
        (b'{"nodes": {}}', "list of nodes"),
        (b'{"nodes": ["a:1"]}', r"nodes\[0\] is not an object"),
        (b'{"nodes": [{"address": "a:1"}, {"address": 7}]}', r"nodes\[1\]\.address"),
        (b'{"nodes": [{"address": ""}]}', r"nodes\[0\]\.address"),
        (b'{"nodes": [{"address": "no-port"}]}', "no valid port"),
        (b'{"nodes": [{"address": ":8085"}]}', "has no host"),
        (b'{"nodes": [{"address": "a b:8085"}]}', "has no host"),
        (b'{"nodes": [{"address": "a\\n:8085"}]}', r"nodes\[0\]\.address"),
        (b'{"nodes": [{"address": "a:1", "priority": "high"}]}', "priority"),
        (b'{"nodes": [{"address": "a:1", "priority": true}]}', "priority"),
        (b'{"nodes": [{"address": "a:1", "weight": -1}]}', "weight"),
        (json.dumps({"nodes": [{"address": "a:1"}] * (MAX_NODES + 1)}).encode(), "maximum is 256"),
    ],
)
def test_invalid_document_is_malformed_and_its_entry_is_named(body: bytes, message: str) -> None:
    with pytest.raises(Malformed, match=message):
        parse_nodes(body, ttl_s=60.0)


async def test_address_may_contain_a_tunnel_scheme(server: Server) -> None:
    server.respond_with({"nodes": [{"address": "quic://[2001:db8::1]:8085", "comment": "ignored"}]})
    assert [candidate.address for candidate in await resolve(HttpOptions(url=server.url()))] == [
        "quic://[2001:db8::1]:8085"
    ]


async def test_document_over_max_bytes_is_rejected(server: Server) -> None:
    server.respond_with(body=b" " * 5_000_000)
    assert isinstance(await error_of(HttpOptions(url=server.url(), max_bytes=10_000)), TooLarge)
    server.respond_with(body=json.dumps(NODES).encode().ljust(10_000))
    assert len(await resolve(HttpOptions(url=server.url(), max_bytes=10_000))) == 2


@pytest.fixture
async def raw_server() -> AsyncIterator[Callable[[bytes, bool], object]]:
    """Start servers that send fixed bytes, then close the connection or stay silent."""
    servers: list[asyncio.Server] = []
    writers: list[asyncio.StreamWriter] = []

    async def start(response: bytes, silent: bool) -> str:
        async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writers.append(writer)
            await reader.readuntil(b"\r\n\r\n")
            writer.write(response)
            if not silent:
                writer.close()

        server = await asyncio.start_server(respond, "127.0.0.1", 0)
        servers.append(server)
        return f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"

    yield start
    for writer in writers:
        writer.close()
    for server in servers:
        server.close()
        await server.wait_closed()


@pytest.mark.parametrize(
    "response", [b"", b"HTTP/1.1 200 OK\r\nContent-Le", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"]
)
async def test_timeout_covers_the_whole_request(raw_server: Callable[..., object], response: bytes) -> None:
    url = await raw_server(response, True)  # type: ignore[misc]  # see the fixture
    error = await error_of(HttpOptions(url=url, timeout_s=0.3))
    assert isinstance(error, Unreachable)
    assert "within 0.3 s" in error.detail


@pytest.mark.parametrize(
    ("response", "kind"),
    [
        (b"", Malformed),
        (b"SSH-2.0-OpenSSH_9.6\r\n", Malformed),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{", Malformed),
        (b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n{}", Malformed),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n{}", Malformed),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", Malformed),
    ],
)
async def test_invalid_http_response_raises_an_error(
    raw_server: Callable[..., object], response: bytes, kind: type[MicroError]
) -> None:
    url = await raw_server(response, False)  # type: ignore[misc]
    assert isinstance(await error_of(HttpOptions(url=url)), (kind, Unreachable))


async def test_chunked_and_unsized_responses_are_read(raw_server: Callable[..., object]) -> None:
    body = json.dumps(NODES).encode()
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    for response in (chunked, b"HTTP/1.0 200 OK\r\n\r\n" + body, b"HTTP/1.1 103 Early Hints\r\n\r\n" + chunked):
        url = await raw_server(response, False)  # type: ignore[misc]
        assert len(await resolve(HttpOptions(url=url))) == 2


async def test_unreachable_server_raises_unreachable(server: Server) -> None:
    server.server_close()
    error = await error_of(HttpOptions(url=server.url()))
    assert isinstance(error, Unreachable)
    assert "cannot connect to 127.0.0.1" in error.detail
    assert isinstance(await error_of(HttpOptions(url="http://nodes.invalid/")), Unreachable)


def redirect(server: Server, *locations: str) -> None:
    """Redirect the paths /0, /1, ...; answer all other paths with the nodes."""

    def answer(path: str) -> tuple[int, dict[str, str], bytes]:
        step = int(path[1:]) if path[1:].isdigit() else len(locations)
        if step < len(locations):
            return 302, {"Location": locations[step]}, b"moved"
        return 200, {}, json.dumps(NODES).encode()

    server.answer = answer


async def test_redirects_are_followed_and_token_is_sent_only_to_its_host(server: Server) -> None:
    redirect(server, "/1", server.url("/nodes", host="localhost"))
    assert len(await resolve(HttpOptions(url=server.url("/0"), token="secret"))) == 2
    assert [(path, "Authorization" in headers) for path, headers in server.requests] == [
        ("/0", True),
        ("/1", True),
        ("/nodes", False),
    ]


async def test_number_of_redirects_is_limited(server: Server) -> None:
    redirect(server, *["/0"])
    error = await error_of(HttpOptions(url=server.url("/0"), max_redirects=3))
    assert "more than 3 times" in error.detail
    assert len(server.requests) == 4


@pytest.mark.parametrize(
    "location", ["", "ftp://127.0.0.1/", "file:///etc/passwd", "http://[", "http://user:pw@127.0.0.1/"]
)
async def test_invalid_redirect_is_malformed(server: Server, location: str) -> None:
    redirect(server, location or "gopher:")
    assert isinstance(await error_of(HttpOptions(url=server.url("/0"))), Malformed)


async def test_redirect_from_public_host_to_private_network_is_forbidden(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    private = fetching._is_private
    monkeypatch.setattr(fetching, "_is_private", lambda address: address != "127.0.0.1" and private(address))
    redirect(server, server.url("/nodes", host="127.0.0.2"))
    error = await error_of(HttpOptions(url=server.url("/0")))
    assert isinstance(error, Forbidden)
    assert "127.0.0.2" in error.detail
    assert "allow_private" in error.hint
    redirect(server, "http://169.254.169.254/latest/meta-data")
    assert isinstance(await error_of(HttpOptions(url=server.url("/0"))), Forbidden)
    redirect(server, server.url("/nodes", host="127.0.0.1"))
    assert len(await resolve(HttpOptions(url=server.url("/0"), allow_private=True))) == 2


async def test_connection_goes_to_the_checked_address(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name is resolved only once per hop, so a name whose address changes is not resolved again."""
    answers = iter([["127.0.0.1"], ["192.0.2.1"]])

    async def find(target: object) -> list[str]:
        return next(answers)

    monkeypatch.setattr(fetching, "_find_addresses", find)
    assert len(await resolve(HttpOptions(url=server.url(host="rebinding.example")))) == 2
    assert next(answers) == ["192.0.2.1"]
    assert server.requests[0][1]["Host"] == f"rebinding.example:{server.port}"


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1", True),
        ("10.1.2.3", True),
        ("169.254.169.254", True),
        ("100.64.0.1", True),
        ("0.0.0.0", True),
        ("224.0.0.251", True),
        ("::1", True),
        ("fe80::1%eth0", True),
        ("fd00::1", True),
        ("::ffff:127.0.0.1", True),
        ("2002:7f00:1::", True),
        ("64:ff9b::a00:1", True),
        ("8.8.8.8", False),
        ("2606:4700::1111", False),
        ("::ffff:8.8.8.8", False),
        ("64:ff9b::808:808", False),
    ],
)
def test_private_address_is_recognized_in_every_notation(address: str, expected: bool) -> None:
    assert fetching._is_private(address) is expected


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for localhost and 127.0.0.1, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "micro test")])
    now = dt.datetime.now(dt.UTC)
    built = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + built.public_bytes(serialization.Encoding.PEM)
    )
    return path


@pytest.fixture
def tls_server(server: Server, certificate: Path) -> Server:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.scheme = "https"
    server.handle_error = lambda *args: None  # type: ignore[method-assign]  # failed handshakes are expected
    return server


async def test_https_certificate_is_verified(
    tls_server: Server, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for host in ("localhost", "127.0.0.1"):
        assert len(await resolve(HttpOptions(url=tls_server.url(host=host), ca_file=str(certificate)))) == 2
    error = await error_of(HttpOptions(url=tls_server.url()))
    assert isinstance(error, Unreachable)
    assert "ca_file" in error.hint
    assert "verify failed" in error.detail

    async def find(target: object) -> list[str]:
        return ["127.0.0.1"]

    monkeypatch.setattr(fetching, "_find_addresses", find)
    error = await error_of(HttpOptions(url=tls_server.url(host="other.example"), ca_file=str(certificate)))
    assert "other.example" in error.detail
    assert "ca_file" in error.hint, "the certificate is checked against the name, not the address"


async def test_redirect_from_https_to_http_is_forbidden(tls_server: Server, certificate: Path) -> None:
    redirect(tls_server, f"http://127.0.0.1:{tls_server.port}/nodes")
    assert isinstance(await error_of(HttpOptions(url=tls_server.url("/0"), ca_file=str(certificate))), Forbidden)


@pytest.mark.parametrize(
    "options",
    [HttpOptions(), HttpOptions(url="http://h/", token="a\r\nX: y")],
)
def test_invalid_options_are_rejected(options: HttpOptions) -> None:
    with pytest.raises(OptionError):
        HttpResolver(options, context())


@pytest.mark.parametrize("url", ["nodes.json", "ftp://h/", "http://", "http://h:x/", "http://h/a b", "http://ü/"])
def test_invalid_url_is_rejected(url: str) -> None:
    with pytest.raises(OptionError, match="URL"):
        HttpResolver(HttpOptions(url=url), context())


async def test_missing_ca_file_raises_option_error() -> None:
    with pytest.raises(OptionError, match="nonexistent"):
        await start_resolver(HttpOptions(url="https://h/", ca_file="/nonexistent.pem"))


async def test_resolver_that_is_not_started_or_closed_raises_unreachable(server: Server) -> None:
    with pytest.raises(Unreachable, match="not started"):
        await HttpResolver(HttpOptions(url=server.url()), context()).resolve("go.micro")
    resolver = await start_resolver(HttpOptions(url=server.url()))
    await resolver.close()
    await resolver.close()
    with pytest.raises(Unreachable, match="not started"):
        await resolver.resolve("go.micro")
