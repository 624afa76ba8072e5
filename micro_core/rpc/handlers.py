"""Marks on methods of handler classes, and how a method's name becomes an endpoint's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

HandlerT = TypeVar("HandlerT", bound=Callable[..., Any])

_ATTRIBUTE = "__micro_marks__"


@dataclass(frozen=True, slots=True, kw_only=True)
class Marks:
    """What `endpoint` and `subscriber` said of a method."""

    name: str = ""
    idempotent: bool = False
    topic: str = ""
    queue: str = ""


def endpoint(name: str = "", *, idempotent: bool = False) -> Callable[[HandlerT], HandlerT]:
    """Mark a method of a handler class: another name than its own, or that it may be done twice."""
    return _mark(Marks(name=name, idempotent=idempotent))


def subscriber(topic: str, *, queue: str = "") -> Callable[[HandlerT], HandlerT]:
    """Mark a method of a handler class as the subscriber of a topic."""
    return _mark(Marks(topic=topic, queue=queue))


def marks_of(method: Callable[..., Any]) -> Marks:
    """The marks of a method; the defaults when it has none."""
    found = getattr(method, _ATTRIBUTE, None)
    return found if isinstance(found, Marks) else Marks()


def endpoint_name(method: str) -> str:
    """`say_hello` is `SayHello`; what is in camel case already keeps it."""
    return "".join(word[:1].upper() + word[1:] for word in method.split("_") if word)


def _mark(marks: Marks) -> Callable[[HandlerT], HandlerT]:
    def mark(method: HandlerT) -> HandlerT:
        setattr(method, _ATTRIBUTE, marks)
        return method

    return mark
