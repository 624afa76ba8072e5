"""Tests of the error classes and of their conversion to and from the wire."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from micro_core.contract import errors
from micro_core.contract.errors import ERROR_CLASSES, MicroError, RemoteError, RouteNotFound, error_from_wire

SENT_CLASSES = sorted((cls for cls in ERROR_CLASSES.values() if cls.code < 900), key=lambda cls: cls.id)


@pytest.mark.parametrize("error_class", SENT_CLASSES, ids=lambda cls: cls.id)
def test_error_has_the_same_class_at_both_ends(error_class: type[MicroError]) -> None:
    sent = error_class("what happened", at="node b7f3 (eu)", hint="micro network services")
    received = error_from_wire(sent.to_wire())
    assert type(received) is error_class
    assert (received.detail, received.at, received.hint) == (sent.detail, sent.at, sent.hint)


def test_error_contains_cause_position_and_hint() -> None:
    error = RouteNotFound("no route to greeter", at="node b7f3 (eu)", hint="micro network services")
    assert str(error) == "no route to greeter at node b7f3 (eu) (hint: micro network services)"


def test_id_and_code_defined_by_a_service_are_preserved() -> None:
    sent = RemoteError("no such colour", code=422, status="Unprocessable", id="paint.colour")
    received = error_from_wire(sent.to_wire())
    assert (received.id, received.code, received.status) == ("paint.colour", 422, "Unprocessable")


def test_configuration_error_from_a_peer_is_not_accepted() -> None:
    assert error_from_wire({"id": "plugin-missing", "code": 902, "detail": "x"}).code == 500


def test_code_from_a_peer_takes_precedence_over_a_contradicting_id() -> None:
    received = error_from_wire({"id": "overloaded", "code": 502, "detail": "x"})
    assert received.code == 502


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text() | st.binary(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_any_value_from_a_peer_becomes_an_error(value: object) -> None:
    assert isinstance(error_from_wire(value), MicroError)


def test_docstring_of_the_module_lists_every_class_with_its_code() -> None:
    documented = {
        match[0]: int(match[1])
        for match in re.findall(r"(\w+) +(\d{3})\b", (errors.__doc__ or "").split("An error is created")[0])
    }
    assert documented == {cls.__name__: cls.code for cls in ERROR_CLASSES.values()}
