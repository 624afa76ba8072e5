"""A node that gives up a link, e.g. for a nearer node, interrupts no call, no stream and no message."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence

import pytest

from micro_core import Service
from micro_core.contract.errors import MicroError
from micro_core.lab import loop
from micro_core.lab.lab_node import LabNode
from micro_core.lab.net import Lab
from micro_core.lab.options import LabOptions
from micro_core.lab.topologies import CLOUD_RTTS_S, flat, four_clouds, set_cloud_paths
from micro_core.lab.traffic import ENDPOINT, Calls, Messages
from micro_core.network.link_targets import PeerOptions
from micro_core.wire.header import CallMode

pytestmark = pytest.mark.timeout(240)  # each test takes several seconds of processor time, and the machine may be busy

EXCHANGE_S = 5.0
LONG_S = 8.0
ITEMS = 15
ITEM_S = 1.0
"""A stream takes 15 s: the time to drain a link, and a good part of the time for which its sessions may continue."""

STREAMS_S = 0.5
"""Pause between two new streams."""

COUNT = "Work.Count"
TOPIC = "go.micro.evt.given-up"


def long_worker(name: str, duration_s: float) -> Service:
    """Return a service whose calls take `duration_s` and are not repeated if a link breaks."""
    service = Service(name)

    async def do() -> str:
        await asyncio.sleep(duration_s)
        return name

    async def count() -> AsyncIterator[int]:
        for number in range(ITEMS):
            await asyncio.sleep(ITEM_S)
            yield number

    service.endpoint(ENDPOINT)(do)
    service.endpoint(COUNT)(count)
    return service


class Streams:
    """Opens streams to services in turn, and records those that are not complete."""

    def __init__(self, lab: Lab, pairs: Sequence[tuple[LabNode, str]]) -> None:
        self.failures: list[str] = []
        self.completed = 0
        self._lab = lab
        self._pairs = itertools.cycle(pairs)
        self._streams: set[asyncio.Task[None]] = set()
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Open no more streams, and wait for those that are open."""
        self._task.cancel()
        await asyncio.wait([self._task, *self._streams])

    async def _run(self) -> None:
        while True:
            self._streams.add(asyncio.get_running_loop().create_task(self._receive(*next(self._pairs))))
            await asyncio.sleep(STREAMS_S)

    async def _receive(self, caller: LabNode, service: str) -> None:
        began_at, items = self._lab.now, 0
        try:
            async with await caller.stream(service, COUNT, mode=CallMode.SERVER_STREAM) as stream:
                async for _ in stream:
                    items += 1
        except MicroError as error:
            self.failures.append(f"{began_at:.3f} {caller.name} {service} after {items} items: {error}")
            return
        assert items == ITEMS
        self.completed += 1


async def traffic_while_links_are_given_up(peers: PeerOptions, seed: int = 1) -> tuple[list[str], int]:
    """Make near clouds distant and distant ones near, so that links are exchanged.

    Returns failed calls and streams and lost messages, and the number of links that were given up.
    """
    lab = Lab(seed, options=LabOptions(keep_log=False, peers=peers))
    groups = await four_clouds(lab)
    nodes = flat(groups)
    for number, group in enumerate(groups):
        await group[0].serve(long_worker(f"svc.short-{number}", 0.02))
        await group[1].serve(long_worker(f"svc.long-{number}", LONG_S))
    messages = Messages(lab, TOPIC)
    for group in groups:
        await messages.subscribe(group[0])
    await lab.advance_time(25)
    began_at, before = lab.now, lab.counted("network_links_given_up")
    short = Calls(lab, [(node, f"svc.short-{cloud}") for node in nodes for cloud in range(4)], per_s=12, retries=0)
    to_long = [(node, f"svc.long-{cloud}") for node in nodes for cloud in range(4)]
    long = Calls(lab, to_long, per_s=4, timeout_s=25, retries=0)
    streams = Streams(lab, to_long)
    messages.publish_from([group[2] for group in groups], per_s=5)
    farthest_s = max(CLOUD_RTTS_S.values()) + min(CLOUD_RTTS_S.values())
    sites = [group[0].site for group in groups]
    for number in range(2):
        reversed_s = {pair: farthest_s - rtt_s for pair, rtt_s in CLOUD_RTTS_S.items()}
        set_cloud_paths(lab, sites, CLOUD_RTTS_S if number % 2 else reversed_s)
        await lab.advance_time(25)
    ended_at = lab.now
    for traffic in (short, long, streams, messages):
        await traffic.stop()
    given_up = lab.counted("network_links_given_up") - before
    assert streams.completed > 40
    assert not lab.counted("tunnel_links_retired_in_use")
    failed = [str(one) for calls in (short, long) for one in calls.failed(began_at)]
    lost = [f"{at:.3f} {message} {subscriber}" for at, message, subscriber in messages.lost(began_at, ended_at - 5)]
    await lab.close()
    return failed + streams.failures + lost, given_up


def test_exchange_of_links_fails_no_call_and_no_stream_and_loses_no_message() -> None:
    failed, given_up = loop.run(traffic_while_links_are_given_up(PeerOptions(exchange_s=EXCHANGE_S)))
    assert given_up >= 4, "the scenario exchanges links"
    assert not failed, failed[:5]


def test_limit_of_links_fails_no_call_and_no_stream_and_loses_no_message() -> None:
    failed, given_up = loop.run(traffic_while_links_are_given_up(PeerOptions(exchange_s=EXCHANGE_S, max_links=5)))
    assert given_up >= 4, "links above the limit are given up"
    assert not failed, failed[:5]
