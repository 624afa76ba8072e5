"""A node whose components run as five processes, linked to a single-process node on another site."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from micro_core.testing import free_port

ROOT = Path(__file__).parents[2]
GREETER = "go.micro.srv.greeter"
GREETER_SOURCE = (ROOT / "examples" / "greeter.py").read_text()
HERE_SOURCE = GREETER_SOURCE.replace(GREETER, "go.micro.srv.here")
PROXY = {"MICRO_PROXY": "go.micro.network"}
MICRO = [sys.executable, "-m", "micro_core"]
COMPONENTS = ("registry", "broker", "tunnel", "router", "proxy")

pytestmark = pytest.mark.timeout(300)

SUBSCRIBER = """
from micro_core import Service

service = Service("listener.{site}")

@service.subscriber("orders.created")
async def on_order(order: dict) -> None:
    print("got", order["number"], flush=True)

service.run()
"""


def site_of_components(lab: Any, name: str, joins: Sequence[Any] = ()) -> Any:
    settings = f'\n[plugins."registry:service"]\naddress = "tcp://127.0.0.1:{free_port()}"\nretry_s = 0.2'
    return lab.site(name, joins=joins, plugins=("quic", "registry:service", "broker:service"), extra=settings)


def start_component(lab: Any, site: Any, component: str) -> Any:
    process = lab.start(f"{component} {site.name}", site, [*MICRO, component])
    process.wait_ready()
    return process


def services(lab: Any, site: Any) -> set[str]:
    result = lab.micro(site, "network", "services", "--json")
    if result.returncode:
        return set()
    return {entry["service"] for entry in json.loads(result.stdout)["services"]}


def hello(lab: Any, site: Any, service: str, name: str) -> str:
    """Call `service`; return its message, or the exit code and the error text."""
    result = lab.micro(site, "call", service, "Say.Hello", json.dumps({"name": name}), **PROXY)
    return str(json.loads(result.stdout)["msg"]) if result.returncode == 0 else f"{result.returncode}: {result.stderr}"


def test_node_of_five_processes_carries_calls_both_ways_and_each_component_may_restart(lab: Any) -> None:
    us = lab.site("us")
    eu = site_of_components(lab, "eu", joins=[us])
    lab.node(us)
    processes = {component: start_component(lab, eu, component) for component in COMPONENTS}
    lab.python("greeter", eu, GREETER_SOURCE)
    lab.python("here", us, HERE_SOURCE)
    lab.until(lambda: GREETER in services(lab, us), "us has a route to the greeter of eu")
    lab.until(lambda: "go.micro.srv.here" in services(lab, eu), "eu has a route to the greeter of us")

    assert hello(lab, us, GREETER, "John") == "Hello John"
    assert hello(lab, eu, "go.micro.srv.here", "Jane") == "Hello Jane"
    assert hello(lab, eu, GREETER, "neighbour") == "Hello neighbour"

    # Each component is a service, and commands work as with a single-process node.
    found = {entry["service"] for entry in lab.json(eu, "services")["services"]}
    assert found >= {f"go.micro.{component}" for component in COMPONENTS} | {"go.micro.network"}
    assert {node["name"] for node in lab.json(eu, "network", "nodes")["nodes"]} == {"eu-1", "us-1"}
    (link,) = lab.json(eu, "network", "connections")["connections"]
    assert (link["name"], link["driver"]) == ("us-1", "quic")
    status = lab.json(eu, "network", "status")
    assert status["links"] == 1
    # The proxy process uses these drivers. The other processes of the node use the others.
    assert status["drivers"] == ["registry:service", "transport:tcp", "transport:unix", "broker:service"]
    # The proxy answers as the node, so `Debug.*` works as with a single-process node.
    for endpoint in ("Debug.Health", "Debug.Describe", "Debug.Stats"):
        for site in (us, eu):
            result = lab.micro(site, "call", "go.micro.network", endpoint, "{}", **PROXY)
            assert result.returncode == 0, result.stderr
    explained = lab.json(eu, "network", "explain", "go.micro.srv.here")
    assert [candidate["gateway_name"] for candidate in explained["candidates"]] == ["us-1"]
    # The components are not advertised to other sites.
    advertised = {e["service"] for e in lab.json(us, "network", "services")["services"] if "eu" in e["sites"]}
    assert advertised == {GREETER, "go.micro.network"}

    # While the router is down, the proxy uses its copy of the table. A new router learns all routes again.
    processes["router"].kill()
    assert hello(lab, us, GREETER, "still") == "Hello still"
    assert hello(lab, eu, "go.micro.srv.here", "still") == "Hello still"
    refused = lab.micro(eu, "network", "routes")
    assert refused.returncode == 6
    assert "micro router" in refused.stderr
    processes["router"] = start_component(lab, eu, "router")
    lab.until(lambda: services(lab, eu) >= {GREETER, "go.micro.srv.here"}, "the router has the routes of both sites")
    lab.until(lambda: GREETER in services(lab, us), "us has a route to the greeter again")
    assert hello(lab, us, GREETER, "again") == "Hello again"

    # While the tunnel is down, other sites are unreachable and the site itself keeps working.
    processes["tunnel"].kill()
    assert hello(lab, eu, GREETER, "alone") == "Hello alone"
    lab.until(lambda: hello(lab, eu, "go.micro.srv.here", "lost").startswith(("4", "6")), "us is unreachable")
    processes["tunnel"] = start_component(lab, eu, "tunnel")
    lab.until(lambda: hello(lab, eu, "go.micro.srv.here", "back") == "Hello back", "eu reaches us again")
    lab.until(lambda: hello(lab, us, GREETER, "back") == "Hello back", "us reaches eu again")

    # A new registry is empty, and the running processes register again.
    processes["registry"].kill()
    processes["registry"] = start_component(lab, eu, "registry")
    lab.until(lambda: hello(lab, us, GREETER, "refilled") == "Hello refilled", "the greeter is in the new registry")
    lab.until(
        lambda: {entry["service"] for entry in lab.json(eu, "services")["services"]} >= found, "all services registered"
    )

    # A new proxy listens at the same address and accepts sessions of other sites.
    processes["proxy"].kill()
    processes["proxy"] = start_component(lab, eu, "proxy")
    lab.until(lambda: hello(lab, us, GREETER, "proxied") == "Hello proxied", "calls from us are accepted again")
    assert hello(lab, eu, "go.micro.srv.here", "proxied") == "Hello proxied"

    for component in reversed(COMPONENTS):
        assert processes[component].stop() == 0, component


def test_messages_pass_between_a_single_process_node_and_a_node_of_five_processes(lab: Any) -> None:
    us = lab.site("us")
    eu = site_of_components(lab, "eu", joins=[us])
    lab.node(us)
    for component in COMPONENTS:
        start_component(lab, eu, component)
    listeners = [lab.python(f"listener-{site.name}", site, SUBSCRIBER.format(site=site.name)) for site in (eu, us)]
    lab.until(
        lambda: all(lab.json(site, "network", "status")["topics"] == ["orders.created"] for site in (eu, us)),
        "both sites advertise interest in the topic",
    )
    for number, site in enumerate((eu, us)):
        result = lab.micro(site, "publish", "orders.created", json.dumps({"number": number}), **PROXY)
        assert result.returncode == 0, result.stderr
    for listener in listeners:
        listener.wait_for(lambda lines: {"got 0", "got 1"} <= set(lines))
        assert sorted(line for line in listener.lines if line.startswith("got")) == ["got 0", "got 1"]


def test_component_waits_for_the_components_it_needs_and_names_them(lab: Any) -> None:
    eu = site_of_components(lab, "eu")
    registry = lab.start("registry", eu, [*MICRO, "registry"])
    registry.wait_ready()
    proxy = lab.start("proxy", eu, [*MICRO, "proxy"])
    proxy.wait_for(lambda lines: any("waiting for the tunnel" in line and "micro tunnel" in line for line in lines))
    start_component(lab, eu, "tunnel")
    proxy.wait_for(lambda lines: any("waiting for the router" in line and "micro router" in line for line in lines))
    start_component(lab, eu, "router")
    proxy.wait_ready()
    # A component that is still waiting stops on SIGTERM.
    other_node = lab.start("router eu-2", eu, [*MICRO, "router", "--name", "eu-2"])
    other_node.wait_for(
        lambda lines: any("waiting for the tunnel" in line and "registered for: eu-1" in line for line in lines)
    )
    assert other_node.stop() == 0
