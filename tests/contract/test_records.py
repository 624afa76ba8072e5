"""Tests of the conversion of instances to plain maps and back, and of the validation of untrusted data."""

import json
from dataclasses import replace

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from micro_core.contract import (
    MAX_RECORD_BYTES,
    BadRequest,
    Endpoint,
    EndpointKind,
    Instance,
    Malformed,
    TooLarge,
    check_instance,
    instance_from_dict,
    instance_to_dict,
)

PLAIN = Instance(service="greeter", id="greeter-1", address="tcp://127.0.0.1:4001")
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
NAME = st.from_regex(r"[A-Za-z0-9_]([A-Za-z0-9_.:/-]{0,10}[A-Za-z0-9_])?", fullmatch=True)
LABEL = st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=20)
JSON_VALUE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda below: st.lists(below, max_size=3) | st.dictionaries(TEXT, below, max_size=3),
    max_leaves=8,
)
SCHEMA = st.dictionaries(TEXT, JSON_VALUE, max_size=3)
ENDPOINT = st.builds(
    Endpoint,
    name=NAME,
    kind=st.sampled_from(EndpointKind),
    request=SCHEMA,
    response=SCHEMA,
    idempotent=st.booleans(),
    queue=TEXT,
    description=TEXT,
)
INSTANCE = st.builds(
    Instance,
    service=NAME,
    id=LABEL,
    address=LABEL,
    version=LABEL,
    metadata=st.dictionaries(TEXT, TEXT, max_size=4),
    endpoints=st.lists(ENDPOINT, max_size=3).map(tuple),
)


@settings(max_examples=100, deadline=None)
@given(INSTANCE)
def test_record_is_unchanged_after_json_and_msgpack(instance: Instance) -> None:
    record = instance_to_dict(instance)
    assert instance_from_dict(record) == instance
    assert instance_from_dict(json.loads(json.dumps(record))) == instance
    assert instance_from_dict(msgpack.unpackb(msgpack.packb(record))) == instance
    assert check_instance(instance) == instance


@settings(max_examples=200, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=5),
        lambda below: (
            st.lists(below, max_size=4)
            | st.dictionaries(
                st.sampled_from(
                    ["service", "id", "address", "version", "metadata", "endpoints", "name", "kind", "request"]
                )
                | st.integers(),
                below,
                max_size=8,
            )
        ),
    )
)
def test_arbitrary_value_is_a_record_or_malformed(value: object) -> None:
    try:
        instance = instance_from_dict(value)
    except Malformed:
        return
    assert instance_from_dict(instance_to_dict(instance)) == instance


def test_fields_with_their_default_value_are_left_out() -> None:
    assert instance_to_dict(PLAIN) == {"service": "greeter", "id": "greeter-1", "address": "tcp://127.0.0.1:4001"}
    with_endpoint = replace(PLAIN, endpoints=(Endpoint(name="Say.Hello"),))
    assert instance_to_dict(with_endpoint)["endpoints"] == [{"name": "Say.Hello"}]


def test_fields_of_later_versions_are_ignored() -> None:
    assert instance_from_dict({**instance_to_dict(PLAIN), "weight": 7}) == PLAIN


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"service": None}, "service"),
        ({"service": "~orders.created"}, "service"),
        ({"service": "x" * 254}, "service"),
        ({"id": ""}, "id"),
        ({"id": "a\nb"}, "id"),
        ({"id": 7}, "id"),
        ({"address": ""}, "address"),
        ({"address": "x" * 2_000}, "address"),
        ({"version": ""}, "version"),
        ({"metadata": []}, "metadata"),
        ({"metadata": {"a": 1}}, "metadata 'a'"),
        ({"metadata": {1: "a"}}, "metadata: a key"),
        ({"metadata": {str(number): "" for number in range(65)}}, "metadata"),
        ({"metadata": {"a": "x" * 5_000}}, "metadata 'a'"),
        ({"metadata": {"a": "\ud800"}}, "metadata 'a'"),
        ({"endpoints": {}}, "endpoints"),
        ({"endpoints": [{"name": "a"}] * 600}, "endpoints"),
        ({"endpoints": ["Say.Hello"]}, "endpoint"),
        ({"endpoints": [{}]}, "endpoint"),
        ({"endpoints": [{"name": "a", "kind": "both"}]}, "kind"),
        ({"endpoints": [{"name": "a", "kind": ["unary"]}]}, "kind"),
        ({"endpoints": [{"name": "a", "idempotent": 1}]}, "idempotent"),
        ({"endpoints": [{"name": "a", "request": []}]}, "schema"),
        ({"endpoints": [{"name": "a", "request": {"a": b""}}]}, "schema"),
        ({"endpoints": [{"name": "a", "request": {"a": float("nan")}}]}, "schema"),
        ({"endpoints": [{"name": "a", "request": {"a": 2**64}}]}, "schema"),
        ({"endpoints": [{"name": "a", "request": {"a": ["x" * 500] * 200}}]}, str(MAX_RECORD_BYTES)),
        ({"endpoints": [{"name": "a", "request": {"a": [None] * 100_000}}]}, str(MAX_RECORD_BYTES)),
    ],
)
def test_invalid_field_is_malformed_and_named(change: dict[str, object], field: str) -> None:
    with pytest.raises(Malformed) as caught:
        instance_from_dict({**instance_to_dict(PLAIN), **change})
    assert field in caught.value.detail


def test_schema_that_nests_too_deep_is_malformed() -> None:
    schema: dict[str, object] = {}
    for _ in range(1_000):
        schema = {"a": schema}
    with pytest.raises(Malformed, match="nests deeper"):
        instance_from_dict({**instance_to_dict(PLAIN), "endpoints": [{"name": "a", "request": schema}]})


def test_check_of_an_instance_over_the_limit_raises_too_large() -> None:
    endpoints = tuple(Endpoint(name=f"Say.Hello{number}", description="x" * 2_000) for number in range(40))
    with pytest.raises(TooLarge, match=str(MAX_RECORD_BYTES)):
        check_instance(replace(PLAIN, endpoints=endpoints))
    with pytest.raises(BadRequest, match="service"):
        check_instance(replace(PLAIN, service="not a name"))


def test_checked_instance_shares_no_mutable_object() -> None:
    schema: dict[str, object] = {"properties": {"name": {"type": "string"}}}
    checked = check_instance(replace(PLAIN, endpoints=(Endpoint(name="Say.Hello", request=schema),)))
    schema["properties"] = None
    assert checked.endpoints[0].request == {"properties": {"name": {"type": "string"}}}
