"""Where each tunnel driver listens, from one setting."""

from __future__ import annotations

from typing import Any

import pytest

from micro_core.contract import ConfigError
from micro_core.node.assembly import listeners


class Named:
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
def test_each_driver_listens_at_its_own_place_or_at_the_one_for_all(listen: str, expected: list[str | None]) -> None:
    drivers: list[Any] = [Named("quic"), Named("tls")]
    assert [place for _, place in listeners(drivers, listen)] == expected


def test_a_place_for_a_driver_that_is_not_in_use_is_refused_by_name() -> None:
    drivers: list[Any] = [Named("quic")]
    with pytest.raises(ConfigError, match="tls://:443") as caught:
        listeners(drivers, "quic://:1,tls://:443")
    assert "quic" in caught.value.hint
