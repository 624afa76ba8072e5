"""The registry's kit, with and without keyspace notifications, on a server that is killed, stopped, emptied and spoilt."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from micro_redis_registry import micro_registry
from micro_redis_registry.options import RedisOptions

from micro_core.contract import Registry
from micro_core.testing import RegistryConformance, Subject

if TYPE_CHECKING:
    from plugins.redis_registry.tests.conftest import MakeServer


class TestRedisRegistry(RegistryConformance):
    lease_s = 0.4
    pause_s = 1.0
    changes_in_a_storm = 1_200  # above what a watch holds

    @pytest.fixture(params=["", "Kgxe"], ids=["own-channel", "keyspace"])
    async def subject(self, request: pytest.FixtureRequest, make_server: MakeServer) -> Subject[Registry]:
        server = await make_server("--appendonly", "yes", "--notify-keyspace-events", request.param).start()
        return Subject(
            driver=micro_registry(),
            options=RedisOptions(url=server.url, timeout_s=2.0),
            faults=server,
            # This server keeps its data; one that does not loses nothing for longer than owners need to notice.
            capabilities=micro_registry().capabilities | {"persistent"},
        )
