"""The registry over real multicast, on the loopback interface only."""

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
async def opened(
    network: str, site: str = "eu", domain: str = "", browse_s: float = 1.0
) -> AsyncIterator[tuple[MdnsRegistry, CountersInMemory]]:
    context = context_for(network, site)
    registry = MdnsRegistry(MdnsOptions(interfaces=LOOPBACK, domain=domain, browse_s=browse_s), context)
    await registry.start()
    try:
        yield registry, context.counters  # type: ignore[misc]  # CountersInMemory, see context_for
    finally:
        await registry.close()


Opener = Callable[..., Awaitable[MdnsRegistry]]


@pytest.fixture
async def network() -> str:
    return f"test-{secrets.token_hex(4)}"


@pytest.fixture
async def another(network: str) -> AsyncIterator[Opener]:
    """Opens registries of one network, and closes them in the end."""
    async with AsyncExitStack() as stack:

        async def open_one(**options: object) -> MdnsRegistry:
            registry, _ = await stack.enter_async_context(opened(network, **options))  # type: ignore[arg-type]
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


def test_the_hook_describes_the_driver() -> None:
    driver = micro_registry()
    assert (driver.name, driver.options, driver.create) == ("mdns", MdnsOptions, create)
    assert isinstance(create(MdnsOptions(), context_for("n")), MdnsRegistry)


def test_service_types_keep_to_the_15_characters_of_rfc_6763_and_tell_networks_and_sites_apart() -> None:
    types = {service_type(network, site) for network in ("go.micro", "go") for site in ("eu", "us", "micro")}
    assert len(types) == 6
    assert all(len(one.split(".")[0].removeprefix("_")) <= 15 for one in types)


async def test_others_see_a_record_come_change_and_go(another: Opener) -> None:
    owner, other = await another(), await another()
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


async def test_a_newcomer_knows_all_versions_and_instances_at_its_first_look(another: Opener) -> None:
    owners = [await another() for _ in range(3)]
    expected = {f"{owner}-{number}" for owner in range(3) for number in range(20)}
    for name in sorted(expected):
        owner = owners[int(name[0])]
        await owner.register(instance(name, f"{name[-1]}.0", f"service{name[-1]}"), lease_s=30)
    newcomer = await another()
    started = time.monotonic()
    found = await newcomer.instances()
    assert {one.id for one in found} == expected
    assert time.monotonic() - started < 0.9, "settled before the longest wait"
    assert {one.version for one in await newcomer.instances("service3")} == {"3.0"}
    watch = await newcomer.watch()
    assert {(await next_event(watch))[0] for _ in expected} == {"created"}


async def test_an_empty_network_costs_the_first_reader_no_more_than_browse_s(another: Opener) -> None:
    registry = await another(browse_s=1.0)
    started = time.monotonic()
    assert await registry.instances() == []
    assert 0.9 < time.monotonic() - started < 5.0
    started = time.monotonic()
    assert await registry.instances() == []
    assert time.monotonic() - started < 0.5


async def test_sites_are_apart_unless_they_share_a_domain(another: Opener) -> None:
    europe = await another(site="eu")
    america = await another(site="us", browse_s=0.3)
    visitor = await another(site="us", domain="eu")
    await europe.register(instance(), lease_s=30)
    assert await next_event(await visitor.watch()) == ("created", instance())
    assert await america.instances() == []


async def test_a_record_that_is_renewed_outlives_its_lease_silently(another: Opener) -> None:
    owner, other = await another(), await another()
    watch = await other.watch()
    await owner.register(instance(), lease_s=0.8)
    assert (await next_event(watch))[0] == "created"
    event = asyncio.ensure_future(next_event(watch))
    for _ in range(8):
        await asyncio.wait({event}, timeout=0.25)
        await owner.register(instance(), lease_s=0.8)
    assert not event.done()
    renewed_at = time.monotonic()
    assert (await event)[0] == "deleted", "nobody renews any more"
    assert 0.7 < time.monotonic() - renewed_at < 1.8, "within the lease plus one second"


async def test_closing_withdraws_at_once(another: Opener, network: str) -> None:
    other = await another()
    watch = await other.watch()
    async with opened(network) as (owner, _):
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


async def test_a_killed_process_is_gone_within_its_lease_and_one_second(another: Opener, network: str) -> None:
    lease_s = 2.0
    watch = await (await another()).watch()
    code = OWNER.format(network=network, lease_s=lease_s)
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
    try:
        assert await next_event(watch, 20.0) == ("created", instance("killed"))
        still = asyncio.ensure_future(next_event(watch, 20.0))
        await asyncio.wait({still}, timeout=lease_s + 1.2)
        assert not still.done(), "it lives, and beats"
        process.send_signal(signal.SIGKILL)
        killed_at = time.monotonic()
        assert await still == ("deleted", instance("killed"))
        assert time.monotonic() - killed_at < lease_s + 1.0
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_a_lost_announcement_is_repaired_by_the_next_beat(another: Opener, network: str) -> None:
    async with opened(network) as (listener, counters):
        received: Counter[str] = Counter()
        hear = listener._multicast._receive

        def hear_badly(label: str, text: bytes) -> None:
            received["record" if "-" in label else "beat"] += 1
            if "-" not in label or received["beat"]:
                hear(label, text)

        listener._multicast._receive = hear_badly
        watch = await listener.watch()
        owner = await another()
        await owner.register(instance(), lease_s=3)
        assert await next_event(watch) == ("created", instance())
        assert received["beat"] == 1
        assert counters.values == {"mdns_repairs": 1}


