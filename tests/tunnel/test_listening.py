"""Several drivers listen, under one number where they can."""

from __future__ import annotations

import pytest

from micro_core.contract import Conflict
from micro_core.tunnel.listening import SHARED_PORT_ATTEMPTS, listen_on_all


class Listener:
    def __init__(self, driver: Driver, address: str) -> None:
        self.driver = driver
        self.address = address

    async def close(self) -> None:
        self.driver.open.remove(self)


class Driver:
    """Draws the numbers it is given, and refuses those that are taken."""

    def __init__(self, scheme: str, draws: list[int], taken: tuple[int, ...] = ()) -> None:
        self.scheme = scheme
        self.draws = iter(draws)
        self.taken = taken
        self.open: list[Listener] = []

    async def listen(self, address: str, accept: object) -> Listener:
        host, _, port = address.rpartition(":")
        number = int(port) or next(self.draws)
        if number in self.taken:
            raise Conflict(f"port {number} is taken")
        self.open.append(Listener(self, f"{self.scheme}://{host}:{number}"))
        return self.open[-1]


async def addresses(*places: tuple[Driver, str]) -> list[str]:
    return [listener.address for listener in await listen_on_all(places, lambda link: None)]  # type: ignore[arg-type]


async def test_where_any_port_will_do_all_drivers_get_one_number() -> None:
    quic, tls = Driver("quic", [4001]), Driver("tls", [5001])
    assert await addresses((quic, "127.0.0.1:0"), (tls, "127.0.0.1:0")) == [
        "quic://127.0.0.1:4001",
        "tls://127.0.0.1:4001",
    ]


async def test_a_number_that_one_driver_cannot_have_is_given_back_and_another_is_drawn() -> None:
    quic, tls = Driver("quic", [4001, 4002, 4003]), Driver("tls", [], taken=(4001, 4002))
    assert await addresses((quic, "127.0.0.1:0"), (tls, "127.0.0.1:0")) == [
        "quic://127.0.0.1:4003",
        "tls://127.0.0.1:4003",
    ]
    assert len(quic.open) == len(tls.open) == 1


async def test_where_no_number_is_free_for_all_each_takes_its_own() -> None:
    numbers = list(range(4001, 4001 + SHARED_PORT_ATTEMPTS + 1))
    quic, tls = Driver("quic", numbers), Driver("tls", [5001], taken=tuple(numbers))
    assert await addresses((quic, "127.0.0.1:0"), (tls, "127.0.0.1:0")) == [
        f"quic://127.0.0.1:{numbers[-1]}",
        "tls://127.0.0.1:5001",
    ]
    assert len(quic.open) == 1


async def test_a_number_that_was_asked_for_is_taken_or_refused_and_nothing_stays_open() -> None:
    quic, tls = Driver("quic", [4001]), Driver("tls", [], taken=(8086,))
    with pytest.raises(Conflict, match="8086"):
        await addresses((quic, "127.0.0.1:0"), (tls, "127.0.0.1:8086"))
    assert quic.open == []
