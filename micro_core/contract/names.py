"""Names as they appear in config, on the wire and in tables, checked where they enter."""

from __future__ import annotations

import functools
import re

from micro_core.contract.errors import BadRequest

NETWORK_SERVICE = "go.micro.network"
"""The service as which every node registers and answers; what is called through it goes wherever it has to."""

NODE_KEY = "node"
"""Metadata by which a node's own record names its node id."""

MAX_NAME_CHARS = 253
"""The bound of a DNS name (RFC 1035 section 2.3.4): every name fits a DNS-based registry."""

_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.:/-]*[A-Za-z0-9_])?")
_SITE = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_NODE_ID = re.compile(r"[a-z2-7]{32}")


def check_service_name(name: str) -> str:
    """Return `name`, or raise BadRequest. Letters, digits and `_ . : / -`; at most 253 characters."""
    if type(name) is str:
        return _known_service_name(name)
    return _check_service_name(name)


def _check_service_name(name: str) -> str:
    return _check(name, _NAME, "service name", "letters, digits and . _ - : /, as in go.micro.srv.greeter")


def check_endpoint_name(name: str) -> str:
    """Return `name` (`Say.Hello`), or raise BadRequest."""
    return _check(name, _NAME, "endpoint name", "letters, digits and . _ -, as in Say.Hello")


def check_network_name(name: str) -> str:
    """Return `name` (`go.micro`), or raise BadRequest."""
    return _check(name, _NAME, "network name", "letters, digits and . _ -, as in go.micro")


def check_topic(topic: str) -> str:
    """Return `topic` (`orders.created`), or raise BadRequest. No wildcards."""
    return _check(topic, _NAME, "topic", "letters, digits and . _ - : /, as in orders.created")


def check_site(site: str) -> str:
    """Return `site` (one DNS label: `eu`), or raise BadRequest."""
    return _check(site, _SITE, "site", "one label of a-z, 0-9 and -, as in eu-west-1")


def check_node_id(node_id: str) -> str:
    """Return `node_id` (32 characters of lower-case base32, see micro_core.tunnel.identity), or raise BadRequest."""
    if type(node_id) is str:
        return _known_node_id(node_id)
    return _check_node_id(node_id)


def _check_node_id(node_id: str) -> str:
    return _check(node_id, _NODE_ID, "node id", "32 characters of a-z and 2-7")


INTEREST_PREFIX = "~"
"""Interest in a topic travels as a route to a service of this name: `~orders.created`. No service may begin so."""


def interest_name(topic: str) -> str:
    """The routing plane's name for interest in `topic`."""
    return INTEREST_PREFIX + topic


def short_id(node_id: str) -> str:
    """The first eight characters: what people read."""
    return node_id[:8]


def _check(value: str, pattern: re.Pattern[str], what: str, allowed: str) -> str:
    if not isinstance(value, str) or len(value) > MAX_NAME_CHARS or pattern.fullmatch(value) is None:
        article = "an" if what.startswith("e") else "a"
        raise BadRequest(
            f"{value!r:.60} is not {article} {what}", hint=f"use {allowed}, at most {MAX_NAME_CHARS} characters"
        )
    return value


def split_host_port(address: str, default_port: int | None = None) -> tuple[str, int]:
    """Split `host:port` or `[v6]:port`; raises BadRequest. `default_port` serves when none is written."""
    host, separator, port = address.rpartition(":")
    if not separator or port.endswith("]"):
        host, port = address, ""
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise BadRequest(f"{address!r} is ambiguous", hint="write IPv6 addresses in brackets: [::1]:8085")
    if not port and default_port is not None:
        return host, default_port
    if not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise BadRequest(f"{address!r} has no valid port", hint="write host:port, as in 127.0.0.1:8085")
    return host, int(port)


def join_host_port(host: str, port: int) -> str:
    """The inverse of `split_host_port`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


# The same few names come with every advert and every call: those that passed are known.
_known_service_name = functools.lru_cache(16_384)(_check_service_name)
_known_node_id = functools.lru_cache(16_384)(_check_node_id)
