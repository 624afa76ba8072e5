"""Conformance kits: tests that the author of a driver inherits. There is one kit per role, and one fixture to write.

    from micro_core.testing import DriverUnderTest, RegistryConformance

    class TestAcmeRegistry(RegistryConformance):
        @pytest.fixture
        def driver_under_test(self, acme_server):
            options = AcmeOptions(url=acme_server.url)
            return DriverUnderTest(driver=micro_registry(), options=options, faults=AcmeFaults(acme_server))

`driver_under_test` can also be an asynchronous fixture. From the `DriverUnderTest` a kit creates as many drivers as a test
needs, each with a `DriverContext` of its own. The drivers of one test share network, site and state directory, like the
processes of one site. No two tests share a network, so one server can serve all of them. The tests of a kit are called
*checks*:

- **required** checks test every guarantee of the role's Protocol in `micro_core.contract`;
- **capability** checks test what the driver declares in `Driver.capabilities` (the names are in `CAPABILITIES`);
- **fault** checks test what must hold while the back end is killed, restarted, paused, emptied, or filled with garbage.
  They need a `Faults` object, whose methods the author implements as far as the back end supports them.

A check that does not apply is skipped, and reports show the reason. `exceptions` of a kit's class lists checks that the
driver cannot pass, each with a reason. Other class attributes (`lease_s`, `timeout_s`) adapt a kit to its back end.

Kits import `micro_core.contract` and no other package of core. They need pytest and pytest-asyncio:
`pip install micro-network[testing]`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from micro_core.testing.broker.checks import BrokerConformance
    from micro_core.testing.kit.capabilities import CAPABILITIES
    from micro_core.testing.kit.conformance import Conformance, requires
    from micro_core.testing.kit.driver_under_test import DriverUnderTest, Faults
    from micro_core.testing.kit.harness import Harness, context
    from micro_core.testing.kit.server import ServerProcess, free_port
    from micro_core.testing.kit.waiting import until, within
    from micro_core.testing.registry.checks import RegistryConformance
    from micro_core.testing.resolver import ResolverConformance
    from micro_core.testing.table import TableConformance
    from micro_core.testing.transport import TransportConformance
    from micro_core.testing.tunnel import TunnelConformance

_NAMES_BY_MODULE = {
    "kit.harness": ("Harness", "context"),
    "broker.checks": ("BrokerConformance",),
    "kit.capabilities": ("CAPABILITIES",),
    "kit.conformance": ("Conformance", "requires"),
    "registry.checks": ("RegistryConformance",),
    "resolver": ("ResolverConformance",),
    "kit.server": ("ServerProcess", "free_port"),
    "kit.driver_under_test": ("Faults", "DriverUnderTest"),
    "table": ("TableConformance",),
    "transport": ("TransportConformance",),
    "tunnel": ("TunnelConformance",),
    "kit.waiting": ("until", "within"),
}
_FURTHER_MODULES = tuple(
    f"{__name__}.{name}"
    for name in (
        "broker.durable",
        "broker.faults",
        "broker.support",
        "kit.conformance",
        "kit.watch_recorder",
        "registry.faults",
        "registry.support",
        "registry.watches",
    )
)
"""Further modules that contain assertions."""
_MODULE_OF = {name: f"{__name__}.{module}" for module, names in _NAMES_BY_MODULE.items() for name in names}

__all__ = [
    "CAPABILITIES",
    "BrokerConformance",
    "Conformance",
    "DriverUnderTest",
    "Faults",
    "Harness",
    "RegistryConformance",
    "ResolverConformance",
    "ServerProcess",
    "TableConformance",
    "TransportConformance",
    "TunnelConformance",
    "context",
    "free_port",
    "requires",
    "until",
    "within",
]


def __getattr__(name: str) -> Any:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import sys
    from importlib import import_module

    import pytest

    # With assertion rewriting, a failing check shows the compared values, as in the author's own tests. All modules are
    # registered together, because importing one of them imports others, and pytest warns about modules that were
    # imported before their registration.
    modules = {*_MODULE_OF.values(), *_FURTHER_MODULES}
    pytest.register_assert_rewrite(*(modules - set(sys.modules)))
    value = getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
