"""Conformance kits: what the author of a driver inherits. One kit a role, one fixture to write.

    from micro_core.testing import RegistryConformance, DriverUnderTest

    class TestAcmeRegistry(RegistryConformance):
        @pytest.fixture
        def driver_under_test(self, acme_server):
            return DriverUnderTest(driver=micro_registry(), options=AcmeOptions(url=acme_server.url), faults=AcmeFaults(acme_server))

`driver_under_test` may be an asynchronous fixture too. From the `DriverUnderTest` a kit builds as many drivers as a test needs, each with
a `DriverContext` of its own; those of one test share network, site and state directory, as processes of one site do, and
no two tests share a network, so one server can serve them all. The tests of a kit are its *parts*:

- **required**: every promise of the role's Protocol in `micro_core.contract`;
- **by capability**: what `Driver.capabilities` declares is demanded (the words are in `capabilities`);
- **faults**: what must hold while the back end is killed, restarted, paused, emptied, or full of garbage. They need a
  `Faults`: a class whose methods the author writes as far as the back end allows.

A part that does not apply is skipped with a reason, and reports show it. `exceptions` of a kit's class names parts that
the driver cannot keep, each with its reason; other class attributes (`lease_s`, `patience_s`) fit a kit to its back end.

Kits know `micro_core.contract` and nothing else of the house. They need pytest and pytest-asyncio:
`pip install micro-network[testing]`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from micro_core.testing.broker.checks import BrokerConformance
    from micro_core.testing.kit.capabilities import CAPABILITIES
    from micro_core.testing.kit.conformance import Conformance, needs
    from micro_core.testing.kit.driver_under_test import DriverUnderTest, Faults
    from micro_core.testing.kit.harness import Harness, context
    from micro_core.testing.kit.server import ServerProcess, free_port
    from micro_core.testing.kit.waiting import until, within
    from micro_core.testing.registry.checks import RegistryConformance
    from micro_core.testing.resolver import ResolverConformance
    from micro_core.testing.table import TableConformance
    from micro_core.testing.transport import TransportConformance
    from micro_core.testing.tunnel import TunnelConformance

_HOMES = {
    "kit.harness": ("Harness", "context"),
    "broker.checks": ("BrokerConformance",),
    "kit.capabilities": ("CAPABILITIES",),
    "kit.conformance": ("Conformance", "needs"),
    "registry.checks": ("RegistryConformance",),
    "resolver": ("ResolverConformance",),
    "kit.server": ("ServerProcess", "free_port"),
    "kit.driver_under_test": ("Faults", "DriverUnderTest"),
    "table": ("TableConformance",),
    "transport": ("TransportConformance",),
    "tunnel": ("TunnelConformance",),
    "kit.waiting": ("until", "within"),
}
_SHARED = tuple(
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
"""Where else parts assert."""
_HOME_OF = {name: f"{__name__}.{home}" for home, names in _HOMES.items() for name in names}

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
    "needs",
    "until",
    "within",
]


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import sys
    from importlib import import_module

    import pytest

    # A failing part then shows the values it compared, as the author's own tests do. All at once: importing one of
    # them imports others, and pytest warns of those that come too late.
    every = {*_HOME_OF.values(), *_SHARED}
    pytest.register_assert_rewrite(*(every - set(sys.modules)))
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
