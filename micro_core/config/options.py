"""A frozen dataclass of options out of raw values: every key known, every type right, or an error that says what is."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from micro_core.config.values import Report, Value, raise_it
from micro_core.contract.errors import OptionError

T = TypeVar("T")

MASK = "***"

_PASSWORD_IN_URL = re.compile(r"(://[^/?#@:\s]*:)[^/?#\s]*(?=@)")

_TRUTHS: Mapping[str, bool] = {
    **dict.fromkeys(("1", "true", "yes", "on"), True),
    **dict.fromkeys(("0", "false", "no", "off"), False),
}
_DESCRIPTIONS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
_MISFIT = object()


def build_options(options_type: type[T], values: Mapping[str, Value], name: str, *, report: Report = raise_it) -> T:
    """An instance of an options dataclass out of raw values, by field; `name` is who they belong to, `quic`.

    Texts of flags, variables and references are read as what the field wants; values of a file have their type.
    Raises OptionError naming key, place and remedy. An OptionError or ValueError of the dataclass's own check becomes one
    that names the plugin and the place too. With a `report` that does not raise, a value that is wrong is left out.
    """
    hints = typing.get_type_hints(options_type)
    fields = {field.name for field in dataclasses.fields(options_type)}  # type: ignore[arg-type]  # always a dataclass
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        if key not in fields:
            near = difflib.get_close_matches(key, sorted(fields), n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"options: {', '.join(sorted(fields)) or 'none'}"
            report(OptionError(f"{name}: unknown option {key!r:.80}", at=value.origin, hint=hint))
            continue
        full = f"{name}.{key}"
        try:
            raw = value.resolved(full)
        except OptionError as error:
            report(error)
            continue
        fitting = _coerce(raw, hints[key], is_text=value.is_text)
        if fitting is _MISFIT:
            is_hidden = is_secret(options_type, key) or value.is_reference
            quoted = MASK if is_hidden else f"{raw!r:.60}"
            report(OptionError(f"{full}: {quoted} is not {_described(hints[key])}", at=value.origin))
            continue
        arguments[key] = fitting
    try:
        return options_type(**arguments)
    except OptionError as error:
        raise _rejected(error.detail, values, name, at=error.at, hint=error.hint) from error
    except ValueError as error:
        raise _rejected(str(error), values, name) from error


def _rejected(detail: str, values: Mapping[str, Value], name: str, *, at: str = "", hint: str = "") -> OptionError:
    """What a dataclass's own check said, with whose options they are and where those that it names were set."""
    words = set(re.findall(r"\w+", detail))
    named = [value.origin for key, value in values.items() if key in words]
    origins = dict.fromkeys(named or [value.origin for value in values.values()])
    if not detail.startswith((f"{name}:", f"{name}.")):
        detail = f"{name}: {detail}"
    return OptionError(detail, at=at or ", ".join(origins), hint=hint)


def is_secret(options_type: type, key: str) -> bool:
    """Whether an option's value is masked wherever it is shown."""
    return any(field.name == key and field.metadata.get("secret") for field in dataclasses.fields(options_type))


def shown(options_type: type, key: str, effective: Any, said: Value | None = None) -> Any:
    """A value for people: masked when it is secret, and a reference instead of what it points at.

    A password within a URL is a secret wherever it stands.
    """
    if is_secret(options_type, key):
        return MASK if effective else effective
    if said is not None and said.is_reference:
        return said.raw
    if isinstance(effective, (tuple, frozenset)):
        return type(effective)(_without_password(item) for item in effective)
    return _without_password(effective)


def _without_password(value: Any) -> Any:
    return _PASSWORD_IN_URL.sub(rf"\1{MASK}", value) if isinstance(value, str) else value


def type_text(wanted: Any) -> str:
    """A type for people: `int`, `tuple[str, ...]`, `float | None`."""
    return wanted.__name__ if isinstance(wanted, type) and not typing.get_args(wanted) else str(wanted)


def _coerce(raw: object, wanted: Any, *, is_text: bool) -> object:
    """`raw` as `wanted`, or _MISFIT."""
    choices = _choices(wanted)
    if types.NoneType in choices and (raw is None or (is_text and raw == "")):
        return None
    for choice in choices:
        fitting = _coerce_one(raw, choice, is_text=is_text)
        if fitting is not _MISFIT:
            return fitting
    return _MISFIT


def _coerce_one(raw: object, wanted: Any, *, is_text: bool) -> object:
    if wanted is str:
        return raw if isinstance(raw, str) else _MISFIT
    if wanted is bool:
        if is_text and isinstance(raw, str):
            return _TRUTHS.get(raw.strip().lower(), _MISFIT)
        return raw if isinstance(raw, bool) else _MISFIT
    if wanted in (int, float):
        return _number(raw, wanted, is_text=is_text)
    container = typing.get_origin(wanted)
    if container in (tuple, frozenset):
        if is_text and isinstance(raw, str):
            raw = [part.strip() for part in raw.split(",") if part.strip()]
        if not isinstance(raw, (list, tuple, set, frozenset)):
            return _MISFIT
        items = [_coerce_one(item, typing.get_args(wanted)[0], is_text=is_text) for item in raw]
        return _MISFIT if _MISFIT in items else container(items)
    return _MISFIT


def _number(raw: object, wanted: type[int | float], *, is_text: bool) -> object:
    if isinstance(raw, str) and is_text:
        try:
            raw = wanted(raw.strip())
        except ValueError:
            return _MISFIT
    if isinstance(raw, bool) or not isinstance(raw, (int, float)):
        return _MISFIT
    if wanted is int:
        return raw if isinstance(raw, int) else _MISFIT
    try:
        number = float(raw)
    except OverflowError:
        return _MISFIT
    # No option means anything by "not a number", and every comparison with it is false.
    return number if math.isfinite(number) else _MISFIT


def _choices(wanted: Any) -> tuple[Any, ...]:
    return typing.get_args(wanted) if typing.get_origin(wanted) in (types.UnionType, typing.Union) else (wanted,)


def _described(wanted: Any) -> str:
    names = []
    for choice in _choices(wanted):
        if typing.get_origin(choice) in (tuple, frozenset):
            inner = _DESCRIPTIONS.get(typing.get_args(choice)[0], "a value").partition(" ")[2]
            names.append(f"a list of {inner}s")
        elif choice is types.NoneType:
            names.append("nothing")
        else:
            names.append(_DESCRIPTIONS.get(choice, type_text(choice)))
    return " or ".join(names)
