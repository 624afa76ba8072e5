"""Tests of `node.listen`: the listen address of each tunnel driver."""

from __future__ import annotations

from typing import Any

import pytest

from micro_core.contract import ConfigError
from micro_core.node.assembly import listeners


class NamedDriver:
    def __init__(self, scheme: str) -> None:
        self.scheme = scheme


@pytest.mark.parametrize(
    ("listen", "expected"),
    [
        (":8085", [":8085", ":8085"]),
        ("none", [None, None]),
        ("quic://:8085,tls://:443", ["quic://:8085", "tls://:443"]),
        (":8085, tls://:443", [":8085", "tls://:443"]),
        ("tls://:443", [None, "tls://:443"]),
    ],
)
def test_driver_listens_at_its_own_address_or_at_the_shared_one(listen: str, expected: list[str | None]) -> None:
    drivers: list[Any] = [NamedDriver("quic"), NamedDriver("tls")]
    assert [address for _, address in listeners(drivers, listen)] == expected


def test_address_for_an_unused_driver_is_rejected() -> None:
    drivers: list[Any] = [NamedDriver("quic")]
    with pytest.raises(ConfigError, match="tls://:443") as caught:
        listeners(drivers, "quic://:1,tls://:443")
    assert "quic" in caught.value.hint
