"""The built-in drivers pass the conformance kits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from micro_core.builtin.registry import memory as memory_registry
from micro_core.builtin.registry.joined import JoinedRegistry
from micro_core.contract import Driver, DriverContext, NoOptions, Registry
from micro_core.testing import DriverUnderTest, RegistryConformance
from micro_core.testing.builtin_drivers import *  # noqa: F403 - every class is a test of this module


class TestJoinedRegistry(RegistryConformance):
    """Two memory registries, joined."""

    lease_s = 0.4

    @pytest.fixture
    def driver_under_test(self) -> DriverUnderTest[Registry]:
        def create(options: NoOptions, context: DriverContext) -> Registry:
            registries = [
                memory_registry.create(options, replace(context, network=f"{context.network}.{name}"))
                for name in ("one", "two")
            ]
            return JoinedRegistry(registries, context.counters)

        return DriverUnderTest(
            driver=Driver(name="joined", summary="Two registries as one.", options=NoOptions, create=create),
        )
