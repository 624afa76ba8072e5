"""The built-in resolvers: static list, memory and registry."""

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
async def test_static_resolver_returns_its_nodes_in_order(make_context: MakeContext, nodes: object) -> None:
    options = StaticOptions(nodes=nodes, ttl_s=5)  # type: ignore[arg-type]  # config files contain lists and strings
    resolver = static_resolver.micro_resolver().create(options, make_context())
    await resolver.start()
    candidates = await resolver.resolve("go.micro")
    assert addresses(candidates) == ["quic://10.0.0.5:8085", "10.0.0.4:8085"]
    assert [candidate.priority for candidate in candidates] == [0, 1]
    assert {candidate.ttl_s for candidate in candidates} == {5}
    candidates.clear()
    assert len(await resolver.resolve("go.micro")) == 2
    await resolver.close()


async def test_static_resolver_without_nodes_returns_an_empty_list(make_context: MakeContext) -> None:
    driver = static_resolver.micro_resolver()
    assert await driver.create(driver.options(), make_context()).resolve("go.micro") == []


@pytest.mark.parametrize("node", ["with space:1", "x" * 2_000, "a\x00b:1"])
def test_invalid_address_is_an_option_error(make_context: MakeContext, node: str) -> None:
    with pytest.raises(OptionError, match="invalid address"):
        static_resolver.micro_resolver().create(StaticOptions(nodes=(node,)), make_context())


async def test_memory_resolver_returns_the_candidates_announced_for_the_network(make_context: MakeContext) -> None:
    driver = memory_resolver.micro_resolver()
    resolver = driver.create(driver.options(), make_context())
    await resolver.start()
    low, high = Candidate(address="memory://b", priority=5), Candidate(address="memory://a")
    withdraw_low = memory_resolver.announce("net.one", low)
    withdraw_high = memory_resolver.announce("net.one", high)
    withdraw_other = memory_resolver.announce("net.two", replace(high, address="memory://c"))
    assert await resolver.resolve("net.one") == [high, low]
    withdraw_low()
    withdraw_low()
    assert await resolver.resolve("net.one") == [high]
    withdraw_high()
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


async def test_registry_resolver_returns_the_tunnel_addresses_of_other_nodes(
    make_context: MakeContext, registry: Registry
) -> None:
    context = make_context(registry=registry)
    for instance in (
        node("own", node=context.node_id, tunnel="quic://10.0.0.1:8085"),
        node("second", node="b" * 32, tunnel="quic://10.0.0.2:8085, tls://10.0.0.2:8086", priority="7"),
        node("third", node="c" * 32, tunnel="quic://10.0.0.3:8085"),
        node("without-tunnel", node="d" * 32),
        replace(node("service", tunnel="quic://10.0.0.9:8085"), service="greeter"),
    ):
        await registry.register(instance, lease_s=30)
    driver = registry_resolver.micro_resolver()
    resolver = driver.create(driver.options(), context)
    await resolver.start()
    candidates = await resolver.resolve("go.micro")
    assert (candidates[0].address, candidates[0].priority) == ("quic://10.0.0.3:8085", 0)
    # A node with two addresses is one candidate.
    assert addresses(candidates)[1:] == ["quic://10.0.0.2:8085|tls://10.0.0.2:8086"]
    assert {candidate.priority for candidate in candidates[1:]} == {7}
    await resolver.close()


async def test_registry_resolver_reads_the_configured_service(make_context: MakeContext, registry: Registry) -> None:
    await registry.register(node("one", node="b" * 32, tunnel="quic://10.0.0.1:1"), lease_s=30)
    resolver = registry_resolver.create(RegistryResolverOptions(service="my.net"), make_context(registry=registry))
    assert await resolver.resolve("go.micro") == []


@pytest.mark.parametrize(
    ("text", "priority"), [("0", 0), ("65535", 65_535), ("99999", 65_535), ("-1", 0), ("x", 0), ("1" * 300, 0), ("", 0)]
)
async def test_priority_is_limited_and_zero_if_invalid(
    make_context: MakeContext, registry: Registry, text: str, priority: int
) -> None:
    await registry.register(node("one", node="b" * 32, tunnel="quic://10.0.0.1:1", priority=text), lease_s=30)
    resolver = registry_resolver.create(RegistryResolverOptions(), make_context(registry=registry))
    assert [candidate.priority for candidate in await resolver.resolve("go.micro")] == [priority]


async def test_record_with_invalid_or_too_many_addresses_does_not_affect_others(
    make_context: MakeContext, registry: Registry
) -> None:
    context = make_context(registry=registry)
    await registry.register(node("bad", tunnel="quic://with space"), lease_s=30)
    await registry.register(node("many", tunnel=",".join(f"quic://10.0.1.{n}:1" for n in range(40))), lease_s=30)
    await registry.register(node("good", tunnel="quic://10.0.0.1:1"), lease_s=30)
    resolver = registry_resolver.create(RegistryResolverOptions(), context)
    found = await resolver.resolve("go.micro")
    assert sorted(len(candidate.address.split("|")) for candidate in found) == [1, 16]
    assert isinstance(context.counters, CountersInMemory)
    assert context.counters.values["resolver_records_malformed"] == 1
    assert context.counters.values["resolver_addresses_dropped"] == 24


async def test_candidates_of_equal_priority_are_shuffled_by_the_random_source(
    make_context: MakeContext, registry: Registry
) -> None:
    for number in range(8):
        await registry.register(node(str(number), tunnel=f"quic://10.0.0.{number}:1"), lease_s=30)
    resolver = registry_resolver.create(RegistryResolverOptions(), make_context(registry=registry))
    orders = {tuple(addresses(await resolver.resolve("go.micro"))) for _ in range(10)}
    assert len(orders) > 1
    same_seed = registry_resolver.create(RegistryResolverOptions(), make_context(registry=registry))
    assert tuple(addresses(await same_seed.resolve("go.micro"))) in orders


async def test_closed_registry_is_unreachable(make_context: MakeContext, registry: Registry) -> None:
    resolver = registry_resolver.create(RegistryResolverOptions(), make_context(registry=registry))
    await registry.close()
    with pytest.raises(Unreachable):
        await resolver.resolve("go.micro")


def test_registry_resolver_without_a_registry_is_a_config_error(make_context: MakeContext) -> None:
    with pytest.raises(ConfigError, match="needs a registry"):
        registry_resolver.micro_resolver().create(RegistryResolverOptions(), make_context())
