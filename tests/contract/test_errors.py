from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from micro_core.contract import errors
from micro_core.contract.errors import ERROR_CLASSES, MicroError, RemoteError, RouteNotFound, error_from_wire

CROSSING = sorted((cls for cls in ERROR_CLASSES.values() if cls.code < 900), key=lambda cls: cls.id)


@pytest.mark.parametrize("error_class", CROSSING, ids=lambda cls: cls.id)
def test_an_error_is_of_the_same_class_at_both_ends(error_class: type[MicroError]) -> None:
    sent = error_class("what happened", at="node b7f3 (eu)", hint="micro network services")
    received = error_from_wire(sent.to_wire())
    assert type(received) is error_class
    assert (received.detail, received.at, received.hint) == (sent.detail, sent.at, sent.hint)


def test_an_error_says_what_where_and_what_to_try() -> None:
    error = RouteNotFound("no route to greeter", at="node b7f3 (eu)", hint="micro network services")
    assert str(error) == "no route to greeter at node b7f3 (eu) (try: micro network services)"


def test_a_service_s_own_id_and_code_arrive() -> None:
    sent = RemoteError("no such colour", code=422, status="Unprocessable", id="paint.colour")
    received = error_from_wire(sent.to_wire())
    assert (received.id, received.code, received.status) == ("paint.colour", 422, "Unprocessable")


def test_a_peer_cannot_send_an_error_of_our_own_configuration() -> None:
    assert error_from_wire({"id": "plugin-missing", "code": 902, "detail": "x"}).code == 500


def test_a_peer_cannot_turn_a_lost_link_into_a_refusal_that_is_safe_to_retry() -> None:
    received = error_from_wire({"id": "overloaded", "code": 502, "detail": "x"})
    assert received.code == 502


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text() | st.binary(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_whatever_a_peer_sends_becomes_some_error(value: object) -> None:
    assert isinstance(error_from_wire(value), MicroError)


def test_the_tree_in_the_docstring_shows_every_class_with_its_code() -> None:
    drawn = {
        match[0]: int(match[1])
        for match in re.findall(r"(\w+) +(\d{3})\b", (errors.__doc__ or "").split("An error")[0])
    }
    assert drawn == {cls.__name__: cls.code for cls in ERROR_CLASSES.values()}
