"""The conformance kit of the resolver role, with a DNS server on 127.0.0.1 that can stop or send garbage."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import cast

import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest
from micro_dns_resolver import micro_resolver
from micro_dns_resolver.options import DnsOptions

from micro_core.contract import Candidate, DriverContext, Resolver
from micro_core.contract.names import split_host_port
from micro_core.testing import DriverUnderTest, Faults, Harness, ResolverConformance, free_port


class Nameserver(Faults):
    """A DNS server that answers SRV queries for its configured names over UDP."""

    def __init__(self) -> None:
        self.port = free_port()
        self.candidates: dict[str, Sequence[Candidate]] = {}
        self._sends_garbage = False
        self._transport: asyncio.BaseTransport | None = None

    async def restart(self) -> None:
        loop = asyncio.get_running_loop()
        address = ("127.0.0.1", self.port)
        self._transport, _ = await loop.create_datagram_endpoint(lambda: NameserverProtocol(self), local_addr=address)

    async def kill(self) -> None:
        if self._transport is not None:
            self._transport.close()
            # The socket is closed in the next iteration of the loop.
            await asyncio.sleep(0)

    async def garbage(self, context: DriverContext) -> None:
        del context
        self._sends_garbage = True

    def answer(self, data: bytes) -> bytes:
        if self._sends_garbage:
            return data[:2] + b"\xff" * 60
        query = dns.message.from_wire(data)
        question = query.question[0]
        name = question.name.to_text(omit_final_dot=True)
        response = dns.message.make_response(query, recursion_available=True)
        found = self.candidates.get(name.removeprefix("_micro._udp."))
        if name == "host-127-0-0-1.test":
            if question.rdtype == dns.rdatatype.A:
                response.answer.append(dns.rrset.from_text(question.name, 60, "IN", "A", "127.0.0.1"))
        elif found is None:
            response.set_rcode(dns.rcode.NXDOMAIN)
        elif question.rdtype == dns.rdatatype.SRV and found:
            texts = []
            for candidate in found:
                host, port = split_host_port(candidate.address)
                texts.append(f"{candidate.priority} {candidate.weight} {port} host-{host.replace('.', '-')}.test.")
            response.answer.append(dns.rrset.from_text(question.name, 60, "IN", "SRV", *texts))
        return response.to_wire()


class NameserverProtocol(asyncio.DatagramProtocol):
    """The socket of a nameserver."""

    def __init__(self, server: Nameserver) -> None:
        self._server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Before Python 3.12, asyncio's datagram transport does not inherit from DatagramTransport.
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._transport.sendto(self._server.answer(data), addr)


class TestDnsResolver(ResolverConformance):
    @pytest.fixture
    async def driver_under_test(self) -> AsyncIterator[DriverUnderTest[Resolver]]:
        self.server = Nameserver()
        await self.server.restart()
        options = DnsOptions(nameservers=f"127.0.0.1:{self.server.port}", mode="srv", timeout_s=2.0)
        yield DriverUnderTest(driver=micro_resolver(), options=options, faults=self.server)
        await self.server.kill()

    async def publish(self, harness: Harness[Resolver], candidates: Sequence[Candidate]) -> None:
        self.server.candidates[harness.network] = candidates
