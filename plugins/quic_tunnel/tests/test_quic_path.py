"""Two connections over a simulated path, on virtual time: measured loss, and a path whose MTU shrinks."""

from __future__ import annotations

import heapq
import random
import ssl
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import pytest
from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from micro_quic_tunnel.black_hole import BURST_PACKETS, TIMEOUTS, BlackHoleDetector
from micro_quic_tunnel.certificate import NAME, make_certificate
from micro_quic_tunnel.congestion import PREFIX
from micro_quic_tunnel.connection import LaneConnection
from micro_quic_tunnel.loss import LossMeter

LARGE_BYTES = 1_452
SMALL_BYTES = 1_200
ADDRESS = ("192.0.2.1", 8_085)


@dataclass
class Path:
    """One dialling and one accepting connection, and the path between them, which drops what `drops` selects."""

    delay_s: float = 0.040
    congestion: str = "cubic"
    now: float = 100.0
    drops: Callable[[bytes], bool] = lambda data: False
    received: list[dict[int, bytearray]] = field(default_factory=lambda: [{}, {}])
    """By end and stream, without the gaps."""
    _queue: list[tuple[float, int, int, bytes]] = field(default_factory=list)
    _sent: int = 0

    def __post_init__(self) -> None:
        certificate, key = make_certificate()
        client = QuicConfiguration(
            alpn_protocols=["test"],
            congestion_control_algorithm=PREFIX + self.congestion,
            max_datagram_size=LARGE_BYTES,
            server_name=NAME,
            verify_mode=ssl.CERT_NONE,
        )
        server = QuicConfiguration(
            alpn_protocols=["test"],
            is_client=False,
            congestion_control_algorithm=PREFIX + self.congestion,
            max_datagram_size=LARGE_BYTES,
        )
        server.certificate, server.private_key = certificate, key
        dialing = LaneConnection(configuration=client, ack_delay_s=0.004)
        dialing.connect(ADDRESS, now=self.now)
        accepting = LaneConnection(
            configuration=server,
            ack_delay_s=0.004,
            original_destination_connection_id=dialing.original_destination_connection_id,
        )
        self.ends = (dialing, accepting)
        for stream in (0, 4, 8, 12):
            dialing.send_stream_data(stream, b"x")
        self.run(1.0)
        self.received = [{}, {}]
        assert all(end._handshake_confirmed for end in self.ends)

    def write(self, end: int, stream: int, count: int) -> None:
        self.ends[end].send_stream_data(stream, bytes(count))
        self._flush(end)

    def run(self, seconds: float) -> None:
        """Let virtual time pass."""
        until = self.now + seconds
        for end in (0, 1):
            self._flush(end)
        while True:
            started = [end for end in (0, 1) if self._has_started(end)]
            timers = [(timer, end) for end in started if (timer := self.ends[end].get_timer()) is not None]
            moments = [moment for moment, _ in timers] + ([self._queue[0][0]] if self._queue else [])
            if not moments or min(moments) > until:
                break
            self.now = max(self.now, min(moments))
            if self._queue and self._queue[0][0] <= self.now:
                _, _, end, data = heapq.heappop(self._queue)
                self.ends[end].receive_datagram(data, ADDRESS, now=self.now)
            else:
                _, end = min(timers)
                self.ends[end].handle_timer(now=self.now)
            self._flush(end)
        self.now = until

    def count(self, end: int, stream: int) -> int:
        """Return how many bytes of a stream have arrived at an end."""
        return len(self.received[end].get(stream, b""))

    def _has_started(self, end: int) -> bool:
        return bool(self.ends[end]._network_paths)

    def _flush(self, end: int) -> None:
        connection = self.ends[end]
        if not self._has_started(end):
            return
        while (event := connection.next_event()) is not None:
            if isinstance(event, events.StreamDataReceived):
                self.received[end].setdefault(event.stream_id, bytearray()).extend(event.data)
        for data, _ in connection.datagrams_to_send(now=self.now):
            if not self.drops(data):
                self._sent += 1
                heapq.heappush(self._queue, (self.now + self.delay_s, self._sent, 1 - end, data))


def drop_large(data: bytes) -> bool:
    return len(data) > 1_252


def drop_share(share: float, seed: int = 1) -> Callable[[bytes], bool]:
    source = random.Random(seed)
    return lambda data: source.random() < share


# ------------------------------------------------------------------------ loss


@pytest.mark.parametrize("congestion", ["cubic", "reno"])
@pytest.mark.parametrize("share", [0.05, 0.20, 0.40])
def test_loss_of_a_calm_link_is_measured_at_both_ends(share: float, congestion: str) -> None:
    path = Path(congestion=congestion)
    assert path.ends[0].lost_share() == 0.0
    path.drops = drop_share(share)
    measured: list[float] = []
    for number in range(200):
        # One ping and its answer per second, as core sends them.
        path.write(0, 0, 20)
        path.run(0.1)
        path.write(1, 0, 20)
        path.run(0.9)
        if number >= 30:
            measured += [end.lost_share() or 0.0 for end in path.ends]
    assert sum(measured) / len(measured) == pytest.approx(share, rel=0.25)


def test_loss_under_load_is_measured_and_forgotten_within_two_minutes() -> None:
    path = Path()
    path.drops = drop_share(0.20)
    for _ in range(60):
        path.write(0, 4, 20_000)
        path.run(0.5)
    assert path.ends[0].lost_share() == pytest.approx(0.20, abs=0.06)
    path.drops = drop_share(0.0)
    for _ in range(120):
        path.write(0, 0, 20)
        path.run(1.0)
    assert (path.ends[0].lost_share() or 0.0) < 0.02


