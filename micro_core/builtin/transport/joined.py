"""Several transports as one: an address's scheme says which."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from micro_core.contract.errors import BadRequest, Unreachable
from micro_core.contract.transport import Listener, Socket, Transport


class JoinedTransport:
    """Dials and listens by scheme; an address without one goes to the first transport."""

    def __init__(self, transports: Sequence[Transport]) -> None:
        self._transports = list(transports)
        self.scheme = transports[0].scheme if transports else ""

    async def start(self) -> None:
        for transport in self._transports:
            await transport.start()

    async def close(self) -> None:
        await asyncio.gather(*(transport.close() for transport in self._transports))

    async def dial(self, address: str, *, timeout_s: float) -> Socket:
        """As `Transport.dial`; raises Unreachable for a scheme that no transport here has."""
        return await self._find(address).dial(address, timeout_s=timeout_s)

    async def listen(self, address: str, accept: Callable[[Socket], None]) -> Listener:
        """As `Transport.listen`; raises BadRequest for a scheme that no transport here has."""
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
        known = ", ".join(transport.scheme for transport in self._transports) or "none"
        raise Unreachable(
            f"no transport for {address!r}",
            hint=f"transports in use: {known}; add one with --plugins transport:{scheme}",
        )
