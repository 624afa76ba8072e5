"""The DNS resolver with a real DNS server on 127.0.0.1, over UDP and TCP."""

from __future__ import annotations

import asyncio
import logging
import random
import struct
from collections import Counter
from collections.abc import AsyncIterator

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest
from micro_dns_resolver import create, micro_resolver
from micro_dns_resolver.options import DnsOptions
from micro_dns_resolver.ordering import Target, order_targets
from micro_dns_resolver.resolver import MAX_TARGETS, NEGATIVE_TTL_S, DnsResolver

from micro_core.contract import Candidate, CountersInMemory, DriverContext, OptionError, Unreachable

NAME = "net.example"
SRV = f"_micro._udp.{NAME}"


class ManualClock:
    """A clock that the test advances."""

    def __init__(self) -> None:
        self.time = 1000.0

    def now(self) -> float:
        return self.time

    def wall(self) -> float:
        return self.time


class Server(asyncio.DatagramProtocol):
    """A DNS server that answers from `zone`; `mode` selects a fault."""

    def __init__(self) -> None:
        self.zone: dict[tuple[str, str], tuple[int, list[str]]] = {}
        self.mode = "ok"
        self.queries: Counter[str] = Counter()
        self.tcp_queries = 0
        self.port = 0

    def add(self, name: str, kind: str, *texts: str, ttl: int = 60) -> None:
        self.zone[name, kind] = (ttl, list(texts))

    @property
    def query_count(self) -> int:
        return sum(self.queries.values())

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.port = transport.get_extra_info("sockname")[1]

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        answer = self.answer(data, truncate=self.mode == "truncated")
        if answer is not None:
            self.transport.sendto(answer, addr)  # type: ignore[attr-defined]  # it is a datagram transport

    async def serve_tcp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        (length,) = struct.unpack("!H", await reader.readexactly(2))
        answer = self.answer(await reader.readexactly(length), truncate=False)
        self.tcp_queries += 1
        if answer is not None:
            writer.write(struct.pack("!H", len(answer)) + answer)
        writer.close()
        await writer.wait_closed()

    def answer(self, data: bytes, *, truncate: bool) -> bytes | None:
        query = dns.message.from_wire(data)
        question = query.question[0]
        name = question.name.to_text(omit_final_dot=True)
        kind = dns.rdatatype.to_text(question.rdtype)
        self.queries[f"{name} {kind}"] += 1
        if self.mode == "silent":
            return None
        response = dns.message.make_response(query, recursion_available=True)
        found = self.zone.get((name, kind))
        if self.mode in ("failing", f"fails {kind}"):
            response.set_rcode(dns.rcode.SERVFAIL)
        elif truncate:
            response.flags |= dns.flags.TC
        elif found is not None:
            response.answer.append(dns.rrset.from_text(question.name, found[0], "IN", kind, *found[1]))
        elif not any(name == existing for existing, _ in self.zone):
            response.set_rcode(dns.rcode.NXDOMAIN)
        return response.to_wire()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    loop = asyncio.get_running_loop()
    for _ in range(20):
        transport, server = await loop.create_datagram_endpoint(Server, local_addr=("127.0.0.1", 0))
        try:
            tcp = await asyncio.start_server(server.serve_tcp, "127.0.0.1", server.port)
        except OSError:
            transport.close()
            continue
        break
    yield server
    transport.close()
    tcp.close()
    await tcp.wait_closed()


def context(clock: ManualClock, seed: int = 1) -> DriverContext:
    return DriverContext(
        node_id="test",
        network=NAME,
        site="eu",
        state_dir="/nonexistent",
        clock=clock,
        random=random.Random(seed),
        logger=logging.getLogger("test.dns"),
        counters=CountersInMemory(),
    )


async def resolver_for(
    server: Server, clock: ManualClock | None = None, *, name: str = "", mode: str = "auto", timeout_s: float = 3.0
) -> DnsResolver:
    options = DnsOptions(nameservers=f"127.0.0.1:{server.port}", name=name, mode=mode, timeout_s=timeout_s)
    resolver = DnsResolver(options, context(clock or ManualClock()))
    await resolver.start()
    return resolver


def test_hook_describes_the_driver() -> None:
    driver = micro_resolver()
    assert (driver.name, driver.options, driver.create) == ("dns", DnsOptions, create)
    assert isinstance(create(DnsOptions(), context(ManualClock())), DnsResolver)


