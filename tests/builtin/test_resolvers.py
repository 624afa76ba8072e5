"""The built-in resolvers: a list, this process, the site's registry."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from micro_core.builtin.registry import memory as memory_registry
from micro_core.builtin.resolver import memory as memory_resolver
from micro_core.builtin.resolver import registry as registry_resolver
from micro_core.builtin.resolver import static as static_resolver
from micro_core.builtin.resolver.registry import RegistryResolverOptions
from micro_core.builtin.resolver.static import StaticOptions
from micro_core.contract import (
    Candidate,
    ConfigError,
    CountersInMemory,
    DriverContext,
    Instance,
    OptionError,
    Registry,
    Unreachable,
)

MakeContext = Callable[..., DriverContext]


def addresses(candidates: list[Candidate]) -> list[str]:
    return [candidate.address for candidate in candidates]


@pytest.mark.parametrize(
    "nodes",
    [
        ("quic://10.0.0.5:8085", "10.0.0.4:8085"),
        ["quic://10.0.0.5:8085", "10.0.0.4:8085"],
        "quic://10.0.0.5:8085, 10.0.0.4:8085,",
        (" quic://10.0.0.5:8085,10.0.0.4:8085", "10.0.0.4:8085", ""),
    ],
)
async def test_the_static_resolver_answers_its_nodes_in_their_order(make_context: MakeContext, nodes: object) -> None:
    options = StaticOptions(nodes=nodes, ttl_s=5)  # type: ignore[arg-type]  # config files give lists and texts
    resolver = static_resolver.micro_resolver().create(options, make_context())
    await resolver.start()
    candidates = await resolver.resolve("go.micro")
    assert addresses(candidates) == ["quic://10.0.0.5:8085", "10.0.0.4:8085"]
    assert [candidate.priority for candidate in candidates] == [0, 1]
    assert {candidate.ttl_s for candidate in candidates} == {5}
    candidates.clear()
    assert len(await resolver.resolve("go.micro")) == 2
    await resolver.close()


async def test_the_static_resolver_without_nodes_answers_none(make_context: MakeContext) -> None:
    driver = static_resolver.micro_resolver()
    assert await driver.create(driver.options(), make_context()).resolve("go.micro") == []


@pytest.mark.parametrize("node", ["two words:1", "x" * 2_000, "a\x00b:1"])
def test_a_node_that_cannot_be_an_address_is_an_option_error(make_context: MakeContext, node: str) -> None:
    with pytest.raises(OptionError, match="is not an address"):
        static_resolver.micro_resolver().create(StaticOptions(nodes=(node,)), make_context())


async def test_the_memory_resolver_answers_what_was_announced_for_this_network(make_context: MakeContext) -> None:
    driver = memory_resolver.micro_resolver()
    resolver = driver.create(driver.options(), make_context())
    await resolver.start()
    late, soon = Candidate(address="memory://b", priority=5), Candidate(address="memory://a")
    withdraw_late = memory_resolver.announce("net.one", late)
    withdraw_soon = memory_resolver.announce("net.one", soon)
    withdraw_other = memory_resolver.announce("net.two", replace(soon, address="memory://c"))
    assert await resolver.resolve("net.one") == [soon, late]
    withdraw_late()
    withdraw_late()
    assert await resolver.resolve("net.one") == [soon]
    withdraw_soon()
    withdraw_other()
    assert await resolver.resolve("net.one") == []
    assert await resolver.resolve("net.two") == []
    await resolver.close()


def node(name: str, **metadata: str) -> Instance:
    return Instance(service="go.micro.network", id=name, address="tcp://127.0.0.1:1", metadata=metadata)


@pytest.fixture
async def registry(make_context: MakeContext) -> object:
    driver = memory_registry.micro_registry()
    registry = driver.create(driver.options(), make_context())
    await registry.start()
    yield registry
    await registry.close()


async def test_the_registry_resolver_answers_the_tunnels_of_other_nodes(
    make_context: MakeContext, registry: Registry
) -> None:
    context = make_context(registry=registry)
    for instance in (
        node("own", node=context.node_id, tunnel="quic://10.0.0.1:8085"),
        node("second", node="b" * 32, tunnel="quic://10.0.0.2:8085, tls://10.0.0.2:8086", priority="7"),
        node("third", node="c" * 32, tunnel="quic://10.0.0.3:8085"),
        node("silent", node="d" * 32),
        replace(node("service", tunnel="quic://10.0.0.9:8085"), service="greeter"),
    ):
        await registry.register(instance, lease_s=30)
    driver = registry_resolver.micro_resolver()
    resolver = driver.create(driver.options(), context)
    await resolver.start()
    candidates = await resolver.resolve("go.micro")
    assert (candidates[0].address, candidates[0].priority) == ("quic://10.0.0.3:8085", 0)
    # One node is one candidate, with all its ways.
    assert addresses(candidates)[1:] == ["quic://10.0.0.2:8085|tls://10.0.0.2:8086"]
    assert {candidate.priority for candidate in candidates[1:]} == {7}
    await resolver.close()


async def test_the_registry_resolver_asks_for_the_service_it_was_told(
    make_context: MakeContext, registry: Registry
) -> None:
    await registry.register(node("one", node="b" * 32, tunnel="quic://10.0.0.1:1"), lease_s=30)
    resolver = registry_resolver.create(RegistryResolverOptions(service="my.net"), make_context(registry=registry))
    assert await resolver.resolve("go.micro") == []


@pytest.mark.parametrize(
    ("text", "priority"), [("0", 0), ("65535", 65_535), ("99999", 65_535), ("-1", 0), ("x", 0), ("1" * 300, 0), ("", 0)]
)
async def test_a_priority_that_is_no_number_counts_as_none(
    make_context: MakeContext, registry: Registry, text: str, priority: int
) -> None:
    await registry.register(node("one", node="b" * 32, tunnel="quic://10.0.0.1:1", priority=text), lease_s=30)
    resolver = registry_resolver.create(RegistryResolverOptions(), make_context(registry=registry))
    assert [candidate.priority for candidate in await resolver.resolve("go.micro")] == [priority]


async def test_a_record_with_bad_or_too_many_addresses_spoils_no_other(
    make_context: MakeContext, registry: Registry
) -> None:
    context = make_context(registry=registry)
    await registry.register(node("bad", tunnel="quic://two words"), lease_s=30)
    await registry.register(node("many", tunnel=",".join(f"quic://10.0.1.{n}:1" for n in range(40))), lease_s=30)
    await registry.register(node("good", tunnel="quic://10.0.0.1:1"), lease_s=30)
    resolver = registry_resolver.create(RegistryResolverOptions(), context)
    found = await resolver.resolve("go.micro")
    assert sorted(len(candidate.address.split("|")) for candidate in found) == [1, 16]
    assert isinstance(context.counters, CountersInMemory)
    assert context.counters.values["resolver_records_malformed"] == 1
    assert context.counters.values["resolver_addresses_dropped"] == 24


async def test_equals_are_tried_in_an_order_that_differs_between_nodes(
    make_context: MakeContext, registry: Registry
) -> None:
    for number in range(8):
        await registry.register(node(str(number), tunnel=f"quic://10.0.0.{number}:1"), lease_s=30)
    resolver = registry_resolver.create(RegistryResolverOptions(), make_context(registry=registry))
    orders = {tuple(addresses(await resolver.resolve("go.micro"))) for _ in range(10)}
    assert len(orders) > 1
    same_seed = registry_resolver.create(RegistryResolverOptions(), make_context(registry=registry))
    assert tuple(addresses(await same_seed.resolve("go.micro"))) in orders


async def test_a_registry_that_is_away_is_unreachable(make_context: MakeContext, registry: Registry) -> None:
    resolver = registry_resolver.create(RegistryResolverOptions(), make_context(registry=registry))
    await registry.close()
    with pytest.raises(Unreachable):
        await resolver.resolve("go.micro")


def test_the_registry_resolver_without_a_registry_says_so(make_context: MakeContext) -> None:
    with pytest.raises(ConfigError, match="no registry to ask"):
        registry_resolver.micro_resolver().create(RegistryResolverOptions(), make_context())
