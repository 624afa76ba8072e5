"""Tests of the registry with multicast on the loopback interface."""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import signal
import sys
import time
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from micro_mdns_registry import create, micro_registry
from micro_mdns_registry.multicast import Multicast, ipv4_addresses
from micro_mdns_registry.options import MdnsOptions
from micro_mdns_registry.registry import MdnsRegistry, service_type

from micro_core.contract import (
    CountersInMemory,
    DriverContext,
    Instance,
    OptionError,
    RegistryEvent,
    RegistryWatch,
    TooLarge,
    Unreachable,
)

LOOPBACK = "127.0.0.1"

OWNER = """
import asyncio, logging, random, time
from micro_core.contract import CountersInMemory, DriverContext, Instance
from micro_mdns_registry import create
from micro_mdns_registry.options import MdnsOptions

class LoopClock:
    now = staticmethod(time.monotonic)
    wall = staticmethod(time.time)

async def main():
    context = DriverContext(
        node_id="owner", network={network!r}, site="eu", state_dir="/nowhere", clock=LoopClock(),
        random=random.Random(1), logger=logging.getLogger("owner"), counters=CountersInMemory(),
    )
    registry = create(MdnsOptions(interfaces="127.0.0.1"), context)
    await registry.start()
    record = Instance(service="greeter", id="killed", address="tcp://127.0.0.1:40123", version="1.0")
    while True:
        await registry.register(record, lease_s={lease_s})
        await asyncio.sleep({lease_s} / 3)

asyncio.run(main())
"""


