"""Fetch one document over HTTP/1.1 (RFC 9110, RFC 9112), with limits on size and redirects, outside private networks.

The h11 library parses the responses; asyncio provides sockets and TLS. The connection goes to exactly the address that was
checked, which prevents DNS rebinding attacks.
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
"""Maximum size of the status line and headers together."""

MAX_ADDRESSES = 4
"""Maximum number of addresses of one host that are tried, one after the other."""

MAX_AGE_S = 86_400.0
"""Longest time in seconds for which a document is cached."""

_CHUNK_BYTES = 16_384
_REDIRECTS = (301, 302, 303, 307, 308)
_MAX_AGE = re.compile(r"(?:^|[,\s])max-age\s*=\s*\"?(\d{1,9})", re.IGNORECASE)
_NO_STORE = re.compile(r"(?:^|[,\s])no-(?:store|cache)(?:$|[,\s])", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The limits and credentials of a fetch."""

    token: str
    max_bytes: int
    max_redirects: int
    allow_private: bool
    tls: ssl.SSLContext


@dataclass(frozen=True, slots=True)
class Document:
    """A fetched document; `max_age_s` is None if the server did not send it."""

    body: bytes
    max_age_s: float | None


@dataclass(frozen=True, slots=True)
class _Response:
    status: int
    headers: dict[str, str]
    body: bytes


async def fetch(url: str, policy: Policy) -> Document:
    """Fetch `url`, following redirects.

    Sets no deadline: the caller limits the total time. Raises Unreachable if no server answers or there are too many
    redirects, Malformed for an invalid URL or response, TooLarge for a document over `policy.max_bytes`, and Forbidden
    for a refused redirect.
    """
    origin = parse_url(url)
    may_be_private = policy.allow_private
    target = origin
    for hop in range(policy.max_redirects + 1):
        addresses = await _find_addresses(target)
        if hop == 0:
            # If the configured host is private, redirects to other private hosts are allowed, too.
            may_be_private = may_be_private or any(_is_private(address) for address in addresses)
        elif not may_be_private and (private := [address for address in addresses if _is_private(address)]):
            raise Forbidden(
                f"http: {origin.hostname} redirects to {target.hostname} ({private[0]}), which is in a private network",
                hint="check the server at url, or set allow_private",
            )
        response = await _request(target, addresses, policy, token=policy.token if _same_origin(origin, target) else "")
        if response.status not in _REDIRECTS:
            return _document(target, response)
        target = _redirect_target(origin, target, response)
    raise Unreachable(f"http: {url} redirects more than {policy.max_redirects} times")


def parse_url(url: str) -> SplitResult:
    """Split an http or https URL into its parts. Raises Malformed if it is invalid."""
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError as error:
        raise Malformed(f"http: {url!r:.120} is not a URL: {error}") from error
    if not valid or not url.isascii() or not url.isprintable() or " " in url or parts.username is not None:
        raise Malformed(f"http: {url!r:.120} is not an http or https URL", hint="e.g. https://example.org/nodes.json")
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


def _redirect_target(origin: SplitResult, target: SplitResult, response: _Response) -> SplitResult:
    location = response.headers.get("location", "")
    try:
        moved = parse_url(urljoin(target.geturl(), location))
    except ValueError as error:
        raise Malformed(f"http: {target.hostname} redirects to an invalid URL: {location!r:.120}") from error
    if origin.scheme == "https" and moved.scheme != "https":
        raise Forbidden(f"http: {target.hostname} redirects from https to {moved.scheme}")
    return moved


def _same_origin(first: SplitResult, second: SplitResult) -> bool:
    return (first.scheme, first.hostname, _port(first)) == (second.scheme, second.hostname, _port(second))


def _port(url: SplitResult) -> int:
    return url.port or (443 if url.scheme == "https" else 80)


def _is_private(address: str) -> bool:
    """Return whether `address` is not a public unicast address, also if embedded in IPv4-mapped, 6to4 or NAT64 form."""
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
            f"http: cannot resolve the host {target.hostname}: {error}", hint="check url and DNS"
        ) from error
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))[:MAX_ADDRESSES]


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
            raise Unreachable(f"http: lost the connection to {target.hostname}: {error}") from error
        finally:
            # The response is complete or not needed, so close the connection immediately.
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
        raise Malformed(f"http: invalid url or token: {error}") from error
    except h11.RemoteProtocolError as error:
        raise Malformed(f"http: {target.hostname} sent an invalid HTTP/1.1 response: {error}") from error


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
                # The bodies of redirects and errors are not needed.
                return _Response(status, headers, b"")
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > max_bytes:
                raise TooLarge(
                    f"http: the document is larger than {max_bytes} bytes", hint="raise max_bytes, or list fewer nodes"
                )
        elif isinstance(event, h11.EndOfMessage):
            return _Response(status, headers, bytes(body))
        elif not isinstance(event, h11.InformationalResponse):
            raise Malformed("http: the server closed the connection before sending a response")
