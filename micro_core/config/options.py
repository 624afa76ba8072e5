"""Builds frozen dataclasses of options from raw values, and formats options for display."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from micro_core.config.values import Report, Value, raise_error
from micro_core.contract.errors import OptionError

T = TypeVar("T")

MASK = "***"
"""Displayed instead of a secret."""

_PASSWORD_IN_URL = re.compile(r"(://[^/?#@:\s]*:)[^/?#\s]*(?=@)")

_BOOLEANS: Mapping[str, bool] = {
    **dict.fromkeys(("1", "true", "yes", "on"), True),
    **dict.fromkeys(("0", "false", "no", "off"), False),
}
_TYPE_NAMES = {bool: "true or false", int: "an integer", float: "a number", str: "a string"}
_INVALID = object()


def build_options(options_type: type[T], values: Mapping[str, Value], name: str, *, report: Report = raise_error) -> T:
    """Return an instance of a dataclass of options, built from raw values.

    Strings from flags, variables and references are converted to the type of the field. Values of a settings file have
    their type already.

    Args:
        options_type: A dataclass of options in which every field has a default.
        values: Raw values by the name of the field.
        name: Owner of the options in error messages, e.g. `quic`.
        report: Receives each invalid value. If it does not raise, the field keeps its default.

    Raises:
        OptionError: A name is unknown, a value has the wrong type, or the dataclass itself raises OptionError or ValueError
            when it is created. The error contains the name of the option and the origin of the value.
    """
    types_by_field = typing.get_type_hints(options_type)
    fields = {field.name for field in dataclasses.fields(options_type)}  # type: ignore[arg-type]  # always a dataclass
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        full = f"{name}.{key}"
        if key not in fields:
            report(OptionError(f"unknown setting {full!r:.120}", at=value.origin, hint=_hint(key, fields, name)))
            continue
        try:
            raw = value.resolved(full)
        except OptionError as error:
            report(error)
            continue
        converted = _convert(raw, types_by_field[key], is_text=value.is_text)
        if converted is _INVALID:
            is_hidden = is_secret(options_type, key) or value.is_reference
            quoted = MASK if is_hidden else f"{raw!r:.60}"
            report(OptionError(f"{full}: {quoted} is not {_describe_type(types_by_field[key])}", at=value.origin))
            continue
        arguments[key] = converted
    try:
        return options_type(**arguments)
    except OptionError as error:
        raise _with_origin(error.detail, values, name, at=error.at, hint=error.hint) from error
    except ValueError as error:
        raise _with_origin(str(error), values, name) from error


def _hint(key: str, fields: set[str], name: str) -> str:
    similar = difflib.get_close_matches(key, sorted(fields), n=1)
    if similar:
        return f"did you mean {similar[0]!r}?"
    return f"the settings of {name} are {', '.join(sorted(fields))}" if fields else f"{name} has no settings"


def _with_origin(detail: str, values: Mapping[str, Value], name: str, *, at: str = "", hint: str = "") -> OptionError:
    """Return an error of the dataclass itself, with the owner of the options and the origins of the values that it names."""
    mentioned = set(re.findall(r"\w+", detail))
    named = [value.origin for key, value in values.items() if key in mentioned]
    origins = dict.fromkeys(named or [value.origin for value in values.values()])
    if not detail.startswith((f"{name}:", f"{name}.")):
        detail = f"{name}: {detail}"
    return OptionError(detail, at=at or ", ".join(origins), hint=hint)


def is_secret(options_type: type, key: str) -> bool:
    """Return whether the value of an option is masked in output."""
    return any(field.name == key and field.metadata.get("secret") for field in dataclasses.fields(options_type))


def display_value(options_type: type, key: str, effective: Any, value: Value | None = None) -> Any:
    """Return the value of an option for display. Secrets, and passwords in URLs, are masked.

    Args:
        options_type: The dataclass of options.
        key: Name of the field.
        effective: The value of the field, after conversion.
        value: The raw value, if one was set. If it is a reference, the reference is returned.
    """
    if is_secret(options_type, key):
        return MASK if effective else effective
    if value is not None and value.is_reference:
        return value.raw
    if isinstance(effective, (tuple, frozenset)):
        return type(effective)(_without_password(item) for item in effective)
    return _without_password(effective)


def _without_password(value: Any) -> Any:
    return _PASSWORD_IN_URL.sub(rf"\1{MASK}", value) if isinstance(value, str) else value


def type_name(wanted: Any) -> str:
    """Return a type as it is written in code: `int`, `tuple[str, ...]`, `float | None`."""
    return wanted.__name__ if isinstance(wanted, type) and not typing.get_args(wanted) else str(wanted)


def _convert(raw: object, wanted: Any, *, is_text: bool) -> object:
    """Return `raw` converted to the type `wanted`, or _INVALID."""
    choices = _choices(wanted)
    if types.NoneType in choices and (raw is None or (is_text and raw == "")):
        return None
    for choice in choices:
        converted = _convert_to_one(raw, choice, is_text=is_text)
        if converted is not _INVALID:
            return converted
    return _INVALID


def _convert_to_one(raw: object, wanted: Any, *, is_text: bool) -> object:
    if wanted is str:
        return raw if isinstance(raw, str) else _INVALID
    if wanted is bool:
        if is_text and isinstance(raw, str):
            return _BOOLEANS.get(raw.strip().lower(), _INVALID)
        return raw if isinstance(raw, bool) else _INVALID
    if wanted in (int, float):
        return _convert_to_number(raw, wanted, is_text=is_text)
    container = typing.get_origin(wanted)
    if container in (tuple, frozenset):
        if is_text and isinstance(raw, str):
            raw = [item.strip() for item in raw.split(",") if item.strip()]
        if not isinstance(raw, (list, tuple, set, frozenset)):
            return _INVALID
        items = [_convert_to_one(item, typing.get_args(wanted)[0], is_text=is_text) for item in raw]
        return _INVALID if _INVALID in items else container(items)
    return _INVALID


def _convert_to_number(raw: object, wanted: type[int | float], *, is_text: bool) -> object:
    if isinstance(raw, str) and is_text:
        try:
            raw = wanted(raw.strip())
        except ValueError:
            return _INVALID
    if isinstance(raw, bool) or not isinstance(raw, (int, float)):
        return _INVALID
    if wanted is int:
        return raw if isinstance(raw, int) else _INVALID
    try:
        number = float(raw)
    except OverflowError:
        return _INVALID
    # NaN and infinity are not useful as options, and comparisons with NaN are always false.
    return number if math.isfinite(number) else _INVALID


def _choices(wanted: Any) -> tuple[Any, ...]:
    return typing.get_args(wanted) if typing.get_origin(wanted) in (types.UnionType, typing.Union) else (wanted,)


def _describe_type(wanted: Any) -> str:
    names = []
    for choice in _choices(wanted):
        if typing.get_origin(choice) in (tuple, frozenset):
            inner = _TYPE_NAMES.get(typing.get_args(choice)[0], "a value").partition(" ")[2]
            names.append(f"a list of {inner}s")
        elif choice is types.NoneType:
            names.append("empty")
        else:
            names.append(_TYPE_NAMES.get(choice, type_name(choice)))
    return " or ".join(names)
