"""The main job with real processes: nodes, services and the CLI over real sockets."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]
GREETER = "go.micro.srv.greeter"
GREETER_SOURCE = (ROOT / "examples" / "greeter.py").read_text()
PROXY = {"MICRO_PROXY": "go.micro.network"}

pytestmark = pytest.mark.timeout(120)


def services(lab: Any, site: Any) -> set[str]:
    return {entry["service"] for entry in lab.json(site, "network", "services")["services"]}


def routes(lab: Any, site: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = lab.json(site, "network", "routes", "--service", GREETER)["routes"]
    return found


def has_greeter(lab: Any, site: Any) -> Callable[[], bool]:
    return lambda: GREETER in services(lab, site)


def test_a_service_on_one_site_is_called_by_name_from_another(lab: Any) -> None:
    eu = lab.site("eu")
    us = lab.site("us", joins=[eu])
    lab.node(eu)
    lab.node(us)
    lab.python("greeter", eu, GREETER_SOURCE)
    lab.until(has_greeter(lab, us), "us knows the greeter")

    answer = lab.micro(us, "call", GREETER, "Say.Hello", '{"name": "John"}', **PROXY)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.strip() == '{"msg": "Hello John"}'

    connections = lab.json(us, "network", "connections")["connections"]
    assert [link["name"] for link in connections] == ["eu-1"]
    assert connections[0]["driver"] == "quic"
    assert {node["name"] for node in lab.json(us, "network", "nodes")["nodes"]} == {"eu-1", "us-1"}
    (route,) = routes(lab, us)
    assert route["link"] == "network"
    assert route["metric"] > 0


def test_a_line_of_three_carries_calls_and_forgets_the_far_end_within_five_seconds_of_a_kill(lab: Any) -> None:
    a = lab.site("a")
    b = lab.site("b", joins=[a])
    c = lab.site("c", joins=[b], extra="target_links = 1")
    lab.node(a)
    middle = lab.node(b)
    lab.node(c, "--set", "node.target_links=1")
    lab.python("greeter", a, GREETER_SOURCE)
    lab.until(has_greeter(lab, c), "c knows the greeter")

    answer = lab.micro(c, "call", GREETER, "Say.Hello", '{"name": "line"}', **PROXY)
    assert json.loads(answer.stdout) == {"msg": "Hello line"}
    lab.until(has_greeter(lab, b), "b knows the greeter")
    (at_c,), (at_b,) = routes(lab, c), routes(lab, b)
    assert at_c["hops"] == 2
    assert at_b["hops"] == 1
    assert at_c["metric"] > at_b["metric"]

    killed_at = time.time()
    middle.kill()
    lab.until(lambda: not routes(lab, c), "c has forgotten the greeter")
    # When it did, by its own record: what asking takes on a busy machine does not count.
    told = [json.loads(line) for line in lab.micro(c, "network", "events", "--json").stdout.splitlines()]
    (gone,) = [event for event in told if (event["service"], event["kind"]) == (GREETER, "deleted")]
    assert gone["at"] - killed_at < 5.0
    refused = lab.micro(c, "call", GREETER, "Say.Hello", '{"name": "gone"}', **PROXY)
    assert refused.returncode == 4
    assert "no route to go.micro.srv.greeter" in refused.stderr
    assert "c-1" in refused.stderr


def test_a_node_that_only_dials_out_serves_those_it_dialled(lab: Any) -> None:
    cloud = lab.site("cloud")
    laptop = lab.site("laptop", joins=[cloud], listens=False)
    lab.node(cloud)
    lab.node(laptop)
    lab.python("greeter", laptop, GREETER_SOURCE)
    lab.until(has_greeter(lab, cloud), "the cloud knows the laptop's greeter")
    answer = lab.micro(cloud, "call", GREETER, "Say.Hello", '{"name": "cloud"}', **PROXY)
    assert json.loads(answer.stdout) == {"msg": "Hello cloud"}


SUBSCRIBER = """
import asyncio
from micro_core import Service

service = Service("listener.{site}.{number}")

@service.subscriber("orders.created")
async def on_order(order: dict) -> None:
    print("got", order["number"], flush=True)

