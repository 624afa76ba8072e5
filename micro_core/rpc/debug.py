"""The endpoints that every service has, a node's included: is it well, what can it do, what has it counted."""

from __future__ import annotations

from typing import Any

from micro_core.contract.clock import Clock
from micro_core.contract.errors import Draining
from micro_core.rpc.server import Server


class Debug:
    """`Debug.Health`, `Debug.Describe` and `Debug.Stats` of what `server` serves.

    `instance_id` is the record's in the registry; where it is empty, `server.at`.
    """

    def __init__(self, server: Server, *, version: str, instance_id: str = "") -> None:
        self._server = server
        self._version = version
        self._instance_id = instance_id
        self._clock: Clock | None = None
        self._started_wall = self._started_now = 0.0
        server.add("Debug.Health", self.health, idempotent=True)
        server.add("Debug.Describe", self.describe, idempotent=True)
        server.add("Debug.Stats", self.stats, idempotent=True)

    def begin(self, clock: Clock) -> None:
        """The service starts now."""
        self._clock = clock
        self._started_wall, self._started_now = clock.wall(), clock.now()

    async def health(self) -> dict[str, str]:
        """Whether the instance serves."""
        if self._server.is_draining:
            raise Draining("stopping", at=self._server.at)
        return self._server.health()

    async def describe(self) -> dict[str, Any]:
        """What this service can do."""
        endpoints = [
            {
                "name": endpoint.name,
                "kind": endpoint.kind.value,
                "description": endpoint.description,
                "request": endpoint.request,
                "response": endpoint.response,
                "idempotent": endpoint.idempotent,
                "queue": endpoint.queue,
            }
            for endpoint in self._server.endpoints
        ]
        return {
            "service": self._server.name,
            "version": self._version,
            "id": self._instance_id or self._server.at,
            "endpoints": endpoints,
        }

    async def stats(self) -> dict[str, Any]:
        """Counts, uptime and memory."""
        uptime_s = self._clock.now() - self._started_now if self._clock is not None else 0.0
        return self._server.stats(self._started_wall, uptime_s)
