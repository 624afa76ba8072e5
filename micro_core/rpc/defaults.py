"""The drivers that the settings name, built and started: what a Client or Service without arguments stands on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from micro_core.spec.broker import Broker
from micro_core.spec.registry import Registry
from micro_core.spec.transport import Transport


@dataclass(slots=True, kw_only=True)
class Runtime:
    """Started drivers, and what else the settings say."""

    registry: Registry
    transport: Transport
    broker: Broker | None
    proxy: str
    site: str
    settings: Any

    async def close(self) -> None:
        """Close the drivers."""
        if self.broker is not None:
            await self.broker.close()
        await self.registry.close()
        await self.transport.close()


async def build_runtime(settings: Any = None) -> Runtime:
    """Load settings (unless given), build the drivers they name, start them. Raises ConfigError, Unreachable."""
    raise RuntimeError(f"no drivers for {settings}")