async def test_srv_records_are_returned_by_priority(server: Server) -> None:
    server.add(SRV, "SRV", "20 5 9002 far.example.", "10 7 9001 near.example.", ttl=300)
    server.add("near.example", "A", "192.0.2.1", ttl=120)
    server.add("near.example", "AAAA", "2001:db8::1", ttl=90)
    server.add("far.example", "A", "192.0.2.9", ttl=200)
    found = await (await resolver_for(server)).resolve(NAME)
    assert found[0] == Candidate(address="192.0.2.1:9001", priority=10, weight=7, ttl_s=90.0)
    assert [candidate.address for candidate in found] == [
        "192.0.2.1:9001",
        "[2001:db8::1]:9001",
        "192.0.2.9:9002",
    ]
    assert {candidate.ttl_s for candidate in found} == {90.0}


def test_equal_priorities_are_ordered_randomly_by_weight() -> None:
    targets = [Target(host=str(weight), port=1, priority=1, weight=weight) for weight in (0, 10, 30, 60)]
    targets.append(Target(host="backup", port=1, priority=2, weight=65_535))
    random_source = random.Random(7)
    orders = [[target.host for target in order_targets(targets, random_source)] for _ in range(4_000)]
    assert all(order[4] == "backup" and sorted(order[:4]) == ["0", "10", "30", "60"] for order in orders)
    first = Counter(order[0] for order in orders)
    assert 0.55 < first["60"] / 4_000 < 0.65
    assert 0.25 < first["30"] / 4_000 < 0.35
    assert 0.06 < first["10"] / 4_000 < 0.14
    assert 0 < first["0"] / 4_000 < 0.03, "weight 0 has a very small probability (RFC 2782)"


def test_targets_with_zero_weight_are_all_returned() -> None:
    targets = [Target(host=host, port=1, priority=1, weight=0) for host in "ab"]
    assert {target.host for target in order_targets(targets, random.Random(1))} == {"a", "b"}


async def test_address_records_and_default_port_are_used_without_srv_records(server: Server) -> None:
    server.add(NAME, "A", "192.0.2.1", ttl=30)
    server.add(NAME, "AAAA", "2001:db8::1", ttl=40)
    found = await (await resolver_for(server)).resolve(NAME)
    assert [candidate.address for candidate in found] == ["192.0.2.1:8085", "[2001:db8::1]:8085"]
    assert found[0].ttl_s == 30.0
    assert await (await resolver_for(server, mode="srv")).resolve(NAME) == []
    queries_before = server.queries[f"{SRV} SRV"]
    assert len(await (await resolver_for(server, mode="address")).resolve(NAME)) == 2
    assert server.queries[f"{SRV} SRV"] == queries_before


async def test_name_option_overrides_the_network_name(server: Server) -> None:
    server.add("nodes.example.org", "A", "192.0.2.1")
    found = await (await resolver_for(server, name="nodes.example.org.")).resolve("go.micro")
    assert [candidate.address for candidate in found] == ["192.0.2.1:8085"]


async def test_ip_address_as_name_is_used_without_a_query(server: Server) -> None:
    found = await (await resolver_for(server, name="192.0.2.7")).resolve("go.micro")
    assert [candidate.address for candidate in found] == ["192.0.2.7:8085"]
    assert server.query_count == 0


async def test_answer_is_cached_for_its_shortest_ttl(server: Server) -> None:
    clock = ManualClock()
    server.add(SRV, "SRV", "1 1 9001 near.example.", ttl=300)
    server.add("near.example", "A", "192.0.2.1", ttl=60)
    resolver = await resolver_for(server, clock)
    await resolver.resolve(NAME)
    queries_before = server.query_count
    clock.time += 59
    assert (await resolver.resolve(NAME))[0].ttl_s == 1.0
    assert server.query_count == queries_before
    server.add("near.example", "A", "192.0.2.2", ttl=60)
    clock.time += 1
    assert (await resolver.resolve(NAME))[0].address == "192.0.2.2:9001"


async def test_concurrent_callers_share_one_lookup(server: Server) -> None:
    server.add(NAME, "A", "192.0.2.1")
    resolver = await resolver_for(server)
    answers = await asyncio.gather(*(resolver.resolve(NAME) for _ in range(10)))
    assert len({answer[0].address for answer in answers}) == 1
    assert server.queries[f"{SRV} SRV"] == 1