class LoopClock:
    def now(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time()


def context_for(network: str, site: str = "eu") -> DriverContext:
    return DriverContext(
        node_id="test",
        network=network,
        site=site,
        state_dir="/nowhere",
        clock=LoopClock(),
        random=random.Random(1),
        logger=logging.getLogger("test.mdns"),
        counters=CountersInMemory(),
    )


@asynccontextmanager
async def running_registry(
    network: str, site: str = "eu", domain: str = "", browse_s: float = 1.0
) -> AsyncIterator[tuple[MdnsRegistry, CountersInMemory]]:
    context = context_for(network, site)
    registry = MdnsRegistry(MdnsOptions(interfaces=LOOPBACK, domain=domain, browse_s=browse_s), context)
    await registry.start()
    try:
        yield registry, context.counters  # type: ignore[misc]  # CountersInMemory, see context_for
    finally:
        await registry.close()


OpenRegistry = Callable[..., Awaitable[MdnsRegistry]]


@pytest.fixture
async def network() -> str:
    return f"test-{secrets.token_hex(4)}"


@pytest.fixture
async def open_registry(network: str) -> AsyncIterator[OpenRegistry]:
    """Return a function that opens registries of one network. They are closed at the end of the test."""
    async with AsyncExitStack() as stack:

        async def open_one(**options: object) -> MdnsRegistry:
            registry, _ = await stack.enter_async_context(running_registry(network, **options))  # type: ignore[arg-type]
            return registry

        yield open_one


def instance(name: str = "1", version: str = "1.0", service: str = "greeter") -> Instance:
    return Instance(service=service, id=name, address="tcp://127.0.0.1:40123", version=version)


async def next_event(watch: RegistryWatch, timeout_s: float = 8.0) -> tuple[str, Instance | None]:
    event: RegistryEvent = await asyncio.wait_for(anext(aiter(watch)), timeout_s)
    return event.kind.value, event.instance


async def until(condition: Callable[[], bool], timeout_s: float = 8.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)


def test_hook_describes_the_driver() -> None:
    driver = micro_registry()
    assert (driver.name, driver.options, driver.create) == ("mdns", MdnsOptions, create)
    assert isinstance(create(MdnsOptions(), context_for("n")), MdnsRegistry)


def test_service_types_have_at_most_15_characters_and_differ_by_network_and_site() -> None:
    types = {service_type(network, site) for network in ("go.micro", "go") for site in ("eu", "us", "micro")}
    assert len(types) == 6
    assert all(len(one.split(".")[0].removeprefix("_")) <= 15 for one in types)


async def test_record_changes_reach_other_registries(open_registry: OpenRegistry) -> None:
    owner, other = await open_registry(), await open_registry()
    for registry in (owner, other):
        assert await registry.instances() == []
    watches = [await owner.watch(), await other.watch("greeter"), await other.watch("something.else")]
    await owner.register(instance(), lease_s=30)
    await owner.register(instance(), lease_s=30)
    await owner.register(instance(version="2.0"), lease_s=30)
    for watch in watches[:2]:
        assert await next_event(watch) == ("created", instance())
        assert await next_event(watch) == ("updated", instance(version="2.0"))
    assert await other.instances("greeter") == [instance(version="2.0")]
    assert await other.instances("something.else") == []
    await owner.deregister(instance("unknown"))
    await owner.deregister(instance())
    for watch in watches[:2]:
        assert await next_event(watch, 2.0) == ("deleted", instance(version="2.0"))
    assert await other.instances() == []


async def test_new_registry_lists_all_instances_at_the_first_read(open_registry: OpenRegistry) -> None:
    owners = [await open_registry() for _ in range(3)]
    expected = {f"{owner}-{number}" for owner in range(3) for number in range(20)}
    for name in sorted(expected):
        owner = owners[int(name[0])]
        await owner.register(instance(name, f"{name[-1]}.0", f"service{name[-1]}"), lease_s=30)
    new_registry = await open_registry()
    started = time.monotonic()
    found = await new_registry.instances()
    assert {one.id for one in found} == expected
    assert time.monotonic() - started < 0.9, "the wait ends before browse_s"
    assert {one.version for one in await new_registry.instances("service3")} == {"3.0"}
    watch = await new_registry.watch()
    assert {(await next_event(watch))[0] for _ in expected} == {"created"}


async def test_empty_network_delays_the_first_read_by_browse_s(open_registry: OpenRegistry) -> None:
    registry = await open_registry(browse_s=1.0)
    started = time.monotonic()
    assert await registry.instances() == []
    assert 0.9 < time.monotonic() - started < 5.0
    started = time.monotonic()
    assert await registry.instances() == []
    assert time.monotonic() - started < 0.5


async def test_sites_are_isolated_unless_they_share_a_domain(open_registry: OpenRegistry) -> None:
    europe = await open_registry(site="eu")
    america = await open_registry(site="us", browse_s=0.3)
    same_domain = await open_registry(site="us", domain="eu")
    await europe.register(instance(), lease_s=30)
    assert await next_event(await same_domain.watch()) == ("created", instance())
    assert await america.instances() == []


async def test_renewed_record_outlives_its_lease_without_events(open_registry: OpenRegistry) -> None:
    owner, other = await open_registry(), await open_registry()
    watch = await other.watch()
    await owner.register(instance(), lease_s=0.8)
    assert await next_event(watch) == ("created", instance())
    # This record is not renewed. Its end shows that a lease has passed.
    await owner.register(instance("not-renewed"), lease_s=0.8)
    assert await next_event(watch) == ("created", instance("not-renewed"))
    event = asyncio.ensure_future(next_event(watch))
    while not event.done():
        await asyncio.wait({event}, timeout=0.25)
        await owner.register(instance(), lease_s=0.8)
    assert await event == ("deleted", instance("not-renewed"))
    renewed_at = time.monotonic()
    assert await next_event(watch) == ("deleted", instance()), "the record is no longer renewed"
    assert 0.7 < time.monotonic() - renewed_at < 1.8, "the record expires within one second of its lease"


async def test_close_withdraws_records_immediately(open_registry: OpenRegistry, network: str) -> None:
    other = await open_registry()
    watch = await other.watch()
    async with running_registry(network) as (owner, _):
        await owner.register(instance("1"), lease_s=30)
        await owner.register(instance("2"), lease_s=30)
        assert {(await next_event(watch))[0] for _ in range(2)} == {"created"}
        ended = await owner.watch()
        await owner.close()
        await owner.close()
        assert [event async for event in ended] == []
    assert {(await next_event(watch, 1.0))[0] for _ in range(2)} == {"deleted"}
    with pytest.raises(Unreachable):
        await owner.register(instance(), lease_s=30)


async def test_killed_process_is_removed_within_one_second_of_its_lease(
    open_registry: OpenRegistry, network: str
) -> None:
    lease_s = 2.0
    registry = await open_registry()
    watch = await registry.watch()
    code = OWNER.format(network=network, lease_s=lease_s)
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
    try:
        assert await next_event(watch, 20.0) == ("created", instance("killed"))
        # This record is not renewed. Its end shows that a lease has passed, while the process renews its own record.
        await registry.register(instance("not-renewed"), lease_s=lease_s)
        assert await next_event(watch) == ("created", instance("not-renewed"))
        assert await next_event(watch) == ("deleted", instance("not-renewed"))
        process.send_signal(signal.SIGKILL)
        killed_at = time.monotonic()
        assert await next_event(watch) == ("deleted", instance("killed"))
        assert time.monotonic() - killed_at < lease_s + 1.0
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_lost_announcement_is_repaired_by_the_next_heartbeat(open_registry: OpenRegistry, network: str) -> None:
    async with running_registry(network) as (listener, counters):
        received: Counter[str] = Counter()
        receive = listener._multicast._receive

        def receive_with_loss(label: str, text: bytes) -> None:
            received["record" if "-" in label else "heartbeat"] += 1
            if "-" not in label or received["heartbeat"]:
                receive(label, text)

        listener._multicast._receive = receive_with_loss
        watch = await listener.watch()
        owner = await open_registry()
        await owner.register(instance(), lease_s=3)
        assert await next_event(watch) == ("created", instance())
        assert received["heartbeat"] == 1
        assert counters.values == {"mdns_repairs": 1}


async def test_idle_traffic_is_independent_of_the_number_of_records(open_registry: OpenRegistry, network: str) -> None:
    received: list[tuple[str, int]] = []
    monitor = Multicast(
        service_type(network, "eu"),
        interfaces=LOOPBACK,
        ip_version="4",
        random=random.Random(),
        receive=lambda label, text: received.append((label, len(text))),
        count=CountersInMemory().add,
    )
    await monitor.open()
    try:
        owner = await open_registry()
        await owner.instances()  # waits until the queries at the start are answered
        for number in range(30):
            await owner.register(instance(str(number)), lease_s=1.5)
        await until(lambda: len([label for label, _ in received if "-" in label]) == 60)
        received.clear()
        began = time.monotonic()

        def heartbeats() -> list[int]:
            return [size for label, size in received if "-" not in label]

        for count in range(1, 5):
            await until(lambda: len(heartbeats()) >= count)  # noqa: B023 - called at once
            for number in range(30):
                await owner.register(instance(str(number)), lease_s=1.5)
        sizes = heartbeats()
        assert len(sizes) <= (time.monotonic() - began) / 0.5 + 2
        assert max(sizes) < 60
        assert len(received) == len(sizes), "no record is sent again"
    finally:
        await monitor.close()


async def test_garbage_is_counted_and_has_no_other_effect(open_registry: OpenRegistry, network: str) -> None:
    def ignore(label: str, text: bytes) -> None:
        """Ignore received records."""

    attacker = Multicast(
        service_type(network, "eu"),
        interfaces=LOOPBACK,
        ip_version="4",
        random=random.Random(),
        receive=ignore,
        count=CountersInMemory().add,
    )
    await attacker.open()
    try:
        async with running_registry(network) as (registry, counters):
            watch = await registry.watch()
            owner = "0123456789abcdef"
            bomb = zlib.compress(b" " * 1_000_000, 9)
            attacker.send_text("not-an-owner", b"\x03v=1", ttl_s=10)
            attacker.send_text(owner, b"\xff", ttl_s=10)
            attacker.send_text(f"{owner}-1", b"", ttl_s=10)
            attacker.send_text(f"{owner}-2", b"\x03v=1\x06l=1000" + b"\xf0" + b"00=" + bomb[:237], ttl_s=10)
            attacker.send_text(f"{owner}-99999999999", b"\x03v=1", ttl_s=10)
            await until(lambda: counters.values.get("mdns_garbage", 0) >= 5)
            await (await open_registry()).register(instance(), lease_s=30)
            assert await next_event(watch) == ("created", instance())
            assert await registry.instances() == [instance()]
    finally:
        await attacker.close()


async def test_oversized_record_is_rejected_and_the_previous_one_kept(open_registry: OpenRegistry) -> None:
    registry = await open_registry(browse_s=0.0)
    await registry.register(instance(), lease_s=30)
    noise = {f"k{row}": "".join(f"{zlib.crc32(b'%d %d' % (row, n)):08x}" for n in range(500)) for row in range(12)}
    with pytest.raises(TooLarge):
        await registry.register(
            Instance(service="greeter", id="1", address="tcp://127.0.0.1:1", metadata=noise), lease_s=30
        )
    assert await registry.instances() == [instance()]


async def test_largest_record_is_transferred(open_registry: OpenRegistry) -> None:
    owner, other = await open_registry(), await open_registry()
    noise = {f"k{row}": "".join(f"{zlib.crc32(b'%d %d' % (row, n)):08x}" for n in range(215)) for row in range(6)}
    large = Instance(service="greeter", id="1", address="tcp://127.0.0.1:1", metadata=noise)
    watch = await other.watch()
    await owner.register(large, lease_s=30)
    assert await next_event(watch) == ("created", large)
    assert await (await open_registry()).instances() == [large]


def test_interfaces_include_loopback() -> None:
    assert LOOPBACK in ipv4_addresses()


async def test_missing_interface_raises_unreachable_with_a_hint() -> None:
    registry = MdnsRegistry(MdnsOptions(interfaces="203.0.113.7"), context_for("nowhere"))
    with pytest.raises(Unreachable) as caught:
        await registry.start()
    assert "interfaces=" in caught.value.hint
    with pytest.raises(Unreachable):
        await registry.instances()
    await registry.close()


@pytest.mark.parametrize("options", [MdnsOptions(interfaces="eth0"), MdnsOptions(ip_version="5")])
def test_invalid_options_are_rejected(options: MdnsOptions) -> None:
    with pytest.raises(OptionError):
        MdnsRegistry(options, context_for("n"))
