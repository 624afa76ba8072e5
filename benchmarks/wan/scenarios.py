"""The faults. Each scenario starts with a calm network, calls and messages, and marks when the fault begins and ends."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from benchmarks.wan import layout
from benchmarks.wan.layout import CLOUDS, NODES
from benchmarks.wan.network import WanNetwork
from benchmarks.wan.run import DETECTION_S, Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A fault and the names of the checks in `targets` that apply. `after_s` is how long the network is watched at the end."""

    name: str
    summary: str
    play: Callable[[Run], Awaitable[None]]
    checks: tuple[str, ...]
    after_s: float = 20.0
    brokers: tuple[str, ...] = ("node", "nats", "nats-durable")


HEALED = ("one", "late", "storm", "doubled", "messages")
"""The checks of every fault that ends."""


REST_S = 90.0
"""Seconds without calls before the CPU time of a node at rest is measured."""


async def calm(run: Run) -> None:
    await run.sleep(40, 20)


async def measure_idle(run: Run) -> None:
    """Stop calls, messages and polling, and measure the CPU time and the wake-ups of the nodes at rest."""
    run.net.command_callers(active=False, poll_s=0)
    # Neither the end of the calls nor the search for the nearest nodes after the start belongs to a node at rest.
    await run.sleep(REST_S)
    nodes = run.net.nodes
    begin = {name: (process.cpu_s() or 0.0, process.wakeups()) for name, process in nodes.items()}
    started = time.monotonic()
    await run.sleep(40, 20)
    took_s = time.monotonic() - started
    end = {name: (process.cpu_s() or 0.0, process.wakeups()) for name, process in nodes.items()}
    run.facts["idle_cpu_percent"] = {name: round(100 * (end[name][0] - begin[name][0]) / took_s, 2) for name in nodes}
    run.facts["idle_wakeups_per_s"] = {name: round((end[name][1] - begin[name][1]) / took_s, 1) for name in nodes}
    run.net.command_callers(active=True, poll_s=1.0)
    await run.sleep(3)


def ordinary(net: WanNetwork, cloud: int) -> str:
    """Return a node of a cloud that is not its leading one."""
    leader = net.leader(cloud)
    return next(node.name for node in NODES if node.cloud == cloud and node.name != leader)


async def graceful_stop(run: Run) -> None:
    name = run.facts["node"] = ordinary(run.net, 2)
    run.fault()
    await run.net.stop_node(name)
    run.facts["stopped_after_s"] = round(time.monotonic() - run.fault_at, 1)
    await run.sleep(10)
    await run.net.start_node(name)
    run.heal()


async def rolling_restart(run: Run) -> None:
    clouds = CLOUDS[:2] if run.quick else CLOUDS
    run.fault()
    for node in (node for node in NODES if node.cloud in clouds):
        run.changed()
        await run.net.stop_node(node.name)
        await run.net.start_node(node.name)
        run.changed()
        await run.sleep(1)
    run.heal()


async def kill(run: Run, choose: Callable[[WanNetwork, int], str]) -> None:
    name = run.facts["node"] = choose(run.net, 2)
    run.fault()
    run.grace_s = DETECTION_S
    await run.net.stop_node(name, signal.SIGKILL)
    run.repairs.append(lambda: run.net.start_node(name))
    # The registry contains the node until its lease of 30 s ends.
    await run.sleep(20, 15)


async def stop_continue(run: Run) -> None:
    name = run.facts["node"] = ordinary(run.net, 2)
    run.fault()
    run.net.live.discard(name)
    run.net.nodes[name].send_signal(signal.SIGSTOP)
    await run.sleep(30, 20)
    run.net.nodes[name].send_signal(signal.SIGCONT)
    run.heal()
    run.net.live.add(name)


async def separate(run: Run, *, part: tuple[int, ...]) -> None:
    pairs = [(a, b) for a in CLOUDS for b in CLOUDS if (a in part) != (b in part)]
    run.apart.update(pairs)
    run.fault(await run.net.paths.change(pairs, is_cut=True))
    await run.sleep(60, 40)
    run.heal(await run.net.paths.change(pairs, is_cut=False))


async def one_way(run: Run) -> None:
    run.fault(await run.net.paths.change([(1, 2)], is_cut=True))
    await run.sleep(40, 20)
    run.heal(await run.net.paths.change([(1, 2)], is_cut=False))


async def flap(run: Run, *, period_s: float) -> None:
    pairs = [(1, 2), (2, 1)]
    end = time.monotonic() + (33 if run.quick else 66)
    run.fault()
    while time.monotonic() < end:
        await run.net.paths.change(pairs, is_cut=True)
        await run.sleep(period_s)
        await run.net.paths.change(pairs, is_cut=False)
        run.heal()
        if time.monotonic() < end:
            await run.sleep(period_s)


async def delay_jump(run: Run) -> None:
    run.fault(await run.net.paths.change_delay(1, 2, 0.4))
    await run.sleep(30, 20)
    run.heal(await run.net.paths.change_delay(1, 2, layout.ROUND_TRIPS_MS[1, 2] / 1_000))


async def recycling(run: Run) -> None:
    process = await run.net.start_extra("recycled", 3, "service_host", "3", "--recycle", "1.5")
    run.repairs.append(run.net.stop_extra)
    await process.ready()
    await run.sleep(10, 8)
    run.fault()
    process.send_signal(signal.SIGUSR1)
    await run.sleep(60, 30)
    run.heal()
    process.send_signal(signal.SIGUSR1)