async def test_missing_name_gives_no_candidates_and_is_cached_briefly(server: Server) -> None:
    clock = ManualClock()
    resolver = await resolver_for(server, clock)
    assert await resolver.resolve(NAME) == []
    queries_before = server.query_count
    server.add(NAME, "A", "192.0.2.1")
    assert await resolver.resolve(NAME) == []
    assert server.query_count == queries_before
    clock.time += NEGATIVE_TTL_S
    assert len(await resolver.resolve(NAME)) == 1


async def test_srv_target_dot_means_no_service(server: Server) -> None:
    server.add(SRV, "SRV", "0 0 0 .")
    server.add(NAME, "A", "192.0.2.1")
    assert await (await resolver_for(server)).resolve(NAME) == []


async def test_silent_server_raises_unreachable_within_the_timeout(server: Server) -> None:
    server.mode = "silent"
    resolver = await resolver_for(server, timeout_s=0.5)
    started = asyncio.get_running_loop().time()
    with pytest.raises(Unreachable, match=r"within 0\.5 s") as caught:
        await resolver.resolve(NAME)
    assert "nameservers" in caught.value.hint
    assert asyncio.get_running_loop().time() - started < 2.0


async def test_server_failure_raises_unreachable_and_is_not_cached(server: Server) -> None:
    server.mode = "failing"
    resolver = await resolver_for(server)
    with pytest.raises(Unreachable, match="all servers failed"):
        await resolver.resolve(NAME)
    server.mode = "ok"
    server.add(NAME, "A", "192.0.2.1")
    assert len(await resolver.resolve(NAME)) == 1


async def test_failure_of_one_address_family_does_not_hide_the_other(server: Server) -> None:
    server.mode = "fails AAAA"
    server.add(SRV, "SRV", "1 1 9001 near.example.")
    server.add("near.example", "A", "192.0.2.1")
    assert [candidate.address for candidate in await (await resolver_for(server)).resolve(NAME)] == ["192.0.2.1:9001"]


async def test_truncated_answer_is_queried_again_over_tcp(server: Server) -> None:
    server.mode = "truncated"
    server.add(NAME, "A", "192.0.2.1")
    assert len(await (await resolver_for(server)).resolve(NAME)) == 1
    assert server.tcp_queries > 0


async def test_second_server_is_used_when_the_first_fails(server: Server) -> None:
    server.add(NAME, "A", "192.0.2.1")
    transport, failing = await asyncio.get_running_loop().create_datagram_endpoint(Server, local_addr=("127.0.0.1", 0))
    failing.mode = "failing"
    options = DnsOptions(nameservers=f"127.0.0.1:{failing.port}, 127.0.0.1:{server.port}", timeout_s=4.0)
    resolver = DnsResolver(options, context(ManualClock()))
    await resolver.start()
    assert len(await resolver.resolve(NAME)) == 1
    assert failing.query_count > 0
    transport.close()


async def test_oversized_answer_is_truncated_to_the_limit(server: Server) -> None:
    server.mode = "truncated"  # the answer does not fit into a datagram
    server.add(SRV, "SRV", *(f"{number} 1 9001 host{number}.example." for number in range(MAX_TARGETS + 20)))
    for number in range(MAX_TARGETS + 20):
        server.add(f"host{number}.example", "A", *(f"192.0.2.{last}" for last in range(1, 30)))
    found = await (await resolver_for(server, timeout_s=10.0)).resolve(NAME)
    assert {candidate.priority for candidate in found} == set(range(MAX_TARGETS))
    assert len(found) == MAX_TARGETS * 8


async def test_invalid_name_raises_unreachable(server: Server) -> None:
    resolver = await resolver_for(server)
    for name in ("a" * 64 + ".example", "a..b", ".".join(["abcdefgh"] * 40)):
        with pytest.raises(Unreachable):
            await resolver.resolve(name)


async def test_resolver_that_is_not_started_or_closed_raises_unreachable(server: Server) -> None:
    with pytest.raises(Unreachable, match="not started"):
        await DnsResolver(DnsOptions(nameservers="127.0.0.1"), context(ManualClock())).resolve(NAME)
    resolver = await resolver_for(server)
    await resolver.close()
    await resolver.close()
    with pytest.raises(Unreachable, match="not started"):
        await resolver.resolve(NAME)


@pytest.mark.parametrize(
    "options",
    [DnsOptions(mode="mx"), DnsOptions(nameservers="localhost"), DnsOptions(nameservers="127.0.0.1:x")],
)
def test_invalid_options_are_rejected(options: DnsOptions) -> None:
    with pytest.raises(OptionError):
        DnsResolver(options, context(ManualClock()))
