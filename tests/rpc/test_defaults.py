"""The drivers and hooks that `Service` and `Client` use without arguments."""

from __future__ import annotations

import importlib.metadata
import sys
import types
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from micro_core import CallInfo, Client, Service
from micro_core.config import load_settings
from micro_core.contract import CountersInMemory, Driver, DriverContext, NoOptions, Role, hookimpl, option
from micro_core.contract.errors import ConfigError, OptionError, PluginMissing, ServiceNotFound, Unreachable
from micro_core.drivers.runtime import Runtime, build_runtime
from micro_core.drivers.selection import drivers_of
from micro_core.plugins import Catalog, Entry


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MICRO_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("MICRO_SITE", "eu")
    monkeypatch.delenv("MICRO_PROXY", raising=False)
    monkeypatch.chdir(tmp_path)


async def test_client_finds_a_service_of_its_site_without_configuration() -> None:
    service = Service("go.micro.srv.greeter")

    async def hello(name: str) -> str:
        return f"Hello {name}"

    service.endpoint("Say.Hello")(hello)
    await service.start()
    assert service.instance.address.startswith("tcp://127.0.0.1:")
    async with Client() as client:
        assert await client.call("go.micro.srv.greeter", "Say.Hello", "John") == "Hello John"
        assert await service.client.call("go.micro.srv.greeter", "Say.Hello", "me") == "Hello me"
    await service.stop()
    async with Client() as client:
        with pytest.raises(ServiceNotFound) as caught:
            await client.call("go.micro.srv.greeter", "Say.Hello", "John")
    assert caught.value.detail == (
        "no instance of go.micro.srv.greeter in the registry of site eu (searched: registry:local)"
    )
    assert "use --plugins or MICRO_PLUGINS" in caught.value.hint


async def test_service_of_another_site_is_not_found() -> None:
    service = Service("go.micro.srv.greeter")
    await service.start()
    async with Client(settings=load_settings({"node.site": "us"})) as client:
        with pytest.raises(ServiceNotFound):
            await client.call("go.micro.srv.greeter", "Debug.Health")
    await service.stop()


async def test_proxy_and_lease_are_read_from_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MICRO_PROXY", "go.micro.network")
    monkeypatch.setenv("MICRO_LEASE", "7")
    service = Service("go.micro.srv.greeter")
    await service.start()
    assert service._lease_s == 7.0
    async with Client() as client:
        with pytest.raises(ServiceNotFound, match="no node"):
            await client.call("go.micro.srv.greeter", "Debug.Health")
    await service.stop()


async def test_error_about_a_missing_plugin_contains_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = [
        distribution
        for distribution in importlib.metadata.distributions()
        if distribution.metadata["Name"] != "micro-redis-registry"
    ]
    monkeypatch.setattr(importlib.metadata, "distributions", lambda: installed)
    monkeypatch.setenv("MICRO_PLUGINS", "redis")
    with pytest.raises(PluginMissing, match="pip install micro-redis-registry"):
        await Service("s").start()


def entries(*extra: Entry) -> Catalog:
    builtin = [
        Entry(role=role, name=name, distribution="micro-network", version="1", module=f"builtin.{name}")
        for role, name in (
            (Role.REGISTRY, "local"),
            (Role.REGISTRY, "memory"),
            (Role.TRANSPORT, "memory"),
            (Role.TRANSPORT, "tcp"),
            (Role.TRANSPORT, "unix"),
        )
    ]
    return Catalog([*builtin, *extra])


MDNS = Entry(role=Role.REGISTRY, name="mdns", distribution="micro-mdns-registry", version="1", module="m")
QUIC = Entry(role=Role.TUNNEL, name="quic", distribution="micro-quic-tunnel", version="1", module="q")


@pytest.mark.parametrize(
    ("plugins", "block", "expected"),
    [
        ("", "", ["local"]),
        ("quic", "", ["local"]),
        ("quic,mdns", "", ["mdns"]),
        ("mdns,registry:local", "", ["mdns", "local"]),
        ("registry:memory", "", ["memory"]),
    ],
)
def test_named_registries_replace_the_default(plugins: str, block: str, expected: list[str]) -> None:
    settings = load_settings({"node.plugins": plugins, "node.block": block}, environ={})
    assert [entry.name for entry in drivers_of(entries(MDNS, QUIC), settings, Role.REGISTRY)] == expected


@pytest.fixture
async def runtime(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Runtime]:
    module = types.ModuleType("rpc_test_hooks")

    async def mark(call: CallInfo, proceed: Any) -> Any:
        call.metadata["hook"] = call.side
        return await proceed(call)

    @hookimpl
    def micro_interceptors(side: str) -> list[Any]:
        return [mark]

    module.micro_interceptors = micro_interceptors  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "rpc_test_hooks", module)
    runtime = await build_runtime(load_settings({"node.plugins": "mark"}), catalog=Catalog([*INSTALLED, hook("mark")]))
    yield runtime
    await runtime.close()


