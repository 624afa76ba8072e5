"""Chaining of interceptors. `micro_core.contract.interceptors` describes what an interceptor is and may do."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Any

from micro_core.contract.interceptors import CallInfo, Interceptor, Next

__all__ = ["CallInfo", "Interceptor", "Next", "chain"]


def chain(interceptors: Sequence[Interceptor], last: Next) -> Next:
    """Return a function that calls all interceptors in order, the first outermost, and then `last`."""
    proceed = last
    for interceptor in reversed(interceptors):
        proceed = _bind(interceptor, proceed)
    return proceed


def _bind(interceptor: Interceptor, proceed: Next) -> Next:
    def step(call: CallInfo) -> Awaitable[Any]:
        return interceptor(call, proceed)

    return step
