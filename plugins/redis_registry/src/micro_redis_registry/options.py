"""What can be set about the Redis registry."""

from __future__ import annotations

from dataclasses import dataclass

from micro_core.contract import option


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisOptions:
    """Options of `registry:redis`."""

    url: str = option(
        "redis://127.0.0.1:6379/0",
        "Where Redis is: redis://host:port/db, unix:///path?db=n, redis+sentinel://host:port,host:port/master/db or "
        "redis+cluster://host:port,host:port; rediss instead of redis for TLS.",
    )
    username: str = option("", "Name of the ACL user. Empty: the one in the url, else Redis's default user.")
    password: str = option("", "Password. Empty: the one in the url. $env:NAME and $file:PATH work here.", secret=True)
    password_file: str = option(
        "", "File that holds the password, read anew for every connection, so that it may change while this runs."
    )
    sentinel_username: str = option("", "Name of the user towards the sentinels, which have users of their own.")
    sentinel_password: str = option("", "Password towards the sentinels.", secret=True)
    ca_file: str = option("", "Certificates (PEM) to trust with rediss. Empty: those of this machine.")
    cert_file: str = option("", "Certificate (PEM) to show to a server that asks for one.")
    key_file: str = option("", "Private key (PEM) of cert_file. Empty: it is in cert_file.")
    check_hostname: bool = option(True, "Whether the server's certificate must name the host of the url.")
    prefix: str = option("micro", "First part of every key and channel.")
    namespace: str = option(
        "", "Registries of one namespace see each other. Empty: network/site, so that sites stay apart."
    )
    timeout_s: float = option(
        5.0, "Longest wait in seconds for an answer of the server. What it does later than that, it does not do."
    )
    keyspace_events: str = option(
        "auto",
        "auto: also listen to Redis's keyspace notifications where they are on. off: own channel and timers only.",
    )
