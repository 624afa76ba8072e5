"""The loss of TCP segments as the kernel counts it."""

from __future__ import annotations

import struct
import sys
from typing import TYPE_CHECKING, Any

import pytest
from micro_tls_tunnel import link as link_module
from micro_tls_tunnel.loss import INFO_BYTES, LossMeter

if TYPE_CHECKING:
    from plugins.tls_tunnel.tests.conftest import Node


def info(retransmitted: int, sent: int, unnecessary: int = 0) -> bytes:
    """Return a `struct tcp_info` with three counts."""
    content = bytearray(INFO_BYTES)
    for offset, value in ((100, retransmitted), (156, sent), (216, unnecessary)):
        struct.pack_into("=I", content, offset, value)
    return bytes(content)


def test_loss_is_the_share_of_sent_segments_that_were_retransmitted() -> None:
    meter = LossMeter()
    for second in range(60):
        meter.add(info(10 * second, 100 * second), float(second))
    assert meter.share() == pytest.approx(0.1, abs=0.005)


def test_segments_that_the_peer_received_twice_were_not_lost() -> None:
    meter = LossMeter()
    for second in range(60):
        meter.add(info(10 * second, 100 * second, 10 * max(0, second - 1)), float(second))
    assert meter.share() < 0.01


def test_loss_decreases_when_the_path_is_good_again() -> None:
    meter = LossMeter()
    meter.add(info(0, 0), 0.0)
    meter.add(info(100, 1_000), 10.0)
    before = meter.share()
    for second in range(1, 31):
        meter.add(info(100, 1_000 + 100 * second), 10.0 + second)
    assert before == pytest.approx(0.1, abs=0.01)
    assert meter.share() < 0.01


def test_one_lost_segment_of_a_calm_link_is_a_few_percent_at_most() -> None:
    meter = LossMeter()
    shares = []
    for second in range(120):
        meter.add(info(int(second >= 60), second), float(second))
        shares.append(meter.share())
    assert 0.01 < max(shares) < 0.05
    assert shares[-1] < max(shares) / 2


@pytest.mark.skipif(sys.platform != "linux", reason="needs TCP_INFO of Linux")
async def test_link_reports_the_loss_that_the_kernel_counts(
    pair: tuple[Node, Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    near, far = await pair[0].dial(pair[1])
    near.link.write(0, bytes(300_000))
    await far.until(lambda: len(far.received) == 300_000)
    link: Any = near.link
    assert 0.0 <= link.transport_loss() < 0.05
    assert link._loss_meter._counts[1] > 5, "segments were sent"
    monkeypatch.setattr(link_module, "tcp_info", lambda _: info(200, 1_000))
    assert link.transport_loss() < 0.05, "the kernel is queried once per second"
    monkeypatch.setattr(LossMeter, "is_due", lambda *_: True)
    assert link.transport_loss() > 0.1


async def test_loss_is_unknown_on_a_system_without_the_counts(
    pair: tuple[Node, Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    near, _ = await pair[0].dial(pair[1])
    monkeypatch.setattr(link_module, "tcp_info", lambda _: None)
    link: Any = near.link
    assert link.transport_loss() is None
