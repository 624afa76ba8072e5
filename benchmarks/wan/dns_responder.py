"""Answers DNS queries for the name of the network: SRV records of all nodes, and the address of each."""

from __future__ import annotations

from collections.abc import Mapping

import dns.exception
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

TTL_S = 15


def answer(query: bytes, *, network: str, nodes: Mapping[str, str], port: int) -> bytes | None:
    """Return the response to `query`, or None if it is malformed. `nodes` contains the address of each host name."""
    try:
        request = dns.message.from_wire(query)
    except dns.exception.DNSException:
        return None
    if len(request.question) != 1:
        return None
    question = request.question[0]
    name = question.name.to_text(omit_final_dot=True).lower()
    response = dns.message.make_response(request)
    response.flags |= dns.flags.AA | dns.flags.RA
    if name == f"_micro._udp.{network}" and question.rdtype == dns.rdatatype.SRV:
        targets = [f"0 1 {port} {host}.{network}." for host in nodes]
        response.answer.append(dns.rrset.from_text(question.name, TTL_S, "IN", "SRV", *targets))
    elif name.removesuffix(f".{network}") in nodes:
        if question.rdtype == dns.rdatatype.A:
            address = nodes[name.removesuffix(f".{network}")]
            response.answer.append(dns.rrset.from_text(question.name, TTL_S, "IN", "A", address))
    elif name not in (network, f"_micro._udp.{network}"):
        response.set_rcode(dns.rcode.NXDOMAIN)
    # 12 SRV records are longer than 512 bytes, which resolvers without EDNS accept at most; this one sends EDNS.
    return response.to_wire(max_size=4_096)
