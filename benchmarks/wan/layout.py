"""What the network consists of: clouds, nodes, services, topics, and the paths between the clouds. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.wan.paths import Conditions

NETWORK = "wan.test"
TOKEN = "the token of this benchmark"
TUNNEL_PORT = 8085
REDIS_PORT = 6379
NATS_PORT = 4222
CALL_PORT = 9100

CLOUDS = (1, 2, 3, 4)
NODES_PER_CLOUD = 3
SERVICES = 24

TOPIC_ALL = "wan.news"
TOPIC_QUEUE = "wan.jobs"
TOPICS = (TOPIC_ALL, TOPIC_QUEUE)
QUEUE_MEMBERS = 2

CALLS_PER_S = 60.0
MESSAGES_PER_S = 2.0
"""Messages per second, topic and cloud."""

DEADLINE_S = 2.5

ROUND_TRIPS_MS = {(1, 2): 40, (1, 3): 80, (1, 4): 150, (2, 3): 60, (2, 4): 110, (3, 4): 5}
"""Between 1 and 2 there is a second path, over 3, of 140 ms."""

LOSS = 0.005
JITTER_S = 0.001


@dataclass(frozen=True, slots=True)
class NodePlace:
    """One node: its cloud, its number in it, and its addresses."""

    cloud: int
    number: int

    @property
    def name(self) -> str:
        return f"c{self.cloud}-{self.number}"

    @property
    def ip(self) -> str:
        return f"10.{self.cloud}.0.{self.number}"

    @property
    def call_address(self) -> str:
        return f"tcp://127.0.0.1:{CALL_PORT + self.number}"


NODES = tuple(NodePlace(cloud, number) for cloud in CLOUDS for number in range(1, NODES_PER_CLOUD + 1))


def site_of(cloud: int) -> str:
    return f"c{cloud}"


def node_hosts() -> dict[str, str]:
    """Return the address of each node by its host name in the DNS."""
    return {node.name: node.ip for node in NODES}


def service_clouds() -> dict[str, tuple[int, ...]]:
    """Return the clouds of the instances of each service. Each third service has instances in two clouds."""
    found: dict[str, tuple[int, ...]] = {}
    for number in range(SERVICES):
        home = CLOUDS[number % len(CLOUDS)]
        second = CLOUDS[(number + 1) % len(CLOUDS)]
        found[f"wan.s{number:02}"] = (home, second) if number % 3 == 0 else (home,)
    return found


def services_of(cloud: int) -> list[str]:
    return [service for service, clouds in service_clouds().items() if cloud in clouds]


def usual_conditions(source: int, target: int) -> Conditions:
    """Return the conditions of a direction without a fault."""
    round_trip_ms = ROUND_TRIPS_MS[min(source, target), max(source, target)]
    return Conditions(delay_s=round_trip_ms / 2_000 - JITTER_S / 2, jitter_s=JITTER_S, loss=LOSS)