service.run()
"""


def test_a_published_message_reaches_every_subscriber_on_every_site_exactly_once(lab: Any) -> None:
    a = lab.site("a")
    b = lab.site("b", joins=[a])
    c = lab.site("c", joins=[a, b])
    sites = [a, b, c]
    for site in sites:
        lab.node(site)
    listeners = [
        lab.python(f"listener-{site.name}-{number}", site, SUBSCRIBER.format(site=site.name, number=number))
        for site in sites
        for number in range(2)
    ]
    lab.until(
        lambda: all(len(lab.json(site, "network", "status")["topics"]) == 1 for site in sites),
        "every node carries the topic",
    )
    for number in range(20):
        published = lab.micro(sites[number % 3], "publish", "orders.created", json.dumps({"number": number}), **PROXY)
        assert published.returncode == 0, published.stderr
    expected = sorted(f"got {number}" for number in range(20))
    for listener in listeners:
        listener.wait_for(lambda lines: sum(line.startswith("got") for line in lines) >= 20)
    # A copy too many would be on its way already: one more round trip through every node flushes it out.
    assert lab.micro(a, "publish", "orders.created", '{"number": 99}', **PROXY).returncode == 0
    for listener in listeners:
        listener.wait_for(lambda lines: "got 99" in lines)
        assert sorted(line for line in listener.lines if line.startswith("got") and line != "got 99") == expected


def test_a_site_without_subscribers_gets_no_message(lab: Any) -> None:
    a = lab.site("a")
    b = lab.site("b", joins=[a])
    c = lab.site("c", joins=[a])
    for site in (a, b, c):
        lab.node(site)
    listener = lab.python("listener", b, SUBSCRIBER.format(site="b", number=0))
    lab.until(lambda: bool(lab.json(a, "network", "status")["topics"]), "a carries the topic")
    assert lab.micro(a, "publish", "orders.created", '{"number": 1}', **PROXY).returncode == 0
    listener.wait_for(lambda lines: "got 1" in lines)
    counters = lab.json(c, "network", "status")["counters"]
    assert not counters.get("topics_messages_delivered")


def test_a_restarted_service_is_found_again_and_a_drained_one_refuses_nobody(lab: Any) -> None:
    eu = lab.site("eu")
    us = lab.site("us", joins=[eu])
    lab.node(eu)
    lab.node(us)
    first = lab.python("greeter-1", eu, GREETER_SOURCE)
    lab.until(has_greeter(lab, us), "us knows the greeter")
    lab.python("greeter-2", eu, GREETER_SOURCE)
    lab.until(lambda: len(routes(lab, eu)) == 2, "eu knows both")
    assert first.stop() == 0
    for _ in range(5):
        answer = lab.micro(us, "call", GREETER, "Say.Hello", '{"name": "again"}', **PROXY)
        assert answer.returncode == 0, answer.stderr


def test_core_alone_is_a_network_of_one_machine(lab: Any) -> None:
    here = lab.site("here", plugins=())
    lab.node(here)
    lab.python("greeter", here, GREETER_SOURCE)
    direct = lab.micro(here, "call", GREETER, "Say.Hello", '{"name": "direct"}')
    assert json.loads(direct.stdout) == {"msg": "Hello direct"}
    lab.until(has_greeter(lab, here), "the node knows the greeter")
    proxied = lab.micro(here, "call", GREETER, "Say.Hello", '{"name": "proxied"}', **PROXY)
    assert json.loads(proxied.stdout) == {"msg": "Hello proxied"}


def test_an_unknown_service_is_not_found_at_once(lab: Any) -> None:
    here = lab.site("here", plugins=())
    lab.node(here)
    started = time.monotonic()
    refused = lab.micro(here, "call", "no.such.service", "Say.Hello", "{}", **PROXY)
    assert refused.returncode == 4
    assert time.monotonic() - started < 8.0


def test_nodes_of_different_networks_do_not_mix(lab: Any) -> None:
    a = lab.site("a")
    b = lab.site("b", joins=[a], extra='network = "another"')
    lab.node(a)
    other = lab.node(b)
    other.wait_for(lambda lines: any("network" in line and "cannot link" in line for line in lines))
    assert lab.json(a, "network", "connections")["connections"] == []


def test_a_node_with_another_token_is_let_in_nowhere_and_both_sides_can_see_why(lab: Any) -> None:
    a = lab.site("a")
    b = lab.site("b", joins=[a], extra='token = "another-token-altogether"')
    node = lab.node(a, "--set", "node.log=info")
    stranger = lab.node(b)
    stranger.wait_for(lambda lines: any("does not hold the token" in line and "MICRO_TOKEN" in line for line in lines))
    node.wait_for(lambda lines: any("link refused" in line and "token" in line for line in lines))
    assert lab.json(a, "network", "connections")["connections"] == []
    assert lab.json(b, "network", "connections")["connections"] == []


def test_the_demo_ends_by_itself_with_the_article_s_answer() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "demo.py")], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert '{"msg": "Hello John"}' in done.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_demo_that_is_ended_takes_down_what_it_started(number: signal.Signals) -> None:
    program = f"import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); runpy.run_path({str(ROOT / 'examples' / 'demo.py')!r}, run_name='__main__')"
    with tempfile.TemporaryDirectory(prefix="micro-") as directory:
        demo = subprocess.Popen(
            [sys.executable, "-c", program],
            env={**os.environ, "TMPDIR": directory, "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        assert demo.stdout is not None
        for line in demo.stdout:
            if "ready" in line:
                break
        demo.send_signal(number)
        said, _ = demo.communicate(timeout=40)
        assert demo.returncode == 130, said
        assert list(Path(directory).iterdir()) == []
        # Whoever is left of its session would still be in its process group.
        with pytest.raises(ProcessLookupError):
            os.killpg(demo.pid, 0)
