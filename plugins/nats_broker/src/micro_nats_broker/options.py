"""What can be set about the NATS broker."""

from __future__ import annotations

from dataclasses import dataclass

from micro_core.contract import option


@dataclass(frozen=True, slots=True, kw_only=True)
class NatsOptions:
    """Options of `broker:nats`."""

    url: tuple[str, ...] | str = option(
        ("nats://127.0.0.1:4222",),
        "Servers of one cluster, comma separated: nats://host:4222, or tls://host:4222 to insist on TLS.",
    )
    user: str = option("", "User name, with password.")
    password: str = option("", "Password of the user.", secret=True)
    token: str = option("", "Token, where the server wants one instead of a user.", secret=True)
    nkey_seed: str = option("", "Seed (SU...) of the user's nkey.", secret=True)
    creds_file: str = option("", "Credentials file (JWT and seed) of the user, read at every connection.")
    tls_ca_file: str = option("", "File of the authorities that may vouch for servers. Empty: those of this machine.")
    tls_cert_file: str = option("", "Certificate of this client, where servers want one.")
    tls_key_file: str = option("", "Key of that certificate.")
    tls_hostname: str = option("", "Name that servers' certificates carry. Empty: the host of the address dialled.")
    subject_root: str = option("micro", "First part of every subject: ROOT.NETWORK@SITE.TOPIC.")
    discover: bool = option(default=True, help="Whether to use other servers of the cluster that a server tells of.")
    connect_timeout_s: float = option(2.0, "Longest wait in seconds for one server to let us in.")
    retry_s: float = option(2.0, "Longest pause in seconds between two rounds of tries to connect.")
    keepalive_s: float = option(5.0, "Seconds between two questions whether the server is there.")
    answer_timeout_s: float = option(
        5.0, "Longest wait in seconds for an answer of the server, after which the connection is given up."
    )
    publish_timeout_s: float = option(5.0, "Longest time in seconds that publish takes in all, tries again included.")
    subscribe_timeout_s: float = option(2.0, "How long start and subscribe wait for a server before going on without.")
    drain_timeout_s: float = option(1.0, "How long messages that have arrived are handled while a subscription ends.")
    max_waiting: int = option(1024, "Messages that wait for one handler; the newest beyond are lost and counted.")

    durable: bool = option(
        default=False, help="Keep messages in JetStream: at least once, redelivered until acknowledged."
    )
    max_age_s: float = option(86_400.0, "JetStream: seconds for which messages are kept.")
    max_bytes: int = option(268_435_456, "JetStream: bytes kept of a site's messages; the oldest go first.")
    replicas: int = option(1, "JetStream: servers that keep each message: 1, 3 or 5.")
    storage: str = option("file", "JetStream: file, or memory, which a restart of the server empties.")
    dedupe_window_s: float = option(120.0, "JetStream: seconds in which a message id is taken once only.")
    ack_wait_s: float = option(30.0, "JetStream: seconds a handler may take before the message is delivered again.")
    max_deliveries: int = option(5, "JetStream: deliveries after which a message goes to the dead letters.")
    redelivery_delay_s: float = option(
        1.0, "JetStream: pause in seconds before a message whose handler failed comes again; doubles each time."
    )
    dead_letter_topic: str = option("dead-letters", "JetStream: topic of messages that were given up.")
    keep_subscriber_s: float = option(
        300.0, "JetStream: seconds for which messages are kept for a subscriber without queue that is away."
    )
    replay_from: str = option(
        "",
        "JetStream: where new subscriptions begin: empty for now, all, a time (ISO 8601), or a span ago: 90s, 2h, 1d.",
    )

    @property
    def urls(self) -> tuple[str, ...]:
        """`url` as a list: in a settings file it may be one text."""
        parts = self.url.split(",") if isinstance(self.url, str) else self.url
        return tuple(part.strip() for part in parts if part.strip())

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
