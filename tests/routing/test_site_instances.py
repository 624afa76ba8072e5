"""The instances of a site as the events that the routing engine receives."""

from __future__ import annotations

from micro_core.contract.names import NETWORK_SERVICE
from micro_core.contract.registry import Endpoint, EndpointKind, Instance
from micro_core.routing.events import InstanceDown, InstanceUp, LocalInstance, LocalServices
from micro_core.routing.site_instances import SiteInstances

LISTENER = Instance(
    service="listener",
    id="listener-1",
    address="memory://x",
    version="1",
    metadata={"micro-load": "7"},
    endpoints=(Endpoint(name="orders", kind=EndpointKind.SUBSCRIBER), Endpoint(name="Say.Hello")),
)
OTHER_NODE = Instance(service=NETWORK_SERVICE, id="node-a", address="memory://n", metadata={"node": "a" * 32})


def test_every_node_of_a_site_advertises_the_interest_of_the_site() -> None:
    site = SiteInstances(node_id="z" * 32, is_gateway=False)
    site.put(OTHER_NODE)
    assert site.put(LISTENER) == [
        InstanceUp("listener", "listener-1", LocalInstance(address="memory://x", version="1", load_us=7)),
        InstanceUp("~orders", "listener-1", LocalInstance(address="memory://x", version="1")),
    ]
    (services,) = site.replace_all([OTHER_NODE, LISTENER])
    assert isinstance(services, LocalServices)
    assert set(services.services) == {NETWORK_SERVICE, "listener", "~orders"}


def test_interest_ends_with_the_subscription_and_with_the_instance() -> None:
    site = SiteInstances(node_id="z" * 32, is_gateway=False)
    site.put(LISTENER)
    assert site.remove("listener-1") == [InstanceDown("listener", "listener-1"), InstanceDown("~orders", "listener-1")]
    site.put(LISTENER)
    without = Instance(service="listener", id="listener-1", address="memory://x", version="1")
    assert InstanceDown("~orders", "listener-1") in site.put(without)


def test_other_nodes_of_the_site_do_not_change_the_interest() -> None:
    site = SiteInstances(node_id="z" * 32, is_gateway=False)
    site.put(LISTENER)
    assert [type(event) for event in site.put(OTHER_NODE)] == [InstanceUp]
    assert [type(event) for event in site.remove(OTHER_NODE.id)] == [InstanceDown]
