"""Options of the Redis registry."""

from __future__ import annotations

from dataclasses import dataclass

from micro_core.contract import option


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisOptions:
    """Options of `registry:redis`."""

    url: str = option(
        "redis://127.0.0.1:6379/0",
        "URL of Redis: redis://host:port/db, unix:///path?db=n, redis+sentinel://host:port,host:port/master/db or "
        "redis+cluster://host:port,host:port; rediss instead of redis for TLS.",
    )
    username: str = option("", "Name of the ACL user. Empty: the one in the url, otherwise the default user of Redis.")
    password: str = option("", "Password. Empty: the one in the url. $env:NAME and $file:PATH work here.", secret=True)
    password_file: str = option(
        "", "File that contains the password; it is read for every new connection, so the password may change."
    )
    sentinel_username: str = option("", "User name for the sentinels, which have their own users.")
    sentinel_password: str = option("", "Password for the sentinels.", secret=True)
    ca_file: str = option(
        "", "Trusted certificates (PEM) for rediss. Empty: the certificate authorities of the system."
    )
    cert_file: str = option("", "Client certificate (PEM).")
    key_file: str = option("", "Private key (PEM) of cert_file. Empty: cert_file contains it.")
    check_hostname: bool = option(True, "Whether the certificate of the server must contain the host name of the url.")
    prefix: str = option("micro", "Prefix of every key and channel.")
    namespace: str = option(
        "", "Registries with the same namespace share their records. Empty: network/site, which separates the sites."
    )
    timeout_s: float = option(
        5.0, "Time limit of a request in seconds. The server does not execute changes that arrive later."
    )
    keyspace_events: str = option(
        "auto",
        "auto: subscribe to Redis keyspace notifications if they are enabled. off: never subscribe to them.",
    )
