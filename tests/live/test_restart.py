"""A node process with a table on disk that is killed or stopped, and started again."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.live.conftest import Lab, Site

pytest.importorskip("micro_sqlite_table", reason="the plugin is not installed")

GREETER = "go.micro.srv.greeter"

SERVICE = """
from micro_core import Service

service = Service("go.micro.srv.greeter")


@service.endpoint("Say.Hello")
async def hello(request: dict) -> dict:
    return {"msg": "Hello " + request["name"]}


service.run()
"""


def routes(lab: Lab, site: Site) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = lab.json(site, "network", "routes", "--service", GREETER)["routes"]
    return found


@pytest.mark.timeout(240)
def test_routes_are_stale_after_kill_9_until_the_neighbour_advertises_them_again(lab: Lab) -> None:
    eu = lab.site("eu")
    us = lab.site("us", joins=[eu], plugins=["quic", "sqlite"])
    neighbour = lab.node(eu)
    lab.python("greeter", eu, SERVICE)
    node = lab.node(us)
    lab.until(lambda: bool(routes(lab, us)), "the route is learned")
    assert [route["stale"] for route in routes(lab, us)] == [False]
    file = next((lab.directory / "state" / "tables").glob("*.sqlite"))
    lab.until(lambda: GREETER.encode() in b"".join(p.read_bytes() for p in file.parent.iterdir()), "it is stored")

    # Stop the neighbour, so that it advertises no routes in the meantime.
    neighbour.child.send_signal(signal.SIGSTOP)
    try:
        node.kill()
        lab.node(us)
        (route,) = routes(lab, us)
        assert route["stale"] is True
        assert 0 < route["expires_s"] <= 60
        shown = lab.micro(us, "network", "routes", "--service", GREETER).stdout
        assert "network, stale" in shown
        explained = lab.micro(us, "network", "explain", GREETER).stdout
        assert "stale: stored before the node restarted" in explained
        assert "no link to its gateway" in explained
        result = lab.micro(us, "call", GREETER, "Say.Hello", '{"name": "John"}', MICRO_PROXY="go.micro.network")
        assert result.returncode != 0
        assert "no route" in result.stderr
    finally:
        neighbour.child.send_signal(signal.SIGCONT)

    lab.until(lambda: [r["stale"] for r in routes(lab, us)] == [False], "the route is confirmed")
    response = lab.json(us, "call", GREETER, "Say.Hello", '{"name": "John"}', MICRO_PROXY="go.micro.network")
    assert "Hello John" in str(response)


@pytest.mark.timeout(240)
def test_graceful_restart_keeps_routes_and_a_second_node_cannot_use_the_file(lab: Lab) -> None:
    eu = lab.site("eu")
    us = lab.site("us", joins=[eu], plugins=["quic", "sqlite"])
    neighbour, node = lab.node(eu), lab.node(us)
    lab.python("greeter", eu, SERVICE)
    lab.until(lambda: bool(routes(lab, us)), "the route is learned")
    second = lab.micro(us, "run", "--set", "node.address=", "--set", "node.listen=none")
    assert second.returncode != 0
    # The second node is refused by its name. The tests of the driver check that a file has only one owner.
    assert "runs on this machine already" in second.stderr
    neighbour.child.send_signal(signal.SIGSTOP)
    try:
        assert node.stop() == 0
        lab.node(us)
        assert [route["stale"] for route in routes(lab, us)] == [True]
    finally:
        neighbour.child.send_signal(signal.SIGCONT)
    lab.until(lambda: [r["stale"] for r in routes(lab, us)] == [False], "the route is confirmed")
