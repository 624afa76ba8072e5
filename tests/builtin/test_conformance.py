"""The built-in drivers pass the kits that strangers' drivers pass."""

from __future__ import annotations

import pytest

from micro_core.builtin.registry import memory as memory_registry
from micro_core.builtin.registry.joined import JoinedRegistry
from micro_core.contract import Driver, DriverContext, NoOptions, Registry
from micro_core.testing import DriverUnderTest, RegistryConformance
from micro_core.testing.builtin_drivers import *  # noqa: F403 - every class is a test of this module


class TestJoinedRegistry(RegistryConformance):
    """Several registries as one are a registry."""

    lease_s = 0.4

    @pytest.fixture
    def driver_under_test(self) -> DriverUnderTest[Registry]:
        def create(options: NoOptions, context: DriverContext) -> Registry:
            from dataclasses import replace

            parts = [
                memory_registry.create(options, replace(context, network=f"{context.network}.{name}"))
                for name in ("one", "two")
            ]
            return JoinedRegistry(parts, context.counters)

        return DriverUnderTest(
            driver=Driver(name="joined", summary="Two as one.", options=NoOptions, create=create),
        )
