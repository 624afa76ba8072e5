"""Calls and messages across sites, with nodes, services and commands as real processes."""

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


def test_service_is_called_by_name_from_another_site(lab: Any) -> None:
    eu = lab.site("eu")
    us = lab.site("us", joins=[eu])
    lab.node(eu)
    lab.node(us)
    lab.python("greeter", eu, GREETER_SOURCE)
    lab.until(has_greeter(lab, us), "us has a route to the greeter")

    result = lab.micro(us, "call", GREETER, "Say.Hello", '{"name": "John"}', **PROXY)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == '{"msg": "Hello John"}'

    connections = lab.json(us, "network", "connections")["connections"]
    assert [link["name"] for link in connections] == ["eu-1"]
    assert connections[0]["driver"] == "quic"
    assert {node["name"] for node in lab.json(us, "network", "nodes")["nodes"]} == {"eu-1", "us-1"}
    (route,) = routes(lab, us)
    assert route["link"] == "network"
    assert route["metric"] > 0


def test_line_of_three_nodes_carries_calls_and_removes_routes_within_five_seconds_of_a_kill(lab: Any) -> None:
    # Otherwise a and c would link to each other.
    seeds_only = "links_site = 0\nlinks_remote = 0"
    a = lab.site("a", extra=seeds_only)
    b = lab.site("b", joins=[a], extra=seeds_only)
    c = lab.site("c", joins=[b], extra=seeds_only)
    lab.node(a)
    middle = lab.node(b)
    lab.node(c)
    lab.python("greeter", a, GREETER_SOURCE)
    lab.until(has_greeter(lab, c), "c has a route to the greeter")

    result = lab.micro(c, "call", GREETER, "Say.Hello", '{"name": "line"}', **PROXY)
    assert json.loads(result.stdout) == {"msg": "Hello line"}
    lab.until(has_greeter(lab, b), "b has a route to the greeter")
    (at_c,), (at_b,) = routes(lab, c), routes(lab, b)
    assert at_c["hops"] == 2
    assert at_b["hops"] == 1
    assert at_c["metric"] > at_b["metric"]

    killed_at = time.time()
    middle.kill()
    lab.until(lambda: not routes(lab, c), "c has removed the route")
    # Use the time that the node has recorded, since commands take long on a busy machine.
    events = [json.loads(line) for line in lab.micro(c, "network", "events", "--json").stdout.splitlines()]
    (removal,) = [event for event in events if (event["service"], event["kind"]) == (GREETER, "deleted")]
    assert removal["at"] - killed_at < 5.0
    result = lab.micro(c, "call", GREETER, "Say.Hello", '{"name": "line"}', **PROXY)
    assert result.returncode == 4
    assert "no route to go.micro.srv.greeter" in result.stderr
    assert "c-1" in result.stderr


def test_services_of_a_node_that_only_dials_out_are_reachable(lab: Any) -> None:
    cloud = lab.site("cloud")
    laptop = lab.site("laptop", joins=[cloud], listens=False)
    lab.node(cloud)
    lab.node(laptop)
    lab.python("greeter", laptop, GREETER_SOURCE)
    lab.until(has_greeter(lab, cloud), "the cloud has a route to the greeter of the laptop")
    result = lab.micro(cloud, "call", GREETER, "Say.Hello", '{"name": "cloud"}', **PROXY)
    assert json.loads(result.stdout) == {"msg": "Hello cloud"}


SUBSCRIBER = """
import asyncio
from micro_core import Service

service = Service("listener.{site}.{number}")

@service.subscriber("orders.created")
async def on_order(order: dict) -> None:
    print("got", order["number"], flush=True)

service.run()
"""


def test_message_reaches_every_subscriber_on_every_site_exactly_once(lab: Any) -> None:
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
        "every site advertises interest in the topic",
    )
    for number in range(20):
        published = lab.micro(sites[number % 3], "publish", "orders.created", json.dumps({"number": number}), **PROXY)
        assert published.returncode == 0, published.stderr
    expected = sorted(f"got {number}" for number in range(20))
    for listener in listeners:
        listener.wait_for(lambda lines: sum(line.startswith("got") for line in lines) >= 20)
    # A duplicate would have been sent before this message.
    assert lab.micro(a, "publish", "orders.created", '{"number": 99}', **PROXY).returncode == 0
    for listener in listeners:
        listener.wait_for(lambda lines: "got 99" in lines)
        assert sorted(line for line in listener.lines if line.startswith("got") and line != "got 99") == expected


