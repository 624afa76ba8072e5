"""The conformance kit of the registry role, with and without keyspace notifications, including all server faults."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from micro_redis_registry import micro_registry
from micro_redis_registry.options import RedisOptions

from micro_core.contract import Registry
from micro_core.testing import DriverUnderTest, RegistryConformance

if TYPE_CHECKING:
    from plugins.redis_registry.tests.conftest import MakeServer


class TestRedisRegistry(RegistryConformance):
    lease_s = 0.4
    pause_s = 1.0
    burst_changes = 1_200  # more than a watch queues

    @pytest.fixture(params=["", "Kgxe"], ids=["own-channel", "keyspace"])
    async def driver_under_test(
        self, request: pytest.FixtureRequest, make_server: MakeServer
    ) -> DriverUnderTest[Registry]:
        server = await make_server("--appendonly", "yes", "--notify-keyspace-events", request.param).start()
        return DriverUnderTest(
            driver=micro_registry(),
            options=RedisOptions(url=server.url, timeout_s=2.0),
            faults=server,
            # This server stores its data. Without that, records are missing until their owners notice the loss.
            capabilities=micro_registry().capabilities | {"persistent"},
        )
