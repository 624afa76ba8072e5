"""Which server to try next, and after what pause. Pure: randomness is handed in."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from micro_core.contract import OptionError, Random
from micro_core.contract.names import join_host_port

DEFAULT_PORT = 4222
FIRST_PAUSE_S = 0.05
MAX_SERVERS = 64
"""Servers kept of those that servers tell of."""


@dataclass(frozen=True, slots=True)
class Server:
    """Where a server listens. With `is_tls` nothing is sent to it before the line is encrypted."""

    host: str
    port: int
    is_tls: bool
    tls_hostname: str = ""
    """Whose certificate to expect; empty: `host`'s."""

    @property
    def url(self) -> str:
        return f"{'tls' if self.is_tls else 'nats'}://{join_host_port(self.host, self.port)}"


def parse_servers(urls: Sequence[str], *, tls_hostname: str) -> list[Server]:
    """The servers that `url` names. Raises OptionError; never repeats what might be a password."""
    servers: dict[Server, None] = {}
    for url in urls:
        words = url if "://" in url else f"nats://{url}"
        try:
            split = urlsplit(words)
            port = split.port
        except ValueError as error:
            raise OptionError("nats: a url cannot be read", hint="nats://host:4222, tls://host:4222") from error
        if split.username is not None or split.password is not None:
            raise OptionError(
                "nats: a url must not carry user or password: urls are shown and logged",
                hint='user = "...", password = "$env:NATS_PASSWORD" in [plugins.nats]',
            )
        if split.scheme not in ("nats", "tls"):
            raise OptionError(f"nats: the scheme {split.scheme!r:.20} is unknown", hint="write nats:// or tls://")
        if not split.hostname or split.path not in ("", "/") or split.query or split.fragment:
            raise OptionError("nats: a url is not scheme://host:port", hint="nats://host:4222, tls://host:4222")
        servers[Server(split.hostname, port or DEFAULT_PORT, split.scheme == "tls", tls_hostname)] = None
    if not servers:
        raise OptionError("nats: no url is given", hint="nats://host:4222")
    return list(servers)


def _certified_name(told_by: Server, host: str) -> str:
    """Certificates name hosts; a cluster tells of its servers by address, and its certificate holds for all."""
    if told_by.tls_hostname or not _is_ip(host) or _is_ip(told_by.host):
        return told_by.tls_hostname
    return told_by.host


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


class ServerPool:
    """The servers of a cluster: those of the settings first in each round, each part in an order of its own."""

    def __init__(self, servers: Iterable[Server], random: Random, *, retry_s: float) -> None:
        self._named = list(servers)
        self._told: list[Server] = []
        self._random = random
        self._retry_s = retry_s
        self._round: list[Server] = []
        self._rounds_failed = 0
        self._begin_round()

    def next(self) -> tuple[Server, float]:
        """The server to try, and the pause before it in seconds: none within a round."""
        if self._round:
            return self._round.pop(0), 0.0
        self._rounds_failed += 1
        self._begin_round()
        longest_s = min(self._retry_s, FIRST_PAUSE_S * 2 ** min(self._rounds_failed - 1, 16))
        return self._round.pop(0), longest_s * self._random.uniform(0.5, 1.0)

    def connected(self, server: Server, others: Iterable[tuple[str, int]]) -> None:
        """A server let us in, and told of `others`. After it is lost, it is the last to be tried again."""
        known = {(one.host, one.port) for one in self._named}
        told: dict[Server, None] = {}
        for host, port in others:
            if (host, port) not in known and len(told) < MAX_SERVERS:
                # What was promised of the server that told is demanded of those it names.
                told[Server(host, port, server.is_tls, _certified_name(server, host))] = None
        self._told = list(told)
        self._rounds_failed = 0
        self._begin_round()
        if server in self._round:
            self._round.remove(server)
            self._round.append(server)

    def _begin_round(self) -> None:
        self._round = self._shuffled(self._named) + self._shuffled(self._told)

    def _shuffled(self, servers: Iterable[Server]) -> list[Server]:
        return sorted(servers, key=lambda _: self._random.random())
