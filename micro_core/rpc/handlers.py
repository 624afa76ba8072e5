"""Decorators for the methods of handler classes, and the conversion of method names to endpoint names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

HandlerT = TypeVar("HandlerT", bound=Callable[..., Any])

_ATTRIBUTE = "__micro_marks__"


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoratorOptions:
    """The arguments of `endpoint` or `subscriber` that decorate a method."""

    name: str = ""
    idempotent: bool = False
    topic: str = ""
    queue: str = ""


def endpoint(name: str = "", *, idempotent: bool = False) -> Callable[[HandlerT], HandlerT]:
    """Decorate a method of a handler class to set the name or the properties of its endpoint.

        @service.handler
        class Orders:
            @endpoint(idempotent=True)
            async def find(self, request: FindRequest) -> Order: ...

    Methods without this decorator are endpoints too; see `Service.handler`.

    Args:
        name: The full name of the endpoint, e.g. `Orders.Find`. By default it is derived from the names of class and method.
        idempotent: Whether executing the same call twice has the same effect as once. Callers then retry it after any
            failure of the connection or the instance, not only if the handler was certainly not started.
    """
    return _decorate(DecoratorOptions(name=name, idempotent=idempotent))


def subscriber(topic: str, *, queue: str = "") -> Callable[[HandlerT], HandlerT]:
    """Decorate a method of a handler class to make it a subscriber of `topic`.

        @service.handler
        class Mailer:
            @subscriber("orders.created", queue="mailers")
            async def order_created(self, order: Order) -> None: ...

    Args:
        topic: The topic, e.g. `orders.created`.
        queue: The name of a queue group. Each message is delivered to one member of the group on each site. If it is
            empty, every subscriber receives every message.
    """
    return _decorate(DecoratorOptions(topic=topic, queue=queue))


def decorator_options(method: Callable[..., Any]) -> DecoratorOptions:
    """Return the arguments of the decorator of `method`, or the default `DecoratorOptions` if it is not decorated."""
    found = getattr(method, _ATTRIBUTE, None)
    return found if isinstance(found, DecoratorOptions) else DecoratorOptions()


def endpoint_name(method: str) -> str:
    """Return the name of a method in camel case: `say_hello` becomes `SayHello`. Camel case is kept."""
    return "".join(segment[:1].upper() + segment[1:] for segment in method.split("_") if segment)


def _decorate(options: DecoratorOptions) -> Callable[[HandlerT], HandlerT]:
    def mark(method: HandlerT) -> HandlerT:
        setattr(method, _ATTRIBUTE, options)
        return method

    return mark
