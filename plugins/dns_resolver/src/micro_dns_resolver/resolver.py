"""Look up SRV records of `_micro._udp.<name>`, or A and AAAA records of `<name>`, with the dnspython library.

Answers are cached for their time to live, measured with the clock of the context. Negative answers are cached briefly.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

import dns.asyncresolver
import dns.exception
import dns.nameserver
import dns.rdatatype
import dns.resolver

from micro_core.contract import BadRequest, Candidate, DriverContext, OptionError, Unreachable
from micro_core.contract.names import join_host_port, split_host_port
from micro_dns_resolver.options import DnsOptions
from micro_dns_resolver.ordering import Target, order_targets

MAX_TARGETS = 32
"""Maximum number of SRV targets used per answer; a node dials only a few."""

MAX_ADDRESSES = 8
"""Maximum number of addresses used per host and address family."""

MAX_NAMES = 64
"""Maximum number of names with a cached answer."""

MIN_TTL_S = 1.0
"""Shortest time in seconds for which an answer is cached."""

MAX_TTL_S = 86_400.0
"""Longest time in seconds for which an answer is cached."""

NEGATIVE_TTL_S = 10.0
"""Seconds for which a negative answer is cached (RFC 2308). Short, so that a new node is found soon."""

MAX_CONCURRENT_LOOKUPS = 8
"""Limit of concurrent queries, to spare small servers and sockets."""


@dataclass(frozen=True, slots=True)
class _Answer:
    """The cached answer for a name: its targets, and the addresses of each host."""

    targets: tuple[Target, ...]
    addresses: dict[str, tuple[str, ...]]
    expires_at: float


class DnsResolver:
    """Implements `micro_core.contract.Resolver` with DNS queries. Raises OptionError for invalid options."""

    def __init__(self, options: DnsOptions, context: DriverContext) -> None:
        if options.mode not in ("auto", "srv", "address"):
            raise OptionError(f"dns: unknown mode {options.mode!r}", hint="use auto, srv or address")
        self._options = options
        self._context = context
        self._servers = _parse_servers(options.nameservers)
        self._resolver: dns.asyncresolver.Resolver | None = None
        self._answers: dict[str, _Answer] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    async def start(self) -> None:
        """Determine the DNS servers. Raises Unreachable if none are configured on this machine."""
        try:
            resolver = dns.asyncresolver.Resolver(configure=not self._servers)
        except (dns.resolver.NoResolverConfiguration, OSError) as error:
            raise Unreachable(
                f"dns: no DNS server is configured on this machine: {error}",
                hint="set nameservers, e.g. nameservers=9.9.9.9",
            ) from error
        if self._servers:
            resolver.nameservers = [dns.nameserver.Do53Nameserver(host, port) for host, port in self._servers]
        resolver.lifetime = self._options.timeout_s
        # Leave time for two attempts, so that one lost datagram does not cause a failure.
        resolver.timeout = self._options.timeout_s / 2.5
        self._resolver = resolver

    async def close(self) -> None:
        """Clear the cache. Safe to call twice."""
        self._resolver = None
        self._answers.clear()

    async def resolve(self, network: str) -> list[Candidate]:
        """Return the nodes of `network`, best first; equal priorities are in random order by weight.

        Raises Unreachable if no server answers. Concurrent callers share one lookup.
        """
        name = (self._options.name or network).rstrip(".")
        lock = self._locks.get(name)
        if lock is None:
            if len(self._locks) >= MAX_NAMES:
                self._locks.clear()
                self._answers.clear()
            lock = self._locks[name] = asyncio.Lock()
        # Concurrent callers wait for one lookup.
        async with lock:
            now = self._context.clock.now()
            answer = self._answers.get(name)
            if answer is None or answer.expires_at <= now:
                answer = self._answers[name] = await self._look_up(name)
        return self._candidates(answer)

    def _candidates(self, answer: _Answer) -> list[Candidate]:
        left_s = max(MIN_TTL_S, answer.expires_at - self._context.clock.now())
        return [
            Candidate(
                address=join_host_port(address, target.port),
                priority=target.priority,
                weight=target.weight,
                ttl_s=left_s,
            )
            for target in order_targets(answer.targets, self._context.random)
            for address in answer.addresses[target.host]
        ]

    async def _look_up(self, name: str) -> _Answer:
        if _is_ip(name):
            return self._answer(
                [Target(host=name, port=self._options.default_port, priority=0, weight=0)], {name: (name,)}
            )
        if self._options.mode != "address":
            targets, ttl_s = await self._srv_targets(f"_micro._udp.{name}")
            if targets or self._options.mode == "srv":
                return await self._resolve_targets(targets, ttl_s)
        target = Target(host=name, port=self._options.default_port, priority=0, weight=0)
        return await self._resolve_targets([target], MAX_TTL_S)

    async def _srv_targets(self, name: str) -> tuple[list[Target], float]:
        answer = await self._query(name, dns.rdatatype.SRV)
        if answer is None or answer.rrset is None:
            return [], NEGATIVE_TTL_S
        targets = [
            Target(
                host=record.target.to_text(omit_final_dot=True),
                port=record.port,
                priority=record.priority,
                weight=record.weight,
            )
            for record in answer.rrset
        ]
        if len(targets) > MAX_TARGETS:
            self._context.counters.add("dns_targets_dropped", len(targets) - MAX_TARGETS)
            targets = sorted(targets, key=lambda target: target.priority)[:MAX_TARGETS]
        return targets, float(answer.rrset.ttl)

    async def _resolve_targets(self, targets: list[Target], ttl_s: float) -> _Answer:
        """Look up the addresses of all targets. Skip hosts that fail; raise Unreachable if all of them fail."""
        # RFC 2782: a target of "." means that the service is not available at this domain.
        hosts = sorted({target.host for target in targets if target.host not in ("", ".")})
        limit = asyncio.Semaphore(MAX_CONCURRENT_LOOKUPS)

        async def resolve_host(host: str) -> tuple[tuple[str, ...], float]:
            async with limit:
                return await self._resolve_host(host)

        outcomes = await asyncio.gather(*(resolve_host(host) for host in hosts), return_exceptions=True)
        addresses: dict[str, tuple[str, ...]] = {}
        failures: list[Unreachable] = []
        for host, outcome in zip(hosts, outcomes, strict=True):
            if isinstance(outcome, Unreachable):
                failures.append(outcome)
                self._context.counters.add("dns_hosts_failed")
            elif isinstance(outcome, BaseException):
                raise outcome
            elif outcome[0]:
                addresses[host] = outcome[0]
                ttl_s = min(ttl_s, outcome[1])
        if failures and not addresses:
            raise failures[0]
        return self._answer([target for target in targets if target.host in addresses], addresses, ttl_s)

    async def _resolve_host(self, host: str) -> tuple[tuple[str, ...], float]:
        if _is_ip(host):
            return (host,), MAX_TTL_S
        found: list[str] = []
        ttl_s = MAX_TTL_S
        failure: Unreachable | None = None
        for kind in (dns.rdatatype.A, dns.rdatatype.AAAA):
            try:
                answer = await self._query(host, kind)
            except Unreachable as error:
                # Some servers fail for one address family only; use the addresses of the other.
                failure = error
                continue
            if answer is not None and answer.rrset is not None:
                found += [record.address for record in answer.rrset][:MAX_ADDRESSES]
                ttl_s = min(ttl_s, float(answer.rrset.ttl))
        if failure is not None and not found:
            raise failure
        return tuple(found), ttl_s

    def _answer(
        self, targets: Sequence[Target], addresses: dict[str, tuple[str, ...]], ttl_s: float = MAX_TTL_S
    ) -> _Answer:
        cached_s = min(MAX_TTL_S, max(MIN_TTL_S, ttl_s)) if targets else NEGATIVE_TTL_S
        return _Answer(tuple(targets), addresses, self._context.clock.now() + cached_s)

    async def _query(self, name: str, kind: dns.rdatatype.RdataType) -> dns.resolver.Answer | None:
        """Send one query; return None if the name or the record does not exist."""
        if self._resolver is None:
            raise Unreachable("dns: the resolver is not started", hint="await start() first")
        try:
            return await self._resolver.resolve(name, kind, raise_on_no_answer=False, search=False)
        except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
            return None
        except dns.resolver.LifetimeTimeout as error:
            raise Unreachable(
                f"dns: no answer for {name} within {self._options.timeout_s} s",
                hint="check that the server is up and reachable, or set nameservers",
            ) from error
        except (dns.resolver.NoNameservers, dns.resolver.YXDOMAIN) as error:
            raise Unreachable(
                f"dns: all servers failed for {name}: {error}", hint="use another server: nameservers=..."
            ) from error
        except (dns.exception.DNSException, OSError) as error:
            raise Unreachable(
                f"dns: cannot look up {name}: {error or type(error).__name__}",
                hint="check the name and the option nameservers",
            ) from error


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _parse_servers(text: str) -> list[tuple[str, int]]:
    servers: list[tuple[str, int]] = []
    for server in filter(None, (item.strip() for item in text.split(","))):
        try:
            host, port = (server, 53) if _is_ip(server) else split_host_port(server, 53)
        except BadRequest as error:
            raise OptionError(f"dns: nameservers: {error.detail}", hint=error.hint) from error
        if not _is_ip(host):
            raise OptionError(f"dns: nameservers: {server!r} is not an IP address", hint="e.g. 127.0.0.1:5353 or [::1]")
        servers.append((host, port))
    return servers