def test_path_that_becomes_slower_loses_nothing() -> None:
    path = Path()
    for _ in range(20):
        path.write(0, 0, 20)
        path.run(1.0)
    path.delay_s = 0.400
    for _ in range(20):
        path.write(0, 0, 20)
        path.run(1.0)
    assert (path.ends[0].lost_share() or 0.0) < 0.02, "late is not lost"


def test_single_lost_packet_of_a_calm_link_is_about_three_percent() -> None:
    meter = LossMeter()
    for second in range(60):
        meter.acknowledged(float(second))
    meter.lost(60.0)
    assert meter.share() == pytest.approx(1 / 33, abs=0.001)
    meter.arrived_after_all()
    assert meter.share() == 0.0


# ------------------------------------------------------------------------- MTU


@pytest.mark.parametrize("delay_s", [0.002, 0.040, 0.100])
@pytest.mark.parametrize("write_bytes", [1_400, 8_000, 200_000])
def test_large_data_arrives_after_the_path_stopped_carrying_large_datagrams(delay_s: float, write_bytes: int) -> None:
    path = Path(delay_s=delay_s)
    path.write(0, 4, write_bytes)
    path.run(5.0)
    assert path.count(1, 4) == write_bytes
    path.drops = drop_large
    path.write(0, 4, write_bytes)
    waited_s, longest_s = 0.0, 0.0
    for beat in range(200):
        before = path.count(1, 4) + path.count(1, 0)
        if beat % 10 == 0:
            path.write(0, 0, 20)
        path.run(0.1)
        waited_s = 0.0 if path.count(1, 4) + path.count(1, 0) > before else waited_s + 0.1
        longest_s = max(longest_s, waited_s)
        if path.count(1, 4) == 2 * write_bytes:
            break
    assert path.count(1, 4) == 2 * write_bytes
    assert longest_s < 2.0, "core would end the link after 3 s of silence"
    for _ in range(10):
        path.write(0, 4, write_bytes)
        path.run(2.0)
    assert path.ends[0].has_fallen_back
    assert not path.ends[1].has_fallen_back, "each end judges its own direction"
    assert path.count(1, 4) == 12 * write_bytes


def test_small_calls_are_delayed_by_at_most_a_second_while_large_ones_vanish() -> None:
    path = Path()
    path.drops = drop_large
    path.write(0, 12, 100_000)
    slowest_s = 0.0
    for number in range(1, 51):
        path.write(0, 4, 100)
        for step in range(100):
            if path.count(1, 4) == 100 * number:
                slowest_s = max(slowest_s, 0.02 * step)
                break
            path.run(0.02)
        assert path.count(1, 4) == 100 * number
    assert slowest_s < 1.0


@pytest.mark.parametrize("outage_s", [0.2, 1.0, 2.5])
def test_outage_of_the_whole_path_keeps_large_datagrams(outage_s: float) -> None:
    path = Path()
    for _ in range(5):
        path.drops = drop_share(1.0)
        path.write(0, 4, 20_000)
        path.run(outage_s)
        path.drops = drop_share(0.0)
        path.run(5.0)
        path.write(0, 4, 20_000)
        path.run(1.0)
    assert path.count(1, 4) == 10 * 20_000
    assert not path.ends[0].has_fallen_back
    assert path.ends[0]._max_datagram_size == LARGE_BYTES


def test_loss_of_one_percent_keeps_large_datagrams() -> None:
    path = Path(delay_s=0.010)
    path.drops = drop_share(0.01)
    for _ in range(100):
        path.write(0, 4, 20_000)
        path.run(0.5)
    assert not path.ends[0].has_fallen_back


def test_loss_of_a_fifth_loses_no_data_whatever_the_datagram_size() -> None:
    path = Path(delay_s=0.010)
    path.drops = drop_share(0.20)
    for _ in range(100):
        path.write(0, 4, 20_000)
        path.run(0.5)
    path.run(60.0)
    assert path.count(1, 4) == 100 * 20_000


def feed(detector: BlackHoleDetector, steps: Iterable[tuple[str, int, int]]) -> bool:
    for name, number, size in steps:
        getattr(detector, name)(number, size)
    return detector.is_black_hole()


def test_burst_of_large_losses_among_arriving_small_packets_is_a_black_hole() -> None:
    large = [("lost", 10 * number, LARGE_BYTES) for number in range(BURST_PACKETS)]
    assert not feed(BlackHoleDetector(SMALL_BYTES), large), "an outage loses large ones, too"
    assert not feed(BlackHoleDetector(SMALL_BYTES), [*large, ("acknowledged", 500, 100)]), "after the outage"
    assert feed(BlackHoleDetector(SMALL_BYTES), [*large, ("acknowledged", 55, 100)])
    assert not feed(
        BlackHoleDetector(SMALL_BYTES), [*large, ("acknowledged", 55, 100), ("acknowledged", 56, LARGE_BYTES)]
    )
    small = [("lost", 10 * number, SMALL_BYTES) for number in range(BURST_PACKETS)]
    assert not feed(BlackHoleDetector(SMALL_BYTES), [*small, ("acknowledged", 55, 100)])


def test_repeated_timeouts_are_a_black_hole_and_one_long_outage_is_not() -> None:
    detector = BlackHoleDetector(SMALL_BYTES)
    assert not feed(detector, [("timed_out", number, LARGE_BYTES) for number in range(8)])
    assert detector.is_probing
    assert not feed(detector, [("acknowledged", 20, 100)])
    for _ in range(TIMEOUTS - 1):
        assert not detector.is_black_hole()
        feed(detector, [("timed_out", 30, LARGE_BYTES), ("acknowledged", 31, 100)])
    assert detector.is_black_hole()
