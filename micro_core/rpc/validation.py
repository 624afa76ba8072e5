"""Conversion of decoded values to the types that handlers declare, and of objects to plain values for encoding. Pure.

Supported types: dataclasses, TypedDicts, pydantic models, `dict`, `list`, `set`, `tuple`, enums, `Literal`, unions, scalars and
`Any`. Pydantic is not imported; its models are recognised by their methods. Unknown fields are ignored, so that callers can be
newer than services. Errors contain the path of the field: `address.city: expected str, got int`.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import enum
import functools
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal, Union

from micro_core.contract.errors import BadRequest, ConfigError

Convert = Callable[[Any, str], Any]
"""Takes a decoded value and its path, e.g. `address.city`. Returns the converted value, or raises BadRequest."""

SCALARS: dict[Any, str] = {str: "string", int: "integer", float: "number", bool: "boolean", bytes: "string"}
"""The scalar types and their names in JSON Schema."""


@functools.lru_cache(maxsize=4_096)
def converter(hint: Any) -> Convert:
    """Return the function that validates a decoded value and converts it to the type `hint`.

    Raises:
        ConfigError: The type is not supported.
    """
    if hint is Any or hint is object or isinstance(hint, typing.TypeVar):
        return _accept_any
    if hint is None or hint is type(None):
        return _accept_none
    if hint in SCALARS:
        return _scalar(hint)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return converter(arguments[0])
    if origin in (Union, types.UnionType):
        return _union(arguments)
    if origin is Literal:
        return _literal(arguments)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return _enum(hint)
    if is_pydantic(hint):
        return _pydantic(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _dataclass(hint)
    if typing.is_typeddict(hint):
        return _typed_dict(hint)
    container = origin or hint
    if container in (dict, collections.abc.Mapping, collections.abc.MutableMapping):
        return _dict(arguments)
    if container in (list, tuple, set, frozenset, collections.abc.Sequence, collections.abc.Iterable):
        return _list(
            list if container in (collections.abc.Sequence, collections.abc.Iterable) else container, arguments
        )
    raise ConfigError(
        f"unsupported type of a request or response: {hint!r}", hint="use a dataclass, TypedDict, dict or scalar"
    )


def to_plain(value: Any) -> Any:
    """Convert a request or response to dicts, lists and scalars for encoding. Values of other types are returned unchanged."""
    kind = type(value)
    if value is None or kind in SCALARS:
        return value
    if kind is dict:
        return {key: to_plain(entry) for key, entry in value.items()}
    if kind in (list, tuple, set, frozenset):
        return [to_plain(entry) for entry in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return to_plain(value.value)
    if is_pydantic(kind):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {key: to_plain(entry) for key, entry in value.items()}
    return value


def is_pydantic(hint: Any) -> bool:
    """Return whether `hint` is a pydantic model. Does not import pydantic."""
    return isinstance(hint, type) and hasattr(hint, "model_validate") and hasattr(hint, "model_json_schema")


def field_types(wanted: Any) -> dict[str, Any]:
    """Return the fields of a dataclass or TypedDict with their resolved types.

    Raises:
        ConfigError: An annotation cannot be resolved.
    """
    try:
        return typing.get_type_hints(wanted)
    except NameError as error:
        raise ConfigError(
            f"cannot resolve the type of a field of {wanted.__name__}: {error}",
            hint="define the type at the top of the module",
        ) from error


def required_keys(wanted: Any) -> list[str]:
    """Return the required keys of a TypedDict."""
    # `__required_keys__` does not recognise NotRequired inside string annotations (PEP 563).
    hints = typing.get_type_hints(wanted, include_extras=True)
    marks = {name: typing.get_origin(hint) for name, hint in hints.items()}
    return [
        name
        for name, mark in marks.items()
        if mark is typing.Required or (mark is not typing.NotRequired and name in wanted.__required_keys__)
    ]


def _describe(value: Any) -> str:
    return "null" if value is None else type(value).__name__


def _mismatch(path: str, expected: str, value: Any) -> BadRequest:
    return BadRequest(f"{path or 'request'}: expected {expected}, got {_describe(value)}")


def _accept_any(value: Any, path: str) -> Any:  # noqa: ARG001 - has the signature of Convert
    return value


def _accept_none(value: Any, path: str) -> None:
    if value is not None:
        raise _mismatch(path, "null", value)


def _scalar(wanted: type) -> Convert:
    def convert(value: Any, path: str) -> Any:
        if type(value) is wanted:
            return value
        if wanted is float and type(value) is int:
            return float(value)
        raise _mismatch(path, wanted.__name__, value)

    return convert


def _union(arguments: tuple[Any, ...]) -> Convert:
    converts = [converter(argument) for argument in arguments]
    allows_none = type(None) in arguments
    others = [argument for argument in arguments if argument is not type(None)]
    expected = " or ".join(getattr(argument, "__name__", str(argument)) for argument in others)

    def convert(value: Any, path: str) -> Any:
        if value is None and allows_none:
            return None
        for one in converts:
            try:
                return one(value, path)
            except BadRequest:
                if len(others) == 1 and one is not _accept_none:
                    raise
        raise _mismatch(path, expected, value)

    return convert


def _literal(allowed: tuple[Any, ...]) -> Convert:
    def convert(value: Any, path: str) -> Any:
        for one in allowed:
            if type(one) is type(value) and one == value:
                return value
        raise BadRequest(f"{path or 'request'}: expected one of {', '.join(map(repr, allowed))}, got {value!r:.60}")

    return convert


def _enum(wanted: type[enum.Enum]) -> Convert:
    allowed = ", ".join(repr(member.value) for member in wanted)

    def convert(value: Any, path: str) -> Any:
        try:
            return wanted(value)
        except (ValueError, TypeError) as error:
            raise BadRequest(f"{path or 'request'}: expected one of {allowed}, got {value!r:.60}") from error

    return convert


def _pydantic(model: Any) -> Convert:
    def convert(value: Any, path: str) -> Any:
        try:
            return model.model_validate(value)
        except ValueError as error:  # the base class of pydantic's ValidationError
            errors = getattr(error, "errors", None)
            if errors is None:
                raise BadRequest(f"{path or 'request'}: {error}") from error
            first = errors()[0]
            where = ".".join([*([path] if path else []), *map(str, first["loc"])])
            raise BadRequest(f"{where or 'request'}: {first['msg']}") from error

    return convert


def _fields(path: str, value: Any, name: str) -> Mapping[str, Any]:
    if value is None and not path:
        return {}  # a call without a request, for a type whose fields all have defaults
    if not isinstance(value, dict):
        raise _mismatch(path, f"a map ({name})", value)
    return value


def _dataclass(wanted: Any) -> Convert:
    # Resolved on first use, so that types can refer to themselves.
    @functools.cache
    def plan() -> list[tuple[str, Convert, bool]]:
        hints = field_types(wanted)
        return [
            (
                field.name,
                converter(hints[field.name]),
                field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING,
            )
            for field in dataclasses.fields(wanted)
            if field.init
        ]

    def convert(value: Any, path: str) -> Any:
        if type(value) is wanted:
            return value
        given = _fields(path, value, wanted.__name__)
        found: dict[str, Any] = {}
        for name, one, is_required in plan():
            where = f"{path}.{name}" if path else name
            if name in given:
                found[name] = one(given[name], where)
            elif is_required:
                raise BadRequest(f"{where}: missing field")
        try:
            return wanted(**found)
        except (ValueError, TypeError) as error:  # raised by __post_init__
            raise BadRequest(f"{path or 'request'}: {error}") from error

    return convert


def _typed_dict(wanted: Any) -> Convert:
    @functools.cache
    def plan() -> list[tuple[str, Convert, bool]]:
        required = required_keys(wanted)
        return [(name, converter(hint), name in required) for name, hint in field_types(wanted).items()]

    def convert(value: Any, path: str) -> Any:
        given = _fields(path, value, wanted.__name__)
        found: dict[str, Any] = {}
        for name, one, is_required in plan():
            where = f"{path}.{name}" if path else name
            if name in given:
                found[name] = one(given[name], where)
            elif is_required:
                raise BadRequest(f"{where}: missing field")
        return found

    return convert


def _dict(arguments: tuple[Any, ...]) -> Convert:
    key_of, value_of = (converter(arguments[0]), converter(arguments[1])) if arguments else (_accept_any, _accept_any)

    def convert(value: Any, path: str) -> Any:
        given = _fields(path, value, "dict")
        if value_of is _accept_any and key_of is _accept_any:
            return given
        return {
            key_of(key, f"{path or 'request'} key"): value_of(entry, f"{path}.{key}" if path else str(key))
            for key, entry in given.items()
        }

    return convert


def _list(container: Any, arguments: tuple[Any, ...]) -> Convert:
    if container is tuple and arguments and arguments[-1] is not Ellipsis:
        return _fixed_tuple(tuple(converter(argument) for argument in arguments))
    item_of = converter(arguments[0]) if arguments else _accept_any

    def convert(value: Any, path: str) -> Any:
        if not isinstance(value, (list, tuple)):
            raise _mismatch(path, "list", value)
        try:
            return container(item_of(entry, f"{path}[{index}]") for index, entry in enumerate(value))
        except TypeError as error:  # entries of a set that are not hashable
            raise BadRequest(f"{path or 'request'}: {error}") from error

    return convert


def _fixed_tuple(items: tuple[Convert, ...]) -> Convert:
    def convert(value: Any, path: str) -> Any:
        if not isinstance(value, (list, tuple)) or len(value) != len(items):
            raise _mismatch(path, f"list of {len(items)}", value)
        return tuple(
            one(entry, f"{path}[{index}]") for index, (one, entry) in enumerate(zip(items, value, strict=True))
        )

    return convert
