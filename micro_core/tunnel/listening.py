"""Where a node's link drivers listen."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from micro_core.contract import Conflict, Link, LinkDriver
from micro_core.contract.transport import Listener

SHARED_NUMBER_ATTEMPTS = 16
"""Ports drawn before the drivers take different ones."""


async def listen_everywhere(places: Sequence[tuple[LinkDriver, str]], accept: Callable[[Link], None]) -> list[Listener]:
    """Open each driver's listener; those for which any port will do (`:0`) get one number.

    An address without a scheme then leads to all of them. A number that is free for the first driver's protocol may be
    taken for another's, so several are tried, and where none is free for all, each driver takes its own.

    Raises:
        MicroError: what a driver's `listen` raised; nothing is left open.
    """
    for _ in range(SHARED_NUMBER_ATTEMPTS):
        try:
            return await _listen(places, accept, is_shared=True)
        except _NumberTaken:
            continue
    return await _listen(places, accept, is_shared=False)


class _NumberTaken(Exception):
    """The port drawn by the first driver is not free for another."""


async def _listen(
    places: Sequence[tuple[LinkDriver, str]], accept: Callable[[Link], None], *, is_shared: bool
) -> list[Listener]:
    opened: list[Listener] = []
    drawn = ""
    try:
        for driver, address in places:
            takes_any = is_shared and address.endswith(":0")
            try:
                opened.append(await driver.listen(address[:-1] + drawn if takes_any and drawn else address, accept))
            except Conflict as error:
                if takes_any and drawn:
                    raise _NumberTaken from error
                raise
            if takes_any and not drawn:
                drawn = opened[-1].address.rpartition(":")[2]
    except BaseException:
        await asyncio.gather(*(listener.close() for listener in opened))
        raise
    return opened
