"""A node with a table on disk, killed and started again: real processes, real sockets, a real file."""

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
def test_routes_are_stale_after_kill_9_until_the_neighbour_tells_them_again(lab: Lab) -> None:
    eu = lab.site("eu")
    us = lab.site("us", joins=[eu], plugins=["quic", "sqlite"])
    far = lab.node(eu)
    lab.python("greeter", eu, SERVICE)
    near = lab.node(us)
    lab.until(lambda: bool(routes(lab, us)), "the route is learned")
    assert [route["stale"] for route in routes(lab, us)] == [False]
    file = next((lab.directory / "state" / "tables").glob("*.sqlite"))
    lab.until(lambda: GREETER.encode() in b"".join(p.read_bytes() for p in file.parent.iterdir()), "it is in the file")

    # The neighbour stands still, so that nothing can be told while we look.
    far.child.send_signal(signal.SIGSTOP)
    try:
        near.kill()
        lab.node(us)
        (route,) = routes(lab, us)
        assert route["stale"] is True
        assert 0 < route["expires_s"] <= 60
        shown = lab.micro(us, "network", "routes", "--service", GREETER).stdout
        assert "network, stale" in shown
        explained = lab.micro(us, "network", "explain", GREETER).stdout
        assert "stale: stored before the node restarted" in explained
        assert "no link to its gateway" in explained
        refused = lab.micro(us, "call", GREETER, "Say.Hello", '{"name": "John"}', MICRO_PROXY="go.micro.network")
        assert refused.returncode != 0
        assert "no route" in refused.stderr
    finally:
        far.child.send_signal(signal.SIGCONT)

    lab.until(lambda: [r["stale"] for r in routes(lab, us)] == [False], "the route is fresh again")
    answer = lab.json(us, "call", GREETER, "Say.Hello", '{"name": "John"}', MICRO_PROXY="go.micro.network")
    assert "Hello John" in str(answer)


@pytest.mark.timeout(240)
def test_an_orderly_restart_keeps_routes_too_and_no_second_node_gets_the_file(lab: Lab) -> None:
    eu = lab.site("eu")
    us = lab.site("us", joins=[eu], plugins=["quic", "sqlite"])
    far, near = lab.node(eu), lab.node(us)
    lab.python("greeter", eu, SERVICE)
    lab.until(lambda: bool(routes(lab, us)), "the route is learned")
    second = lab.micro(us, "run", "--set", "node.address=", "--set", "node.listen=none")
    assert second.returncode != 0
    # Its name is taken before its file is looked at; that the file has one owner is tested with the driver.
    assert "runs on this machine already" in second.stderr
    far.child.send_signal(signal.SIGSTOP)
    try:
        assert near.stop() == 0
        lab.node(us)
        assert [route["stale"] for route in routes(lab, us)] == [True]
    finally:
        far.child.send_signal(signal.SIGCONT)
    lab.until(lambda: [r["stale"] for r in routes(lab, us)] == [False], "the route is fresh again")
