"""The resolver: SRV records of `_micro._udp.<name>`, or A and AAAA of `<name>`, by the dnspython library.

Answers are kept for their time to live by the context's clock, and so is the answer that there is nothing, briefly.
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
"""SRV targets looked up of one answer; a node dials a handful at most."""

MAX_ADDRESSES = 8
"""Addresses taken of one host, of each family."""

MAX_NAMES = 64
"""Names whose answers are kept."""

MIN_TTL_S = 1.0
MAX_TTL_S = 86_400.0
NEGATIVE_TTL_S = 10.0
"""How long "there is nothing" is believed: a node that comes up shall not wait long to be found (compare RFC 2308)."""

LOOKUPS_AT_ONCE = 8
"""Questions under way together: politeness to a small server, and fewer sockets."""


@dataclass(frozen=True, slots=True)
class _Answer:
    """What is known of a name: its targets, and each host's addresses."""

    targets: tuple[Target, ...]
    addresses: dict[str, tuple[str, ...]]
    expires_at: float


class DnsResolver:
    """The resolver role over the DNS."""

    def __init__(self, options: DnsOptions, context: DriverContext) -> None:
        if options.mode not in ("auto", "srv", "address"):
            raise OptionError(f"dns: mode {options.mode!r} is unknown", hint="write auto, srv or address")
        self._options = options
        self._context = context
        self._servers = _parse_servers(options.nameservers)
        self._resolver: dns.asyncresolver.Resolver | None = None
        self._answers: dict[str, _Answer] = {}
        self._turns: dict[str, asyncio.Lock] = {}

    async def start(self) -> None:
        """Read which servers to ask. Raises Unreachable when this machine names none."""
        try:
            resolver = dns.asyncresolver.Resolver(configure=not self._servers)
        except (dns.resolver.NoResolverConfiguration, OSError) as error:
            raise Unreachable(
                f"dns: this machine names no server: {error}", hint="set nameservers, as in nameservers=9.9.9.9"
            ) from error
        if self._servers:
            resolver.nameservers = [dns.nameserver.Do53Nameserver(host, port) for host, port in self._servers]
        resolver.lifetime = self._options.timeout_s
        # Two tries fit, so that one lost datagram is not an outage.
        resolver.timeout = self._options.timeout_s / 2.5
        self._resolver = resolver

    async def close(self) -> None:
        """Forget the answers. Safe to call twice."""
        self._resolver = None
        self._answers.clear()

    async def resolve(self, network: str) -> list[Candidate]:
        """See the contract; equal priorities are drawn anew by weight each time."""
        name = (self._options.name or network).rstrip(".")
        turn = self._turns.get(name)
        if turn is None:
            if len(self._turns) >= MAX_NAMES:
                self._turns.clear()
                self._answers.clear()
            turn = self._turns[name] = asyncio.Lock()
        # Callers that ask together share one answer.
        async with turn:
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
            targets, ttl_s = await self._services(f"_micro._udp.{name}")
            if targets or self._options.mode == "srv":
                return await self._located(targets, ttl_s)
        target = Target(host=name, port=self._options.default_port, priority=0, weight=0)
        return await self._located([target], MAX_TTL_S)

    async def _services(self, name: str) -> tuple[list[Target], float]:
        answer = await self._ask(name, dns.rdatatype.SRV)
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

    async def _located(self, targets: list[Target], ttl_s: float) -> _Answer:
        """Find the addresses of all targets. One host that fails is left out; if all fail, so does this."""
        # RFC 2782: a target of "." means that the service is decidedly not available here.
        hosts = sorted({target.host for target in targets if target.host not in ("", ".")})
        limit = asyncio.Semaphore(LOOKUPS_AT_ONCE)

        async def locate(host: str) -> tuple[tuple[str, ...], float]:
            async with limit:
                return await self._locate(host)

        outcomes = await asyncio.gather(*(locate(host) for host in hosts), return_exceptions=True)
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

    async def _locate(self, host: str) -> tuple[tuple[str, ...], float]:
        if _is_ip(host):
            return (host,), MAX_TTL_S
        found: list[str] = []
        ttl_s = MAX_TTL_S
        failure: Unreachable | None = None
        for kind in (dns.rdatatype.A, dns.rdatatype.AAAA):
            try:
                answer = await self._ask(host, kind)
            except Unreachable as error:
                # Some servers fail for one family only; what the other gives is good.
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
        kept_s = min(MAX_TTL_S, max(MIN_TTL_S, ttl_s)) if targets else NEGATIVE_TTL_S
        return _Answer(tuple(targets), addresses, self._context.clock.now() + kept_s)

    async def _ask(self, name: str, kind: dns.rdatatype.RdataType) -> dns.resolver.Answer | None:
        """Ask one question; None when the name or the record does not exist."""
        if self._resolver is None:
            raise Unreachable("dns: the resolver is not started", hint="await start() first")
        try:
            return await self._resolver.resolve(name, kind, raise_on_no_answer=False, search=False)
        except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
            return None
        except dns.resolver.LifetimeTimeout as error:
            raise Unreachable(
                f"dns: no answer about {name} within {self._options.timeout_s} s",
                hint="check that the server is up and reachable, or set nameservers",
            ) from error
        except (dns.resolver.NoNameservers, dns.resolver.YXDOMAIN) as error:
            raise Unreachable(
                f"dns: no server would answer about {name}: {error}", hint="ask another server: nameservers=..."
            ) from error
        except (dns.exception.DNSException, OSError) as error:
            raise Unreachable(
                f"dns: cannot look up {name}: {error or type(error).__name__}", hint="check the name, and nameservers"
            ) from error


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _parse_servers(words: str) -> list[tuple[str, int]]:
    servers: list[tuple[str, int]] = []
    for word in filter(None, (part.strip() for part in words.split(","))):
        try:
            host, port = (word, 53) if _is_ip(word) else split_host_port(word, 53)
        except BadRequest as error:
            raise OptionError(f"dns: nameservers: {error.detail}", hint=error.hint) from error
        if not _is_ip(host):
            raise OptionError(f"dns: nameservers: {word!r} is not an IP address", hint="as in 127.0.0.1:5353 or [::1]")
        servers.append((host, port))
    return servers
