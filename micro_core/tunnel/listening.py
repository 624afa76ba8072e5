"""Opens the listeners of a node's link drivers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from micro_core.contract import Conflict, Link, LinkDriver
from micro_core.contract.transport import Listener

SHARED_PORT_ATTEMPTS = 16
"""Number of ports that are tried before the drivers use different ones."""


async def listen_on_all(addresses: Sequence[tuple[LinkDriver, str]], accept: Callable[[Link], None]) -> list[Listener]:
    """Open the listener of each driver. Drivers whose address leaves the port open (`:0`) share one port number.

    An address without a scheme then leads to all of them. A port that is free for the protocol of the first driver may
    be in use for that of another, so several are tried. If no port is free for all, each driver uses its own.

    Raises:
        MicroError: what `listen` of a driver raised. No listener is left open.
    """
    for _ in range(SHARED_PORT_ATTEMPTS):
        try:
            return await _listen(addresses, accept, is_shared=True)
        except _PortInUseError:
            continue
    return await _listen(addresses, accept, is_shared=False)


class _PortInUseError(Exception):
    """The ephemeral port of the first driver is in use for another."""


async def _listen(
    addresses: Sequence[tuple[LinkDriver, str]], accept: Callable[[Link], None], *, is_shared: bool
) -> list[Listener]:
    opened: list[Listener] = []
    shared_port = ""
    try:
        for driver, address in addresses:
            is_ephemeral = is_shared and address.endswith(":0")
            try:
                chosen = address[:-1] + shared_port if is_ephemeral and shared_port else address
                opened.append(await driver.listen(chosen, accept))
            except Conflict as error:
                if is_ephemeral and shared_port:
                    raise _PortInUseError from error
                raise
            if is_ephemeral and not shared_port:
                shared_port = opened[-1].address.rpartition(":")[2]
    except BaseException:
        await asyncio.gather(*(listener.close() for listener in opened))
        raise
    return opened
