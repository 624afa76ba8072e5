"""The endpoints `Debug.Health`, `Debug.Describe` and `Debug.Stats`, which every service and every node has."""

from __future__ import annotations

from typing import Any

from micro_core.contract.clock import Clock
from micro_core.contract.errors import Draining
from micro_core.rpc.server import Server


class Debug:
    """Adds `Debug.Health`, `Debug.Describe` and `Debug.Stats` to a server.

    Args:
        server: The server that is described and that serves the endpoints.
        version: The version of the service.
        instance_id: The id in the record of the registry. `server.at` is used if it is empty.

    Raises:
        Conflict: The server already has one of these endpoints.
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

    def start(self, clock: Clock) -> None:
        """Record the current time of `clock` as the start of the service, from which the uptime is counted."""
        self._clock = clock
        self._started_wall, self._started_now = clock.wall(), clock.now()

    # The first lines of the docstrings below are the descriptions of the endpoints in the registry.

    async def health(self) -> dict[str, str]:
        """Return the status of the instance.

        Raises:
            Draining: The instance is shutting down.
        """
        if self._server.is_draining:
            raise Draining("the instance is shutting down", at=self._server.at)
        return self._server.health()

    async def describe(self) -> dict[str, Any]:
        """Return the service, its version, the instance id, and the endpoints with their schemas."""
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
        """Return counters, uptime, load and memory of the instance."""
        uptime_s = self._clock.now() - self._started_now if self._clock is not None else 0.0
        return self._server.stats(self._started_wall, uptime_s)
