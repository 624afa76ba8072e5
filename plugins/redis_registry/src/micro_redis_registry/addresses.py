"""Parse the URL of the options. Pure.

    redis://[user[:password]@]host[:port][/db]
    unix:///path[?db=n]
    redis+sentinel://[user[:password]@]host[:port],host[:port].../master[/db]
    redis+cluster://[user[:password]@]host[:port],host[:port]...

`rediss` in place of `redis` means TLS. User and password are percent-encoded, as in every URL.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from urllib.parse import parse_qs, unquote, urlsplit

from micro_core.contract import BadRequest, OptionError
from micro_core.contract.names import join_host_port, split_host_port

REDIS_PORT = 6379
"""Default port of a Redis server."""

SENTINEL_PORT = 26379
"""Default port of a sentinel."""

MAX_HOSTS = 64
"""Maximum number of hosts in a URL."""

_FORMS = "redis://host:port/db, redis+sentinel://host:port,host:port/master or redis+cluster://host:port,host:port"


class Layout(enum.Enum):
    """How the servers are organized."""

    SINGLE = ""
    SENTINEL = "sentinel"
    CLUSTER = "cluster"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerAddress:
    """The servers to connect to: a Unix socket (`path`) or `hosts`. `master` is the name that the sentinels monitor."""

    layout: Layout = Layout.SINGLE
    hosts: tuple[tuple[str, int], ...] = ()
    path: str = ""
    database: int = 0
    master: str = ""
    is_tls: bool = False
    username: str = ""
    password: str = field(default="", repr=False)

    def __str__(self) -> str:
        """Return the URL without user and password, for messages."""
        if self.path:
            return f"unix://{self.path}"
        scheme = ("rediss" if self.is_tls else "redis") + (f"+{self.layout.value}" if self.layout.value else "")
        hosts = ",".join(join_host_port(host, port) for host, port in self.hosts)
        tail = f"/{self.master}" if self.master else ""
        return f"{scheme}://{hosts}{tail}"


def parse_address(url: str) -> ServerAddress:
    """Parse `url`. Raises OptionError, which never quotes the URL because it may contain a password."""
    try:
        parts = urlsplit(url)
        scheme, _, suffix = parts.scheme.partition("+")
        if parts.scheme == "unix":
            query = parse_qs(parts.query, strict_parsing=bool(parts.query))
            if not parts.path or set(query) - {"db"}:
                raise _invalid("the URL of a Unix socket is unix:///path, optionally with ?db=n")
            return ServerAddress(path=unquote(parts.path), database=_database(query.get("db", ["0"])[0]))
        if scheme not in ("redis", "rediss") or suffix not in ("", "sentinel", "cluster"):
            raise _invalid("unknown scheme")
        if parts.query or parts.fragment:
            raise _invalid("text after ? or # is not allowed, use options instead")
        layout = Layout(suffix)
        login, _, listed = parts.netloc.rpartition("@")
        username, _, password = login.partition(":")
        hosts = _hosts(listed, SENTINEL_PORT if layout is Layout.SENTINEL else REDIS_PORT)
        master, database = _path(parts.path, layout)
    except ValueError as error:
        raise _invalid(str(error)) from error
    if layout is Layout.SINGLE and len(hosts) > 1:
        raise _invalid("several hosts are allowed only with redis+sentinel or redis+cluster")
    return ServerAddress(
        layout=layout,
        hosts=hosts,
        database=database,
        master=master,
        is_tls=scheme == "rediss",
        username=unquote(username),
        password=unquote(password),
    )


def _path(path: str, layout: Layout) -> tuple[str, int]:
    segments = [unquote(segment) for segment in path.split("/")[1:] if segment]
    master = ""
    if layout is Layout.SENTINEL:
        if not segments:
            raise _invalid("the name of the master is missing: redis+sentinel://host:port/name")
        master = segments.pop(0)
    if len(segments) > 1:
        raise _invalid("the path has too many segments")
    database = _database(segments[0]) if segments else 0
    if layout is Layout.CLUSTER and database:
        raise _invalid("a cluster has only database 0")
    return master, database


def _hosts(listed: str, default_port: int) -> tuple[tuple[str, int], ...]:
    entries = listed.split(",")
    if len(entries) > MAX_HOSTS:
        raise _invalid(f"more than {MAX_HOSTS} hosts")
    hosts = []
    for entry in entries:
        try:
            host, port = split_host_port(entry.strip(), default_port)
        except BadRequest as error:
            raise _invalid(error.detail) from error
        if not host or not port:
            raise _invalid("a host or port is empty")
        hosts.append((host, port))
    return tuple(hosts)


def _database(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 5:
        raise _invalid("the database is not a number")
    return int(text)


def _invalid(reason: str) -> OptionError:
    return OptionError(f"redis: invalid url: {reason}", hint=f"use {_FORMS}; rediss for TLS")