INSTALLED = Catalog.discover().entries


def hook(name: str) -> Entry:
    return Entry(role=None, name=name, distribution=f"micro-{name}", version="1", module="rpc_test_hooks")


async def test_installed_hooks_are_inactive_until_they_are_named(runtime: Runtime) -> None:
    other = await build_runtime(load_settings({"node.plugins": ""}), catalog=runtime.catalog)
    assert other.interceptors("client") == []
    await other.close()


class FailingDriver:
    """A registry or broker whose start fails, and that notes whether it is closed."""

    def __init__(self) -> None:
        self.is_closed = False

    async def start(self) -> None:
        raise Unreachable("no answer")

    async def close(self) -> None:
        self.is_closed = True


async def test_registry_that_cannot_be_started_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    failing: Any = FailingDriver()
    monkeypatch.setattr("micro_core.drivers.construction.build_registry", lambda *args: failing)
    with pytest.raises(Unreachable):
        await build_runtime(load_settings({}))
    assert failing.is_closed


async def test_broker_that_cannot_be_started_is_closed(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    failing: Any = FailingDriver()
    monkeypatch.setattr("micro_core.drivers.runtime.build", lambda *args: failing)
    with pytest.raises(Unreachable):
        await runtime.open_broker()
    assert failing.is_closed
    assert runtime.broker is None


@dataclass(frozen=True, kw_only=True)
class MarkOptions:
    label: str = option("plain", "Label of the interceptor.")


class Marker:
    """Hooks with options and a context, as a cross-cutting plugin creates them."""

    def __init__(self, options: MarkOptions, context: DriverContext) -> None:
        self.label = options.label
        self.site = context.site

    @hookimpl
    def micro_interceptors(self, side: str) -> list[Any]:
        return [(side, self.label, self.site)]


async def test_hooks_with_a_description_are_created_with_their_options(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("rpc_test_hooks")

    @hookimpl
    def micro_hooks() -> Driver[object]:
        return Driver(name="label", summary="", options=MarkOptions, create=Marker)

    module.micro_hooks = micro_hooks  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "rpc_test_hooks", module)
    settings = load_settings({"node.plugins": "label", "node.site": "eu"}, sets=["label.label=bold"])
    runtime = await build_runtime(settings, catalog=Catalog([*INSTALLED, hook("label")]))
    assert list[Any](runtime.interceptors("server")) == [("server", "bold", "eu")]
    await runtime.close()
    with pytest.raises(OptionError, match=r"unknown setting 'label.colour'"):
        await build_runtime(
            load_settings({"node.plugins": "label"}, sets=["label.colour=x"]),
            catalog=Catalog([*INSTALLED, hook("label")]),
        )


async def test_interceptors_of_named_hooks_wrap_calls(runtime: Runtime) -> None:
    seen: list[dict[str, str]] = []

    async def record(call: CallInfo, proceed: Any) -> Any:
        seen.append(dict(call.metadata))
        return await proceed(call)

    service = Service("s", registry=runtime.registry, transport=runtime.transport, interceptors=[record])
    await service.start()
    client = Client(runtime=runtime)
    await client.call("s", "Debug.Health")
    assert seen == [{"hook": "client"}]
    await client.close()
    await service.stop()
    assert await runtime.registry.instances() == [], "a runtime that was passed to them is still open"


async def test_broker_is_opened_once_on_first_use(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broker:
        def __init__(self) -> None:
            self.calls: list[str] = []

        async def start(self) -> None:
            self.calls.append("start")

        async def close(self) -> None:
            self.calls.append("close")

        async def publish(self, topic: str, message: Any) -> None:
            self.calls.append(f"publish {topic}")

    broker = Broker()

    def load(self: Catalog, entry: Entry) -> Driver[Any]:
        assert entry.role is Role.BROKER
        return Driver(name="node", summary="", options=NoOptions, create=lambda options, context: broker)

    monkeypatch.setattr(Catalog, "load", load)
    client = Client(runtime=runtime)
    await client.publish("orders.created", 1)
    await client.publish("orders.created", 2)
    await runtime.close()
    assert broker.calls == ["start", "publish orders.created", "publish orders.created", "close"]


def test_invalid_setting_ends_run_with_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MICRO_LEASE", "soon")
    with pytest.raises(SystemExit, match="lease"):
        Service("s").run()


def test_service_has_its_own_counters() -> None:
    assert isinstance(Service("s").counters, CountersInMemory)
    with pytest.raises(ConfigError):
        assert Service("s").instance
