"""Inspection of handler signatures, JSON Schemas of types, and the conversion of values."""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from micro_core.contract.errors import BadRequest, ConfigError, MicroError
from micro_core.contract.registry import EndpointKind
from micro_core.rpc.context import CallContext
from micro_core.rpc.schema import json_schema, read_handler
from micro_core.rpc.validation import converter, to_plain


class Colour(enum.Enum):
    RED = "red"


class Options(TypedDict):
    size: int
    note: NotRequired[str]


@dataclass
class Tree:
    value: int
    children: list[Tree] = field(default_factory=list)


@dataclass
class Positive:
    number: int

    def __post_init__(self) -> None:
        if self.number < 0:
            raise ValueError("number: must not be negative")


class Handlers:
    async def unary(self, request: Tree) -> Tree:
        return request

    def blocking(self, request: str, context: CallContext) -> str:
        return request

    async def nothing(self) -> None: ...

    async def only_context(self, call: CallContext) -> None: ...

    async def down(self, request: int) -> AsyncIterator[str]:
        yield str(request)

    async def up(self, items: AsyncIterator[bytes]) -> int:
        return 0

    async def both(self, items: AsyncIterator[int], context: CallContext) -> AsyncIterator[str]:
        yield ""

    async def untyped(self, request):  # type: ignore[no-untyped-def]
        return request

    def plain_generator(self, request: int) -> Iterator[int]:
        yield 1

    async def too_many(self, one: int, two: int) -> None: ...

    async def unresolvable(self, request: Missing) -> None: ...  # type: ignore[name-defined]  # noqa: F821


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("unary", (EndpointKind.UNARY, Tree, Tree, "", True)),
        ("blocking", (EndpointKind.UNARY, str, str, "context", False)),
        ("nothing", (EndpointKind.UNARY, None, type(None), "", True)),
        ("only_context", (EndpointKind.UNARY, None, type(None), "call", True)),
        ("down", (EndpointKind.SERVER_STREAM, int, str, "", True)),
        ("up", (EndpointKind.CLIENT_STREAM, bytes, int, "", True)),
        ("both", (EndpointKind.BIDIRECTIONAL, int, str, "context", True)),
        ("untyped", (EndpointKind.UNARY, Any, Any, "", True)),
    ],
)
def test_kind_of_an_endpoint_follows_from_the_signature(
    name: str, expected: tuple[EndpointKind, Any, Any, str, bool]
) -> None:
    shape = read_handler(getattr(Handlers(), name))
    assert (shape.kind, shape.request_type, shape.response_type, shape.context_name, shape.is_async) == expected


@pytest.mark.parametrize("name", ["plain_generator", "too_many", "unresolvable"])
def test_invalid_signature_is_refused_with_a_hint(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_handler(getattr(Handlers(), name))
    assert name in caught.value.detail
    assert caught.value.hint


@pytest.mark.parametrize(
    ("hint", "given_value", "expected"),
    [
        (int, 3, 3),
        (float, 3, 3.0),
        (str | None, None, None),
        (int | str, "x", "x"),
        (list[int], [1, 2], [1, 2]),
        (tuple[int, str], [1, "a"], (1, "a")),
        (tuple[int, ...], [1, 2, 3], (1, 2, 3)),
        (set[str], ["a", "a"], {"a"}),
        (dict[str, list[int]], {"a": [1]}, {"a": [1]}),
        (Mapping[str, int], {"a": 1}, {"a": 1}),
        (Literal["on", "off"], "on", "on"),
        (Colour, "red", Colour.RED),
        (Annotated[int, "a note"], 3, 3),
        (Options, {"size": 1, "more": 2}, {"size": 1}),
        (Tree, {"value": 1, "children": [{"value": 2}]}, Tree(1, [Tree(2)])),
        (Any, {"anything": [1]}, {"anything": [1]}),
    ],
)
def test_values_are_converted_to_the_type(hint: Any, given_value: Any, expected: Any) -> None:
    assert converter(hint)(given_value, "") == expected


@pytest.mark.parametrize(
    ("hint", "given_value", "message"),
    [
        (int, "3", "request: expected int, got str"),
        (int, True, "request: expected int, got bool"),
        (int, None, "request: expected int, got null"),
        (bytes, "text", "request: expected bytes, got str"),
        (int | str, 1.5, "request: expected int or str, got float"),
        (int | None, "x", "request: expected int, got str"),
        (list[int], 1, "request: expected list, got int"),
        (tuple[int, str], [1], "request: expected list of 2, got list"),
        (set[Any], [[1]], "request: unhashable type: 'list'"),
        (dict[str, int], {"a": "b"}, "a: expected int, got str"),
        (Literal["on"], "off", "request: expected one of 'on', got 'off'"),
        (Options, {}, "size: missing field"),
        (Tree, {"value": 1, "children": [{}]}, "children[0].value: missing field"),
        (Positive, {"number": -1}, "request: number: must not be negative"),
    ],
)
def test_error_of_an_invalid_value_names_the_field(hint: Any, given_value: Any, message: str) -> None:
    with pytest.raises(BadRequest) as caught:
        converter(hint)(given_value, "")
    assert caught.value.detail == message


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(st.sampled_from([Tree, Options, Positive, Colour, dict[str, int], list[Tree], int | str | None]), PLAIN)
def test_conversion_raises_nothing_but_bad_request(hint: Any, value: Any) -> None:
    try:
        converter(hint)(value, "")
    except MicroError as error:
        assert isinstance(error, BadRequest)  # noqa: PT017 - success is valid, too


@given(PLAIN)
def test_plain_values_are_unchanged(value: Any) -> None:
    assert to_plain(value) == value


def test_objects_are_converted_to_plain_values() -> None:
    assert to_plain({"tree": Tree(1, [Tree(2)]), "colour": (Colour.RED,)}) == {
        "tree": {"value": 1, "children": [{"value": 2, "children": []}]},
        "colour": ["red"],
    }


def test_schema_contains_fields_types_and_required_fields() -> None:
    assert json_schema(Tree) == {
        "title": "Tree",
        "type": "object",
        "properties": {
            "value": {"type": "integer"},
            "children": {"type": "array", "items": {"title": "Tree", "type": "object"}},
        },
        "required": ["value"],
    }
    assert json_schema(Options)["required"] == ["size"]
    assert json_schema(str | None) == {"anyOf": [{"type": "string"}, {"type": "null"}]}
    assert json_schema(Colour) == {"title": "Colour", "enum": ["red"]}
    assert json_schema(dict[str, int]) == {"type": "object", "additionalProperties": {"type": "integer"}}
    assert json_schema(Any) == {}


def test_unsupported_type_is_refused() -> None:
    with pytest.raises(ConfigError):
        converter(complex)


def test_pydantic_model_validates_by_its_own_rules() -> None:
    pydantic = pytest.importorskip("pydantic")
    model = pydantic.create_model("Order", number=(int, ...), note=(str, ""))
    assert converter(model)({"number": 1}, "").number == 1
    with pytest.raises(BadRequest, match="number"):
        converter(model)({"number": "x"}, "")
    assert to_plain(model(number=2)) == {"number": 2, "note": ""}
    assert json_schema(model)["title"] == "Order"
