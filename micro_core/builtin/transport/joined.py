"""Several transports as one, selected by the scheme of an address."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from micro_core.contract.errors import BadRequest, Unreachable
from micro_core.contract.transport import Listener, Socket, Transport


class JoinedTransport:
    """Implements `Transport`. Addresses without a scheme belong to the first transport."""

    def __init__(self, transports: Sequence[Transport]) -> None:
        self._transports = list(transports)
        self.scheme = transports[0].scheme if transports else ""

    async def start(self) -> None:
        """Start all transports."""
        for transport in self._transports:
            await transport.start()

    async def close(self) -> None:
        """Close all transports. Safe to call twice."""
        await asyncio.gather(*(transport.close() for transport in self._transports))

    async def dial(self, address: str, *, timeout_s: float) -> Socket:
        """Connect to `address`. Raises Unreachable, also if no transport has the scheme."""
        return await self._find(address).dial(address, timeout_s=timeout_s)

    async def listen(self, address: str, accept: Callable[[Socket], None]) -> Listener:
        """Listen at `address`. Raises Conflict.

        Raises:
            BadRequest: No transport has the scheme.
        """
        try:
            transport = self._find(address)
        except Unreachable as error:
            raise BadRequest(error.detail, hint=error.hint) from error
        return await transport.listen(address, accept)

    def _find(self, address: str) -> Transport:
        scheme, separator, _ = address.partition("://")
        for transport in self._transports:
            if not separator or transport.scheme == scheme:
                return transport
        schemes = ", ".join(transport.scheme for transport in self._transports) or "none"
        raise Unreachable(
            f"no transport for {address!r}",
            hint=f"transports in use: {schemes}; add one with --plugins transport:{scheme}",
        )
