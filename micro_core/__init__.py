"""micro: a services network for Python.

What people type: `from micro_core import Service, Client`. Names are loaded when they are first used, so that
importing the package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from micro_core.contract.broker import Message
    from micro_core.contract.errors import (
        BadRequest,
        Cancelled,
        Closed,
        ConfigError,
        Conflict,
        DeadlineExceeded,
        Draining,
        Ended,
        EndpointNotFound,
        Forbidden,
        InternalError,
        LinkLost,
        LoopDetected,
        Malformed,
        MicroError,
        NotFound,
        Overloaded,
        RemoteError,
        RouteNotFound,
        ServiceNotFound,
        TooLarge,
        Unauthorized,
        Unreachable,
    )
    from micro_core.contract.hookspecs import hookimpl
    from micro_core.rpc.client import Client
    from micro_core.rpc.context import CallContext
    from micro_core.rpc.handlers import endpoint, subscriber
    from micro_core.rpc.interceptors import CallInfo
    from micro_core.rpc.service import Service
    from micro_core.wire.header import CallMode

_MODULES = {
    "micro_core.rpc.client": ("Client",),
    "micro_core.rpc.context": ("CallContext",),
    "micro_core.rpc.handlers": ("endpoint", "subscriber"),
    "micro_core.rpc.interceptors": ("CallInfo",),
    "micro_core.rpc.service": ("Service",),
    "micro_core.contract.broker": ("Message",),
    "micro_core.contract.errors": (
        "BadRequest",
        "Cancelled",
        "Closed",
        "ConfigError",
        "Conflict",
        "DeadlineExceeded",
        "Draining",
        "Ended",
        "EndpointNotFound",
        "Forbidden",
        "InternalError",
        "LinkLost",
        "LoopDetected",
        "Malformed",
        "MicroError",
        "NotFound",
        "Overloaded",
        "RemoteError",
        "RouteNotFound",
        "ServiceNotFound",
        "TooLarge",
        "Unauthorized",
        "Unreachable",
    ),
    "micro_core.contract.hookspecs": ("hookimpl",),
    "micro_core.wire.header": ("CallMode",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "BadRequest",
    "CallContext",
    "CallInfo",
    "CallMode",
    "Cancelled",
    "Client",
    "Closed",
    "ConfigError",
    "Conflict",
    "DeadlineExceeded",
    "Draining",
    "Ended",
    "EndpointNotFound",
    "Forbidden",
    "InternalError",
    "LinkLost",
    "LoopDetected",
    "Malformed",
    "Message",
    "MicroError",
    "NotFound",
    "Overloaded",
    "RemoteError",
    "RouteNotFound",
    "Service",
    "ServiceNotFound",
    "TooLarge",
    "Unauthorized",
    "Unreachable",
    "endpoint",
    "hookimpl",
    "subscriber",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("micro-network")
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
