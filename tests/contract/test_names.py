"""Tests of the checks of names and of the functions for addresses."""

from __future__ import annotations

import pytest

from micro_core.contract.errors import BadRequest
from micro_core.contract.names import (
    check_endpoint_name,
    check_service_name,
    check_site,
    check_topic,
    interest_name,
    join_host_port,
    split_host_port,
)


@pytest.mark.parametrize("name", ["go.micro.srv.greeter", "a", "orders/v2", "orders:v2"])
def test_valid_service_name_is_returned(name: str) -> None:
    assert check_service_name(name) == name


@pytest.mark.parametrize("name", ["", " ", "a b", "~topic", "-a", "a-", "a\n", "é", "a" * 254])
def test_invalid_name_is_rejected(name: str) -> None:
    for check in (check_service_name, check_endpoint_name, check_topic):
        with pytest.raises(BadRequest):
            check(name)


def test_interest_name_is_not_a_valid_service_name() -> None:
    with pytest.raises(BadRequest):
        check_service_name(interest_name("orders.created"))


def test_site_is_one_dns_label() -> None:
    assert check_site("eu-west-1") == "eu-west-1"
    for site in ("EU", "a.b", "", "-a", "a" * 64):
        with pytest.raises(BadRequest):
            check_site(site)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1:80", ("127.0.0.1", 80)),
        ("[::1]:80", ("::1", 80)),
        (":8085", ("", 8085)),
        ("host", ("host", 8085)),
        ("[::1]", ("::1", 8085)),
    ],
)
def test_address_is_split_into_host_and_port(address: str, expected: tuple[str, int]) -> None:
    assert split_host_port(address, 8085) == expected


@pytest.mark.parametrize("address", ["::1:80", "host:port", "host:70000", "host:-1", "host:\uff18\uff10"])
def test_ambiguous_or_invalid_address_is_rejected(address: str) -> None:
    with pytest.raises(BadRequest):
        split_host_port(address, 8085)


def test_join_host_port_is_the_inverse_of_split_host_port() -> None:
    assert join_host_port("::1", 1) == "[::1]:1"
    assert join_host_port("h", 1) == "h:1"
