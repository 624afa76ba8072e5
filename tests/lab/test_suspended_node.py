"""A node that is stopped for a while and continues, and paths that lose large datagrams."""

from __future__ import annotations

import asyncio

from micro_core import Service
from micro_core.lab import loop
from micro_core.lab.monitor import Monitor
from micro_core.lab.net import Lab
from micro_core.lab.options import LabOptions
from micro_core.lab.process import CpuModel
from micro_core.lab.topologies import flat, four_clouds
from micro_core.lab.traffic import DETECTION_S, Calls, worker


async def failures_around_sleep(seed: int) -> tuple[int, int, int]:
    """Return the failed calls (while the node sleeps, in the 8 s after it continued), and all calls in these 8 s."""
    lab = Lab(seed, options=LabOptions(keep_log=False, cpu=CpuModel(speed=1 / 4)))
    groups = await four_clouds(lab, 2)
    nodes = flat(groups)
    for node in nodes:
        await node.serve(worker(f"svc.{node.name}", node.site))
    await lab.advance_time(12)
    pairs = [(one, f"svc.{other.name}") for one in nodes for other in nodes if one.site != other.site]
    calls = Calls(lab, pairs, per_s=20)
    await lab.advance_time(3)
    # The node with the most links, so that many routes lead through it.
    sleeper = max(nodes, key=lambda node: (len(node.node.network.links()), node.name))
    sleeper.sleep(30.0)
    asleep_at = lab.now
    await lab.advance_time(30)
    awake_at = lab.now
    await lab.advance_time(8)
    await calls.stop()
    others = [one for one in calls.failed() if not one.caller.startswith(sleeper.site)]
    result = (
        sum(asleep_at + DETECTION_S <= one.began_at < awake_at for one in others),
        sum(one.began_at >= awake_at for one in others),
        calls.count(awake_at),
    )
    await lab.close()
    return result


def test_node_that_continues_after_a_stop_fails_no_calls_of_other_sites() -> None:
    asleep, after, count = loop.run(failures_around_sleep(1))
    assert after == 0, f"{after} of {count} calls failed after the node continued, {asleep} while it was stopped"


def once(name: str) -> Service:
    """Return a service whose calls are not repeated if a link breaks."""
    service = Service(name)

    @service.endpoint("Do.Once")
    async def do() -> str:
        return name

    return service


async def test_call_that_arrived_before_the_node_noticed_its_stop_waits_for_a_route(micro_net: Lab) -> None:
    _, sleeper, _, serving = await micro_net.line(4)
    await serving.serve(once("svc.once"))
    await micro_net.converged()
    assert await sleeper.call("svc.once", "Do.Once") == "svc.once"
    sleeper.sleep(8.0)
    # The request is processed before the timers of the node, as in a real event loop.
    await micro_net.advance_time(0.01)
    answers = [asyncio.ensure_future(sleeper.call("svc.once", "Do.Once", timeout_s=20.0, retries=0))]
    for _ in range(4):
        await micro_net.advance_time(2.0)
        answers += [asyncio.ensure_future(sleeper.call("svc.once", "Do.Once", timeout_s=20.0, retries=0))]
    await micro_net.advance_time(2.0)
    assert [answer.result() for answer in answers] == ["svc.once"] * 5
    assert sleeper.counted("tunnel_suspensions") == 1


async def test_node_that_continues_advertises_its_offers_as_a_later_incarnation(micro_net: Lab) -> None:
    other, sleeper, _ = await micro_net.line(3)
    await sleeper.serve(once("svc.once"))
    await micro_net.converged()
    before = sleeper.node.network.record.incarnation
    sleeper.sleep(8.0)
    await micro_net.advance_time(10.0)
    after = sleeper.node.network.record.incarnation
    assert after > before
    assert other.node.router._engine._rib.entries[sleeper.id].newest_seqno[0] == after
    assert await other.call("svc.once", "Do.Once", retries=0) == "svc.once"


LARGE = "svc.large"


def large_worker() -> Service:
    service = Service(LARGE)

    async def do() -> str:
        return "x" * 8_000

    service.endpoint("Do.Large", idempotent=True)(do)
    return service


async def shrink(seed: int) -> tuple[int, float, int]:
    """Return (lost links, seconds until the nodes are calm, failed calls)."""
    lab = Lab(seed, options=LabOptions(keep_log=False, cpu=CpuModel(speed=1 / 4)))
    groups = await four_clouds(lab, 2)
    nodes = flat(groups)
    for node in nodes:
        await node.serve(worker(f"svc.{node.name}", node.site))
    await nodes[0].serve(large_worker())
    await lab.advance_time(12)
    monitor = Monitor(lab)
    pairs = [(one, f"svc.{other.name}") for one in nodes for other in nodes if one.site != other.site]
    calls = Calls(lab, pairs, per_s=10)
    await lab.advance_time(2)
    began_at = lab.now
    for one in groups[0]:
        for other in flat(groups[1:]):
            lab.shrink_path(one, other, 1_280)
    # Their answers leave the first cloud over each of its links.
    answers = await asyncio.gather(*(node.call(LARGE, "Do.Large", timeout_s=5.0) for node in flat(groups[1:])))
    assert [len(answer) for answer in answers] == [8_000] * len(flat(groups[1:]))
    await lab.advance_time(DETECTION_S + 6.0)
    await calls.stop()
    await monitor.stop()
    result = lab.counted("tunnel_links_dead"), monitor.calm_after_s(began_at + DETECTION_S), len(calls.unexplained())
    await lab.close()
    return result


def test_smaller_datagrams_on_some_paths_cost_no_link_and_set_off_no_storm() -> None:
    lost, calm_after_s, failed = loop.run(shrink(1))
    assert lost == 0
    assert failed == 0
    assert calm_after_s <= 3.0
