"""One document by HTTP/1.1 (RFC 9110, RFC 9112): bounded in time, size and redirects, and kept out of private networks.

Parsing is the h11 library's; the sockets and TLS are asyncio's. The address that was checked is the address that is
connected to, so a name that changes its mind in between (DNS rebinding) gains nothing.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import ssl
from dataclasses import dataclass
from urllib.parse import SplitResult, urljoin, urlsplit

import h11

from micro_core.contract import Forbidden, Malformed, TooLarge, Unreachable

MAX_HEAD_BYTES = 32_768
"""Longest status line and headers together."""

MAX_ADDRESSES_TRIED = 4
"""Addresses of one host tried in turn."""

MAX_AGE_S = 86_400.0

_CHUNK_BYTES = 16_384
_REDIRECTS = (301, 302, 303, 307, 308)
_MAX_AGE = re.compile(r"(?:^|[,\s])max-age\s*=\s*\"?(\d{1,9})", re.IGNORECASE)
_NO_STORE = re.compile(r"(?:^|[,\s])no-(?:store|cache)(?:$|[,\s])", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What a fetch may do."""

    token: str
    max_bytes: int
    max_redirects: int
    allow_private: bool
    tls: ssl.SSLContext


@dataclass(frozen=True, slots=True)
class Document:
    """What was fetched; `max_age_s` is None when the server did not say."""

    body: bytes
    max_age_s: float | None


@dataclass(frozen=True, slots=True)
class _Response:
    status: int
    headers: dict[str, str]
    body: bytes


async def fetch(url: str, policy: Policy) -> Document:
    """Fetch `url`, following redirects. Raises Unreachable, Malformed, TooLarge, and Forbidden for a refused redirect.

    Sets no deadline: that is the caller's, over all of it.
    """
    origin = parse_url(url)
    may_be_private = policy.allow_private
    target = origin
    for hop in range(policy.max_redirects + 1):
        addresses = await _find_addresses(target)
        if hop == 0:
            # Whoever configures a private host means it; then redirects may stay among such hosts.
            may_be_private = may_be_private or any(_is_private(address) for address in addresses)
        elif not may_be_private and (inside := [one for one in addresses if _is_private(one)]):
            raise Forbidden(
                f"http: {origin.hostname} redirects to {target.hostname} ({inside[0]}), in a private network",
                hint="check who answers at url, or set allow_private",
            )
        response = await _request(target, addresses, policy, token=policy.token if _same_origin(origin, target) else "")
        if response.status not in _REDIRECTS:
            return _document(target, response)
        target = _redirected(origin, target, response)
    raise Unreachable(f"http: {url} redirects more than {policy.max_redirects} times")


def parse_url(url: str) -> SplitResult:
    """Split an http(s) URL; raises Malformed."""
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError as error:
        raise Malformed(f"http: {url!r:.120} is not a URL: {error}") from error
    if not valid or not url.isascii() or not url.isprintable() or " " in url or parts.username is not None:
        raise Malformed(f"http: {url!r:.120} is not an http or https URL", hint="as in https://example.org/nodes.json")
    return parts


def _document(target: SplitResult, response: _Response) -> Document:
    if response.status != 200:
        raise Unreachable(
            f"http: {target.hostname} answered {response.status}",
            hint="check url and token" if response.status in (401, 403, 404) else "",
        )
    control = response.headers.get("cache-control", "")
    if _NO_STORE.search(control):
        return Document(response.body, 0.0)
    age = _MAX_AGE.search(control)
    return Document(response.body, min(MAX_AGE_S, float(age[1])) if age else None)


def _redirected(origin: SplitResult, target: SplitResult, response: _Response) -> SplitResult:
    location = response.headers.get("location", "")
    try:
        moved = parse_url(urljoin(target.geturl(), location))
    except ValueError as error:
        raise Malformed(f"http: {target.hostname} redirects to {location!r:.120}, which is no URL") from error
    if origin.scheme == "https" and moved.scheme != "https":
        raise Forbidden(f"http: {target.hostname} redirects from https to {moved.scheme}")
    return moved


