"""Select the next server to try and the pause before it. Pure: the random source is an argument."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from micro_core.contract import OptionError, Random
from micro_core.contract.names import join_host_port

DEFAULT_PORT = 4222
"""Default port of a NATS server."""

INITIAL_PAUSE_S = 0.05
"""Upper bound in seconds of the pause after the first failed round."""

MAX_SERVERS = 64
"""Maximum number of announced servers that are used."""


@dataclass(frozen=True, slots=True)
class Server:
    """The address of a server. With `is_tls`, nothing is sent before the connection is encrypted."""

    host: str
    port: int
    is_tls: bool
    tls_hostname: str = ""
    """Host name expected in the certificate; empty: `host`."""

    @property
    def url(self) -> str:
        """The URL of the server."""
        return f"{'tls' if self.is_tls else 'nats'}://{join_host_port(self.host, self.port)}"


def parse_servers(urls: Sequence[str], *, tls_hostname: str) -> list[Server]:
    """Parse the URLs of servers. Raises OptionError, which never contains text that may be a password."""
    servers: dict[Server, None] = {}
    for url in urls:
        full_url = url if "://" in url else f"nats://{url}"
        try:
            split = urlsplit(full_url)
            port = split.port
        except ValueError as error:
            raise OptionError("nats: invalid url", hint="use nats://host:4222 or tls://host:4222") from error
        if split.username is not None or split.password is not None:
            raise OptionError(
                "nats: a url must not contain user or password, since urls are displayed and logged",
                hint='user = "...", password = "$env:NATS_PASSWORD" in [plugins.nats]',
            )
        if split.scheme not in ("nats", "tls"):
            raise OptionError(f"nats: unknown scheme {split.scheme!r:.20}", hint="use nats:// or tls://")
        if not split.hostname or split.path not in ("", "/") or split.query or split.fragment:
            raise OptionError(
                "nats: a url is not of the form scheme://host:port", hint="use nats://host:4222 or tls://host:4222"
            )
        servers[Server(split.hostname, port or DEFAULT_PORT, split.scheme == "tls", tls_hostname)] = None
    if not servers:
        raise OptionError("nats: url is empty", hint="use e.g. nats://host:4222")
    return list(servers)


def _certified_name(announced_by: Server, host: str) -> str:
    """Return the expected name in the certificate of an announced server.

    Clusters announce IP addresses, which are not in certificates, so the name of the announcing server is expected.
    """
    if announced_by.tls_hostname or not _is_ip(host) or _is_ip(announced_by.host):
        return announced_by.tls_hostname
    return announced_by.host


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


class ServerPool:
    """The servers of a cluster. Each round tries the configured servers first, then the announced ones, in random order."""

    def __init__(self, servers: Iterable[Server], random: Random, *, retry_s: float) -> None:
        self._configured = list(servers)
        self._announced: list[Server] = []
        self._random = random
        self._retry_s = retry_s
        self._round: list[Server] = []
        self._rounds_failed = 0
        self._start_round()

    def next(self) -> tuple[Server, float]:
        """Return the next server and the pause before it in seconds; there is no pause within a round."""
        if self._round:
            return self._round.pop(0), 0.0
        self._rounds_failed += 1
        self._start_round()
        bound_s = min(self._retry_s, INITIAL_PAUSE_S * 2 ** min(self._rounds_failed - 1, 16))
        return self._round.pop(0), bound_s * self._random.uniform(0.5, 1.0)

    def connected(self, server: Server, others: Iterable[tuple[str, int]]) -> None:
        """Record a successful connection and the servers it announced. `server` is tried last after a loss."""
        configured = {(known.host, known.port) for known in self._configured}
        announced: dict[Server, None] = {}
        for host, port in others:
            if (host, port) not in configured and len(announced) < MAX_SERVERS:
                # Announced servers must meet the same TLS requirements as the announcing server.
                announced[Server(host, port, server.is_tls, _certified_name(server, host))] = None
        self._announced = list(announced)
        self._rounds_failed = 0
        self._start_round()
        if server in self._round:
            self._round.remove(server)
            self._round.append(server)

    def _start_round(self) -> None:
        self._round = self._shuffled(self._configured) + self._shuffled(self._announced)

    def _shuffled(self, servers: Iterable[Server]) -> list[Server]:
        return sorted(servers, key=lambda _: self._random.random())