async def overload(run: Run) -> None:
    node = next(node for node in NODES if node.cloud == 2)
    service = next(name for name, clouds in layout.service_clouds().items() if clouds == (4,))
    seconds = 10 if run.quick else 20
    run.repairs.append(run.net.stop_extra)
    flood = await run.net.start_extra("flood", 2, "flood", node.call_address, service, str(seconds))
    await flood.ready()
    run.fault()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        # The node gets a quarter of the processor time, however many cores the machine has.
        run.net.nodes[node.name].send_signal(signal.SIGSTOP)
        await run.sleep(0.3)
        run.net.nodes[node.name].send_signal(signal.SIGCONT)
        await run.sleep(0.1)
    run.heal()
    await flood.ready("{")
    run.facts["flood"] = json.loads(flood.lines()[-1])


async def narrow(run: Run, *, has_icmp: bool) -> None:
    pairs = [(a, b) for a in CLOUDS for b in CLOUDS if a != b and 2 in (a, b)]
    run.fault(await run.net.paths.change(pairs, mtu=1280, has_icmp=has_icmp))
    await run.sleep(40, 20)
    run.heal(await run.net.paths.change(pairs, mtu=0))


async def kill_server(run: Run, *, title: str, carries_messages: bool = False) -> None:
    if carries_messages:
        run.apart.update((a, b) for a in CLOUDS for b in CLOUDS if 2 in (a, b))
    run.fault()
    run.net.servers[title].kill()
    await run.sleep(20, 12)
    await run.net.restart_server(title)
    run.heal()


SCENARIOS = (
    Scenario(
        name="calm",
        summary="no fault",
        play=calm,
        checks=("failed", "lost", "doubled", "idle"),
        after_s=0.0,
    ),
    Scenario(
        name="graceful",
        summary="an ordinary node is stopped by SIGTERM and started again",
        play=graceful_stop,
        checks=("failed", *HEALED),
        after_s=15.0,
    ),
    Scenario(
        name="rolling",
        summary="all nodes are restarted one after the other (--quick: those of two clouds)",
        play=rolling_restart,
        checks=("failed", *HEALED),
        after_s=15.0,
    ),
    Scenario(
        name="kill",
        summary="kill -9 of an ordinary node",
        play=partial(kill, choose=ordinary),
        checks=HEALED,
    ),
    Scenario(
        name="kill-leader",
        summary="kill -9 of the leading node of a cloud (the least id)",
        play=partial(kill, choose=WanNetwork.leader),
        checks=(*HEALED, "span"),
    ),
    Scenario(
        name="stop",
        summary="an ordinary node is stopped by SIGSTOP for 30 s (--quick: 20 s) and continued",
        play=stop_continue,
        # Not "untouched": clients of the cloud try the frozen node again from time to time.
        checks=HEALED,
    ),
    Scenario(
        name="partition",
        summary="cloud 2 is cut off for 60 s (--quick: 40 s)",
        play=partial(separate, part=(2,)),
        checks=(*HEALED, "untouched"),
    ),
    Scenario(
        name="halves",
        summary="clouds 1, 2 and clouds 3, 4 are separated for 60 s (--quick: 40 s)",
        play=partial(separate, part=(1, 2)),
        checks=(*HEALED, "untouched"),
    ),
    Scenario(
        name="one-way",
        summary="all packets from cloud 1 to cloud 2 are lost",
        play=one_way,
        checks=(*HEALED, "untouched"),
    ),
    *(
        Scenario(
            name=f"flap-{period_s}",
            summary=f"the path between clouds 1 and 2 is cut for {period_s} s every {2 * period_s} s",
            play=partial(flap, period_s=period_s),
            checks=("one", "late", "storm", "doubled", "share"),
        )
        for period_s in (3, 5, 11)
    ),
    Scenario(
        name="delay",
        summary="the round trip between clouds 1 and 2 jumps from 40 to 400 ms; over cloud 3 it is 140 ms",
        play=delay_jump,
        checks=("failed", "left", *HEALED),
        after_s=12.0,
    ),
    Scenario(
        name="recycling",
        summary="20 instances in cloud 3 are replaced one after the other",
        play=recycling,
        checks=("failed", "elsewhere", "doubled", "messages"),
        after_s=8.0,
    ),
    Scenario(
        name="overload",
        summary="one node of cloud 2 gets a quarter of a core, and a client keeps 200 calls open through it",
        play=overload,
        checks=HEALED,
    ),
    Scenario(
        name="mtu",
        summary="packets above 1280 bytes from and to cloud 2 vanish without ICMP",
        play=partial(narrow, has_icmp=False),
        checks=HEALED,
    ),
    Scenario(
        name="mtu-icmp",
        summary="packets above 1280 bytes from and to cloud 2 are refused with an ICMP message",
        play=partial(narrow, has_icmp=True),
        checks=HEALED,
    ),
    Scenario(
        name="redis",
        summary="the Redis of cloud 2 is killed and comes back empty",
        play=partial(kill_server, title="redis-c2"),
        checks=("failed", *HEALED),
        after_s=15.0,
    ),
    Scenario(
        name="nats",
        summary="the NATS server of cloud 2 is killed and comes back",
        play=partial(kill_server, title="nats-c2", carries_messages=True),
        checks=("failed", *HEALED),
        after_s=15.0,
        brokers=("nats", "nats-durable"),
    ),
)