async def test_standing_traffic_is_one_small_message_a_beat_whatever_the_number_of_records(
    another: Opener, network: str
) -> None:
    heard: list[tuple[str, int]] = []
    spy = Multicast(
        service_type(network, "eu"),
        interfaces=LOOPBACK,
        ip_version="4",
        random=random.Random(),
        receive=lambda label, text: heard.append((label, len(text))),
        count=CountersInMemory().add,
    )
    await spy.open()
    try:
        owner = await another()
        await owner.instances()  # browsing, which others answer, is over
        for number in range(30):
            await owner.register(instance(str(number)), lease_s=1.5)
        await until(lambda: len([label for label, _ in heard if "-" in label]) == 60)
        heard.clear()
        seconds = 2.0
        ends_at = time.monotonic() + seconds
        while time.monotonic() < ends_at:
            for number in range(30):
                await owner.register(instance(str(number)), lease_s=1.5)
            await asyncio.sleep(0.4)
        beats = [size for label, size in heard if "-" not in label]
        assert 2 <= len(beats) <= seconds / 0.5 + 2
        assert max(beats) < 60
        assert len(heard) == len(beats), "no record is sent again"
    finally:
        await spy.close()


async def test_garbage_of_others_is_counted_and_harms_nobody(another: Opener, network: str) -> None:
    def nothing(label: str, text: bytes) -> None:
        """Hears nothing."""

    vandal = Multicast(
        service_type(network, "eu"),
        interfaces=LOOPBACK,
        ip_version="4",
        random=random.Random(),
        receive=nothing,
        count=CountersInMemory().add,
    )
    await vandal.open()
    try:
        async with opened(network) as (registry, counters):
            watch = await registry.watch()
            owner = "0123456789abcdef"
            bomb = zlib.compress(b" " * 1_000_000, 9)
            vandal.tell("somebody", b"\x03v=1", ttl_s=10)
            vandal.tell(owner, b"\xff", ttl_s=10)
            vandal.tell(f"{owner}-1", b"", ttl_s=10)
            vandal.tell(f"{owner}-2", b"\x03v=1\x06l=1000" + b"\xf0" + b"00=" + bomb[:237], ttl_s=10)
            vandal.tell(f"{owner}-99999999999", b"\x03v=1", ttl_s=10)
            await until(lambda: counters.values.get("mdns_garbage", 0) >= 5)
            await (await another()).register(instance(), lease_s=30)
            assert await next_event(watch) == ("created", instance())
            assert await registry.instances() == [instance()]
    finally:
        await vandal.close()


async def test_a_record_too_large_for_a_message_is_refused_and_the_earlier_one_stands(another: Opener) -> None:
    registry = await another(browse_s=0.0)
    await registry.register(instance(), lease_s=30)
    noise = {f"k{row}": "".join(f"{zlib.crc32(b'%d %d' % (row, n)):08x}" for n in range(500)) for row in range(12)}
    with pytest.raises(TooLarge):
        await registry.register(
            Instance(service="greeter", id="1", address="tcp://127.0.0.1:1", metadata=noise), lease_s=30
        )
    assert await registry.instances() == [instance()]


async def test_the_largest_record_crosses_the_network(another: Opener) -> None:
    owner, other = await another(), await another()
    noise = {f"k{row}": "".join(f"{zlib.crc32(b'%d %d' % (row, n)):08x}" for n in range(215)) for row in range(6)}
    large = Instance(service="greeter", id="1", address="tcp://127.0.0.1:1", metadata=noise)
    watch = await other.watch()
    await owner.register(large, lease_s=30)
    assert await next_event(watch) == ("created", large)
    assert await (await another()).instances() == [large]


def test_every_interface_includes_loopback() -> None:
    assert LOOPBACK in ipv4_addresses()


async def test_an_interface_that_is_not_there_is_unreachable_with_a_hint() -> None:
    registry = MdnsRegistry(MdnsOptions(interfaces="203.0.113.7"), context_for("nowhere"))
    with pytest.raises(Unreachable) as caught:
        await registry.start()
    assert "interfaces=" in caught.value.hint
    with pytest.raises(Unreachable):
        await registry.instances()
    await registry.close()


@pytest.mark.parametrize("options", [MdnsOptions(interfaces="eth0"), MdnsOptions(ip_version="5")])
def test_options_that_mean_nothing_are_refused(options: MdnsOptions) -> None:
    with pytest.raises(OptionError):
        MdnsRegistry(options, context_for("n"))
