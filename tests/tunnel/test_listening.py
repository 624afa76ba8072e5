"""Several drivers listen, with one port number if possible."""

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
    """Uses the given ephemeral ports in order, and refuses ports that are in use."""

    def __init__(self, scheme: str, ephemeral: list[int], in_use: tuple[int, ...] = ()) -> None:
        self.scheme = scheme
        self.ephemeral = iter(ephemeral)
        self.in_use = in_use
        self.open: list[Listener] = []

    async def listen(self, address: str, accept: object) -> Listener:
        host, _, port = address.rpartition(":")
        number = int(port) or next(self.ephemeral)
        if number in self.in_use:
            raise Conflict(f"port {number} is in use")
        self.open.append(Listener(self, f"{self.scheme}://{host}:{number}"))
        return self.open[-1]


async def addresses(*listening: tuple[Driver, str]) -> list[str]:
    return [listener.address for listener in await listen_on_all(listening, lambda link: None)]  # type: ignore[arg-type]


async def test_ephemeral_port_is_shared_by_all_link_drivers() -> None:
    quic, tls = Driver("quic", [4001]), Driver("tls", [5001])
    assert await addresses((quic, "127.0.0.1:0"), (tls, "127.0.0.1:0")) == [
        "quic://127.0.0.1:4001",
        "tls://127.0.0.1:4001",
    ]


async def test_port_in_use_for_one_driver_is_released_and_another_is_tried() -> None:
    quic, tls = Driver("quic", [4001, 4002, 4003]), Driver("tls", [], in_use=(4001, 4002))
    assert await addresses((quic, "127.0.0.1:0"), (tls, "127.0.0.1:0")) == [
        "quic://127.0.0.1:4003",
        "tls://127.0.0.1:4003",
    ]
    assert len(quic.open) == len(tls.open) == 1


async def test_each_driver_uses_its_own_port_if_no_port_is_free_for_all() -> None:
    numbers = list(range(4001, 4001 + SHARED_PORT_ATTEMPTS + 1))
    quic, tls = Driver("quic", numbers), Driver("tls", [5001], in_use=tuple(numbers))
    assert await addresses((quic, "127.0.0.1:0"), (tls, "127.0.0.1:0")) == [
        f"quic://127.0.0.1:{numbers[-1]}",
        "tls://127.0.0.1:5001",
    ]
    assert len(quic.open) == 1


async def test_fixed_port_in_use_is_refused_and_no_listener_stays_open() -> None:
    quic, tls = Driver("quic", [4001]), Driver("tls", [], in_use=(8086,))
    with pytest.raises(Conflict, match="8086"):
        await addresses((quic, "127.0.0.1:0"), (tls, "127.0.0.1:8086"))
    assert quic.open == []
