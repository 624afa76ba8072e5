"""The names that packages share: well-known services, metadata keys, and the syntax of names and addresses."""

from __future__ import annotations

import functools
import re

from micro_core.contract.errors import BadRequest

NETWORK_SERVICE = "go.micro.network"
"""The service of a node. Clients find nodes by it, and send calls to other services through it."""

REGISTRY_SERVICE = "go.micro.registry"
"""The service of a registry that runs as a process of its own."""

BROKER_SERVICE = "go.micro.broker"
"""The service of a broker host: a node, or a broker that runs as a process of its own."""

TUNNEL_SERVICE = "go.micro.tunnel"
"""The service of a tunnel that runs as a process of its own."""

ROUTER_SERVICE = "go.micro.router"
"""The service of a router that runs as a process of its own."""

PROXY_SERVICE = "go.micro.proxy"
"""The service of a proxy that runs as a process of its own."""

NODE_KEY = "node"
"""Metadata key of a record: the id of the node that registered it."""

NAME_KEY = "name"
"""Metadata key of the record of a node or of one of its processes: the display name of the node."""

SITE_KEY = "site"
"""Metadata key of the record of a node or of one of its processes: the site of the node."""

TUNNEL_KEY = "tunnel"
"""Metadata key of the record of a node: the addresses of its tunnel drivers, separated by commas."""

PRIORITY_KEY = "priority"
"""Metadata key of the record of a node: an integer; candidates with a smaller one are dialled first. Missing for 0."""

IPC_KEY = "ipc"
"""Metadata key of the record of a tunnel process: the address of its IPC server."""

LOAD_KEY = "micro-load"
"""Metadata key of a record: how long calls wait at the instance, in microseconds. Missing if they do not wait."""

SCOPE_KEY = "micro-scope"
"""Metadata key of a record: how far the instance is advertised. The only value so far is SITE_SCOPE."""

SITE_SCOPE = "site"
"""Value of SCOPE_KEY: the instance is not advertised to other sites."""

RESERVED_PREFIX = "micro-"
"""Prefix of the metadata keys and message headers that micro itself sets."""

PATH_SEPARATOR = "|"
"""Separates several addresses of one node: `quic://host:8085|tls://host:443`."""

MAX_NAME_CHARS = 253
"""Maximum length of a name: that of a DNS name (RFC 1035, section 2.3.4), so that DNS-based registries can store it."""

_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.:/-]*[A-Za-z0-9_])?")
_SITE = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_NODE_ID = re.compile(r"[a-z2-7]{32}")


def check_service_name(name: str) -> str:
    """Return `name`, e.g. `go.micro.srv.greeter`.

    A name has 1 to 253 ASCII letters, digits and `_ . : / -`, and begins and ends with a letter, a digit or `_`.

    Raises:
        BadRequest: `name` is not such a name.
    """
    if type(name) is str:
        return _cached_service_name(name)
    return _check_service_name(name)


def _check_service_name(name: str) -> str:
    return _check(name, _NAME, "service name", "letters, digits and . _ - : /, e.g. go.micro.srv.greeter")


def check_endpoint_name(name: str) -> str:
    """Return `name`, e.g. `Say.Hello`.

    Raises:
        BadRequest: `name` does not follow the rules of service names.
    """
    return _check(name, _NAME, "endpoint name", "letters, digits and . _ -, e.g. Say.Hello")


def check_network_name(name: str) -> str:
    """Return `name`, e.g. `go.micro`.

    Raises:
        BadRequest: `name` does not follow the rules of service names.
    """
    return _check(name, _NAME, "network name", "letters, digits and . _ -, e.g. go.micro")


def check_topic(topic: str) -> str:
    """Return `topic`, e.g. `orders.created`.

    Raises:
        BadRequest: `topic` does not follow the rules of service names, which exclude wildcards.
    """
    return _check(topic, _NAME, "topic", "letters, digits and . _ - : /, e.g. orders.created")


def check_site(site: str) -> str:
    """Return `site`, e.g. `eu`.

    Raises:
        BadRequest: `site` is not one DNS label in lower case (RFC 1123, section 2.1).
    """
    return _check(site, _SITE, "site", "one label of a-z, 0-9 and -, e.g. eu-west-1")


def check_node_id(node_id: str) -> str:
    """Return `node_id`, which `micro_core.tunnel.identity` derives from the key of the node.

    Raises:
        BadRequest: `node_id` is not 32 characters of lower-case base32 (a-z, 2-7).
    """
    if type(node_id) is str:
        return _cached_node_id(node_id)
    return _check_node_id(node_id)


def _check_node_id(node_id: str) -> str:
    return _check(node_id, _NODE_ID, "node id", "32 characters of a-z and 2-7")


INTEREST_PREFIX = "~"
"""Prefix of the pseudo-services that advertise interest in a topic, e.g. `~orders.created`. Service names cannot begin with it."""


def interest_name(topic: str) -> str:
    """Return the name under which interest in `topic` is advertised, e.g. `~orders.created`."""
    return INTEREST_PREFIX + topic


def short_id(node_id: str) -> str:
    """Return the first eight characters of a node id, for display."""
    return node_id[:8]


def _check(value: str, pattern: re.Pattern[str], what: str, allowed: str) -> str:
    if not isinstance(value, str) or len(value) > MAX_NAME_CHARS or pattern.fullmatch(value) is None:
        article = "an" if what.startswith("e") else "a"
        raise BadRequest(
            f"{value!r:.60} is not {article} {what}", hint=f"use {allowed}; at most {MAX_NAME_CHARS} characters"
        )
    return value


def split_host_port(address: str, default_port: int | None = None) -> tuple[str, int]:
    """Split `host:port` or `[IPv6]:port` into host and port.

    Args:
        address: The address. The host may be empty.
        default_port: Used if the address has no port.

    Raises:
        BadRequest: The port is missing or invalid, or an IPv6 address is not in brackets.
    """
    host, separator, port = address.rpartition(":")
    if not separator or port.endswith("]"):
        host, port = address, ""
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise BadRequest(f"{address!r} is ambiguous", hint="put an IPv6 address in brackets: [::1]:8085")
    if not port and default_port is not None:
        return host, default_port
    if not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise BadRequest(f"{address!r} has no valid port", hint="use host:port, e.g. 127.0.0.1:8085")
    return host, int(port)


def join_host_port(host: str, port: int) -> str:
    """Return `host:port`, with an IPv6 address in brackets: the inverse of `split_host_port`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


# Each advert and each call contains the same few names, so the valid ones are cached.
_cached_service_name = functools.lru_cache(16_384)(_check_service_name)
_cached_node_id = functools.lru_cache(16_384)(_check_node_id)
