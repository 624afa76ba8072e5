"""The url of the options, taken apart. Pure.

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
SENTINEL_PORT = 26379

MAX_HOSTS = 64
"""Hosts of one url."""

_FORMS = "redis://host:port/db, redis+sentinel://host:port,host:port/master or redis+cluster://host:port,host:port"


class Layout(enum.Enum):
    """How the servers stand together."""

    SINGLE = ""
    SENTINEL = "sentinel"
    CLUSTER = "cluster"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerAddress:
    """Where to connect. `path` is a unix socket, `hosts` otherwise; `master` is the name Sentinel knows it by."""

    layout: Layout = Layout.SINGLE
    hosts: tuple[tuple[str, int], ...] = ()
    path: str = ""
    database: int = 0
    master: str = ""
    is_tls: bool = False
    username: str = ""
    password: str = field(default="", repr=False)

    def __str__(self) -> str:
        """For people: no user, no password."""
        if self.path:
            return f"unix://{self.path}"
        scheme = ("rediss" if self.is_tls else "redis") + (f"+{self.layout.value}" if self.layout.value else "")
        hosts = ",".join(join_host_port(host, port) for host, port in self.hosts)
        tail = f"/{self.master}" if self.master else ""
        return f"{scheme}://{hosts}{tail}"


def parse_address(url: str) -> ServerAddress:
    """Take `url` apart. Raises OptionError, which never quotes it: there may be a password in it."""
    try:
        parts = urlsplit(url)
        scheme, _, word = parts.scheme.partition("+")
        if parts.scheme == "unix":
            query = parse_qs(parts.query, strict_parsing=bool(parts.query))
            if not parts.path or set(query) - {"db"}:
                raise _wrong("a unix socket is unix:///path, perhaps with ?db=n")
            return ServerAddress(path=unquote(parts.path), database=_database(query.get("db", ["0"])[0]))
        if scheme not in ("redis", "rediss") or word not in ("", "sentinel", "cluster"):
            raise _wrong("its scheme is unknown")
        if parts.query or parts.fragment:
            raise _wrong("what follows ? or # has no meaning here: there are options")
        layout = Layout(word)
        login, _, listed = parts.netloc.rpartition("@")
        username, _, password = login.partition(":")
        hosts = _hosts(listed, SENTINEL_PORT if layout is Layout.SENTINEL else REDIS_PORT)
        master, database = _path(parts.path, layout)
    except ValueError as error:
        raise _wrong(str(error)) from error
    if layout is Layout.SINGLE and len(hosts) > 1:
        raise _wrong("several hosts are a sentinel's or a cluster's")
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
    words = [unquote(word) for word in path.split("/")[1:] if word]
    master = ""
    if layout is Layout.SENTINEL:
        if not words:
            raise _wrong("the master's name is missing: redis+sentinel://host:port/name")
        master = words.pop(0)
    if len(words) > 1:
        raise _wrong("its path is too long")
    database = _database(words[0]) if words else 0
    if layout is Layout.CLUSTER and database:
        raise _wrong("a cluster has database 0 only")
    return master, database


def _hosts(listed: str, default_port: int) -> tuple[tuple[str, int], ...]:
    words = listed.split(",")
    if len(words) > MAX_HOSTS:
        raise _wrong(f"it lists more than {MAX_HOSTS} hosts")
    hosts = []
    for word in words:
        try:
            host, port = split_host_port(word.strip(), default_port)
        except BadRequest as error:
            raise _wrong(error.detail) from error
        if not host or not port:
            raise _wrong("a host or port is empty")
        hosts.append((host, port))
    return tuple(hosts)


def _database(word: str) -> int:
    if not word.isascii() or not word.isdigit() or len(word) > 5:
        raise _wrong("the database is not a number")
    return int(word)


def _wrong(reason: str) -> OptionError:
    return OptionError(f"redis: the url cannot be used: {reason}", hint=f"write {_FORMS}; rediss for TLS")
