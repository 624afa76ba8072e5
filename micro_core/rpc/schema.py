"""Inspection of the signatures of handlers: the kind of the endpoint, and JSON Schemas of its types. Pure.

A handler takes an optional request and an optional `CallContext`, and returns the answer. The kind of its endpoint follows from
the types:

    async def unary(request: Request) -> Answer
    async def server_stream(request: Request) -> AsyncIterator[Item]     (usually an async generator)
    async def client_stream(items: AsyncIterator[Item]) -> Answer
    async def bidirectional(items: AsyncIterator[Item], context: CallContext) -> AsyncIterator[Item]

`micro_core.rpc.validation` lists the types that requests and items can have.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import enum
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal, Union

from micro_core.contract.errors import ConfigError
from micro_core.contract.registry import EndpointKind
from micro_core.rpc.context import CallContext
from micro_core.rpc.validation import SCALARS, field_types, is_pydantic, required_keys

_STREAMS = (
    collections.abc.AsyncIterator,
    collections.abc.AsyncIterable,
    collections.abc.AsyncGenerator,
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HandlerShape:
    """The properties of a handler that follow from its signature."""

    kind: EndpointKind
    request_type: Any
    response_type: Any
    takes_request: bool
    context_name: str
    """Name of the parameter for the CallContext. Empty if there is no such parameter."""
    is_async: bool


def read_handler(function: Callable[..., Any]) -> HandlerShape:
    """Inspect the signature of a handler: of a function or a bound method.

    Raises:
        ConfigError: The signature is not that of a handler, or an annotation cannot be resolved.
    """
    name = getattr(function, "__qualname__", repr(function))
    try:
        hints = typing.get_type_hints(function)
    except (NameError, TypeError) as error:
        raise ConfigError(
            f"an annotation of {name} cannot be resolved: {error}",
            hint="define the types of requests and responses at the top of the module",
        ) from error
    request_name, context_name = _parameters(function, name, hints)
    request_type = hints.get(request_name, Any) if request_name else None
    response_type = hints.get("return", Any)
    if inspect.isgeneratorfunction(function):
        raise ConfigError(
            f"{name} is a synchronous generator", hint="use `async def` for a handler that returns a stream"
        )
    caller_streams = typing.get_origin(request_type) in _STREAMS or request_type in _STREAMS
    server_streams = inspect.isasyncgenfunction(function) or typing.get_origin(response_type) in _STREAMS
    return HandlerShape(
        kind={
            (False, False): EndpointKind.UNARY,
            (False, True): EndpointKind.SERVER_STREAM,
            (True, False): EndpointKind.CLIENT_STREAM,
            (True, True): EndpointKind.BIDIRECTIONAL,
        }[caller_streams, server_streams],
        request_type=_item_type(request_type) if caller_streams else request_type,
        response_type=_item_type(response_type) if server_streams else response_type,
        takes_request=bool(request_name),
        context_name=context_name,
        is_async=server_streams or inspect.iscoroutinefunction(function),
    )


def json_schema(hint: Any) -> dict[str, object]:
    """Return the JSON Schema of a type. It is empty for types without restrictions.

    Raises:
        ConfigError: An annotation of a field cannot be resolved.
    """
    return _schema(hint, ())


def first_doc_line(handler: Callable[..., Any]) -> str:
    """Return the first line of a handler's docstring, at most 200 characters: the description of its endpoint."""
    return (inspect.getdoc(handler) or "").partition("\n")[0][:200]


def _parameters(function: Callable[..., Any], name: str, hints: Mapping[str, Any]) -> tuple[str, str]:
    parameters = list(inspect.signature(function).parameters.values())
    context = next((p.name for p in parameters if hints.get(p.name) is CallContext or p.name == "context"), "")
    others = [p.name for p in parameters if p.name != context and p.default is p.empty]
    if len(others) > 1 or any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD, p.KEYWORD_ONLY) for p in parameters):
        raise ConfigError(
            f"{name} has the wrong parameters: {', '.join(p.name for p in parameters)}",
            hint="a handler takes (), (request), (context) or (request, context)",
        )
    return (others[0] if others else ""), context


def _item_type(hint: Any) -> Any:
    arguments = typing.get_args(hint)
    return arguments[0] if arguments else Any


def _schema(hint: Any, enclosing: tuple[Any, ...]) -> dict[str, object]:
    if hint is None or hint is type(None):
        return {"type": "null"}
    if hint in SCALARS:
        schema: dict[str, object] = {"type": SCALARS[hint]}
        return schema | {"contentEncoding": "binary"} if hint is bytes else schema
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _schema(arguments[0], enclosing)
    if origin in (Union, types.UnionType):
        return {"anyOf": [_schema(argument, enclosing) for argument in arguments]}
    if origin is Literal:
        return {"enum": list(arguments)}
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return {"title": hint.__name__, "enum": [member.value for member in hint]}
    if is_pydantic(hint):
        return dict(hint.model_json_schema())
    if (dataclasses.is_dataclass(hint) and isinstance(hint, type)) or typing.is_typeddict(hint):
        return _object_schema(hint, enclosing)
    container = origin or hint
    if container in (dict, collections.abc.Mapping, collections.abc.MutableMapping):
        return {"type": "object"} | ({"additionalProperties": _schema(arguments[1], enclosing)} if arguments else {})
    if container in (list, tuple, set, frozenset, collections.abc.Sequence, collections.abc.Iterable):
        if container is tuple and arguments and arguments[-1] is not Ellipsis:
            return {"type": "array", "prefixItems": [_schema(argument, enclosing) for argument in arguments]}
        return {"type": "array"} | ({"items": _schema(arguments[0], enclosing)} if arguments else {})
    return {}


def _object_schema(hint: Any, enclosing: tuple[Any, ...]) -> dict[str, object]:
    # A type that contains itself is not expanded again.
    if hint in enclosing:
        return {"title": hint.__name__, "type": "object"}
    hints = field_types(hint)
    if typing.is_typeddict(hint):
        required = required_keys(hint)
    else:
        required = [
            field.name
            for field in dataclasses.fields(hint)
            if field.init and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        ]
    return {
        "title": hint.__name__,
        "type": "object",
        "properties": {name: _schema(field_hint, (*enclosing, hint)) for name, field_hint in hints.items()},
        "required": required,
    }