def test_site_without_subscribers_receives_no_message(lab: Any) -> None:
    a = lab.site("a")
    b = lab.site("b", joins=[a])
    c = lab.site("c", joins=[a])
    for site in (a, b, c):
        lab.node(site)
    listener = lab.python("listener", b, SUBSCRIBER.format(site="b", number=0))
    lab.until(lambda: bool(lab.json(a, "network", "status")["topics"]), "a has received the interest of b")
    assert lab.micro(a, "publish", "orders.created", '{"number": 1}', **PROXY).returncode == 0
    listener.wait_for(lambda lines: "got 1" in lines)
    counters = lab.json(c, "network", "status")["counters"]
    assert not counters.get("topics_messages_delivered")


def test_calls_succeed_after_one_of_two_instances_has_stopped(lab: Any) -> None:
    eu = lab.site("eu")
    us = lab.site("us", joins=[eu])
    lab.node(eu)
    lab.node(us)
    first = lab.python("greeter-1", eu, GREETER_SOURCE)
    lab.until(has_greeter(lab, us), "us has a route to the greeter")
    lab.python("greeter-2", eu, GREETER_SOURCE)
    lab.until(lambda: len(routes(lab, eu)) == 2, "eu has routes to both instances")
    assert first.stop() == 0
    for _ in range(5):
        result = lab.micro(us, "call", GREETER, "Say.Hello", '{"name": "again"}', **PROXY)
        assert result.returncode == 0, result.stderr


def test_core_without_plugins_connects_the_services_of_one_machine(lab: Any) -> None:
    here = lab.site("here", plugins=())
    lab.node(here)
    lab.python("greeter", here, GREETER_SOURCE)
    direct = lab.micro(here, "call", GREETER, "Say.Hello", '{"name": "direct"}')
    assert json.loads(direct.stdout) == {"msg": "Hello direct"}
    lab.until(has_greeter(lab, here), "the node has a route to the greeter")
    proxied = lab.micro(here, "call", GREETER, "Say.Hello", '{"name": "proxied"}', **PROXY)
    assert json.loads(proxied.stdout) == {"msg": "Hello proxied"}


def test_unknown_service_is_reported_before_the_deadline(lab: Any) -> None:
    here = lab.site("here", plugins=())
    lab.node(here)
    # The deadline is longer than the time limit of `lab.micro`, so a command that waits for it fails.
    result = lab.micro(here, "call", "--timeout", "600", "no.such.service", "Say.Hello", "{}", **PROXY)
    assert result.returncode == 4


def test_nodes_of_different_networks_do_not_link(lab: Any) -> None:
    a = lab.site("a")
    b = lab.site("b", joins=[a], extra='network = "another"')
    lab.node(a)
    other = lab.node(b)
    other.wait_for(lambda lines: any("network" in line and "cannot link" in line for line in lines))
    assert lab.json(a, "network", "connections")["connections"] == []


def test_link_with_another_token_is_refused_and_both_nodes_log_the_reason(lab: Any) -> None:
    a = lab.site("a")
    b = lab.site("b", joins=[a], extra='token = "another-token-altogether"')
    node = lab.node(a, "--set", "node.log=info")
    other = lab.node(b)
    other.wait_for(lambda lines: any("does not hold the token" in line and "MICRO_TOKEN" in line for line in lines))
    node.wait_for(lambda lines: any("link refused" in line and "token" in line for line in lines))
    assert lab.json(a, "network", "connections")["connections"] == []
    assert lab.json(b, "network", "connections")["connections"] == []


def test_demo_ends_with_the_response_of_the_greeter() -> None:
    result = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "demo.py")], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert '{"msg": "Hello John"}' in result.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted_demo_stops_all_its_processes(number: signal.Signals) -> None:
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
        output, _ = demo.communicate(timeout=40)
        assert demo.returncode == 130, output
        assert list(Path(directory).iterdir()) == []
        # A child that still runs would be in the process group of the demo.
        with pytest.raises(ProcessLookupError):
            os.killpg(demo.pid, 0)
