"""Options of the NATS broker."""

from __future__ import annotations

from dataclasses import dataclass

from micro_core.contract import option


@dataclass(frozen=True, slots=True, kw_only=True)
class NatsOptions:
    """Options of `broker:nats`. Raises ValueError for values that are out of range or contradict each other."""

    url: tuple[str, ...] | str = option(
        ("nats://127.0.0.1:4222",),
        "Servers of one cluster, comma separated: nats://host:4222, or tls://host:4222 to require TLS.",
    )
    user: str = option("", "User name; requires password.")
    password: str = option("", "Password of the user.", secret=True)
    token: str = option("", "Token, if the server uses a token instead of users.", secret=True)
    nkey_seed: str = option("", "Seed (SU...) of the nkey of the user.", secret=True)
    creds_file: str = option("", "Credentials file (JWT and seed) of the user; it is read for every connection.")
    tls_ca_file: str = option(
        "", "PEM file of trusted certificate authorities. Empty: the certificate authorities of the system."
    )
    tls_cert_file: str = option("", "Client certificate (PEM).")
    tls_key_file: str = option("", "Private key (PEM) of the client certificate.")
    tls_hostname: str = option("", "Host name in the certificates of the servers. Empty: the host of the url.")
    subject_root: str = option("micro", "Prefix of every subject: ROOT.NETWORK@SITE.TOPIC.")
    discover: bool = option(default=True, help="Whether to use other servers of the cluster that a server announces.")
    connect_timeout_s: float = option(2.0, "Time limit in seconds for connecting to one server.")
    retry_s: float = option(2.0, "Longest pause in seconds between two rounds of connection attempts.")
    keepalive_s: float = option(5.0, "Seconds between two keepalives.")
    answer_timeout_s: float = option(5.0, "Time limit in seconds of a response, after which the connection is closed.")
    publish_timeout_s: float = option(5.0, "Time limit in seconds of publish, including retries.")
    subscribe_timeout_s: float = option(
        2.0, "Seconds for which start and subscribe wait for a server before they continue without one."
    )
    drain_timeout_s: float = option(
        1.0, "Seconds for which received messages are handled when a subscription is closed."
    )
    max_waiting: int = option(
        1024, "Maximum number of messages queued for one handler; further ones are dropped and counted."
    )

    durable: bool = option(
        default=False, help="Store messages in JetStream: delivered at least once, until they are acknowledged."
    )
    max_age_s: float = option(86_400.0, "JetStream: seconds for which messages are stored.")
    max_bytes: int = option(
        268_435_456, "JetStream: maximum size of the stream in bytes; the oldest messages are dropped first."
    )
    replicas: int = option(1, "JetStream: number of servers that store each message: 1, 3 or 5.")
    storage: str = option("file", "JetStream: file or memory; memory is lost when the server restarts.")
    dedupe_window_s: float = option(120.0, "JetStream: seconds within which a message id is stored only once.")
    ack_wait_s: float = option(30.0, "JetStream: seconds that a handler may take before the message is redelivered.")
    max_deliveries: int = option(5, "JetStream: number of deliveries after which a message becomes a dead letter.")
    redelivery_delay_s: float = option(
        1.0, "JetStream: seconds before a message whose handler failed is redelivered; doubled each time."
    )
    dead_letter_topic: str = option("dead-letters", "JetStream: topic of dead letters.")
    keep_subscriber_s: float = option(
        300.0, "JetStream: seconds for which messages are stored for a subscriber without a queue that is down."
    )
    replay_from: str = option(
        "",
        "JetStream: start of new subscriptions. Empty: now; all; a time (ISO 8601); or a time span before now: 90s, 2h, 1d.",
    )

    @property
    def urls(self) -> tuple[str, ...]:
        """The URLs as a list; in a settings file, `url` may be a single string."""
        items = self.url.split(",") if isinstance(self.url, str) else self.url
        return tuple(item.strip() for item in items if item.strip())

    def __post_init__(self) -> None:
        for name in (
            "connect_timeout_s",
            "retry_s",
            "keepalive_s",
            "answer_timeout_s",
            "publish_timeout_s",
            "max_age_s",
            "dedupe_window_s",
            "ack_wait_s",
            "keep_subscriber_s",
        ):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be more than 0")
        for name in ("subscribe_timeout_s", "drain_timeout_s", "redelivery_delay_s"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative")
        for name in ("max_waiting", "max_bytes", "max_deliveries"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")
        if self.replicas not in (1, 3, 5):
            raise ValueError("replicas must be 1, 3 or 5")
        if self.storage not in ("file", "memory"):
            raise ValueError("storage must be file or memory")
        if self.dedupe_window_s > self.max_age_s:
            raise ValueError("dedupe_window_s must not be more than max_age_s")