def _same_origin(one: SplitResult, other: SplitResult) -> bool:
    return (one.scheme, one.hostname, _port(one)) == (other.scheme, other.hostname, _port(other))


def _port(url: SplitResult) -> int:
    return url.port or (443 if url.scheme == "https" else 80)


def _is_private(address: str) -> bool:
    """Anything that is not an ordinary public address, also inside an IPv4-mapped, 6to4 or NAT64 one."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address):
        inner = parsed.ipv4_mapped or parsed.sixtofour
        if inner is None and parsed in ipaddress.ip_network("64:ff9b::/96"):
            inner = ipaddress.IPv4Address(int(parsed) & 0xFFFF_FFFF)
        if inner is not None:
            return not inner.is_global or inner.is_multicast
    return not parsed.is_global or parsed.is_multicast


async def _find_addresses(target: SplitResult) -> list[str]:
    assert target.hostname is not None
    try:
        found = await asyncio.get_running_loop().getaddrinfo(target.hostname, _port(target), type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise Unreachable(
            f"http: cannot find the host {target.hostname}: {error}", hint="check url, and the DNS"
        ) from error
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))[:MAX_ADDRESSES_TRIED]


async def _request(target: SplitResult, addresses: list[str], policy: Policy, *, token: str) -> _Response:
    failure: OSError | None = None
    for address in addresses:
        try:
            reader, writer = await asyncio.open_connection(
                address,
                _port(target),
                ssl=policy.tls if target.scheme == "https" else None,
                server_hostname=target.hostname if target.scheme == "https" else None,
                limit=_CHUNK_BYTES,
            )
        except OSError as error:
            failure = error
            continue
        try:
            return await _exchange(reader, writer, target, policy.max_bytes, token)
        except OSError as error:
            raise Unreachable(f"http: the connection to {target.hostname} broke: {error}") from error
        finally:
            # The body has been read or is unwanted: nobody waits for a courteous end.
            writer.transport.abort()
    raise Unreachable(
        f"http: cannot connect to {target.hostname}: {failure or 'it has no address'}",
        hint="check the certificate, or set ca_file" if isinstance(failure, ssl.SSLError) else "check url",
    ) from failure


async def _exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: SplitResult, max_bytes: int, token: str
) -> _Response:
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD_BYTES)
    headers = [
        ("Host", target.netloc.rpartition("@")[2]),
        ("User-Agent", "micro-http-resolver"),
        ("Accept", "application/json"),
        ("Accept-Encoding", "identity"),
        ("Connection", "close"),
    ]
    if token:
        headers.append(("Authorization", f"Bearer {token}"))
    path = (target.path or "/") + (f"?{target.query}" if target.query else "")
    try:
        writer.write(connection.send(h11.Request(method="GET", target=path, headers=headers)) or b"")
        writer.write(connection.send(h11.EndOfMessage()) or b"")
        return await _read_response(connection, reader, max_bytes)
    except h11.LocalProtocolError as error:
        raise Malformed(f"http: url or token cannot be sent: {error}") from error
    except h11.RemoteProtocolError as error:
        raise Malformed(f"http: {target.hostname} does not speak HTTP/1.1: {error}") from error


async def _read_response(connection: h11.Connection, reader: asyncio.StreamReader, max_bytes: int) -> _Response:
    status, headers, body = 0, {}, bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(_CHUNK_BYTES))
        elif isinstance(event, h11.Response):
            status = event.status_code
            headers = {name.decode("ascii"): value.decode("latin-1") for name, value in event.headers}
            if status != 200:
                # Bodies of redirects and errors are not wanted.
                return _Response(status, headers, b"")
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > max_bytes:
                raise TooLarge(
                    f"http: the document is over {max_bytes} bytes", hint="raise max_bytes, or list fewer nodes"
                )
        elif isinstance(event, h11.EndOfMessage):
            return _Response(status, headers, bytes(body))
        elif not isinstance(event, h11.InformationalResponse):
            raise Malformed("http: the server ended before it answered")
