"""What a plugin hands over: a description of a driver, from which core builds the driver when it is wanted."""

from __future__ import annotations

import dataclasses
import enum
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from micro_core.contract.clock import Clock, Random
from micro_core.contract.registry import Registry
from micro_core.contract.transport import Transport

CONTRACT_VERSION = (1, 0)
"""Version of everything in `micro_core.contract`. A new minor only adds; a new major may break."""

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Role(enum.Enum):
    """The six roles; the value is the word in config and the end of the entry-point group."""

    REGISTRY = "registry"
    TRANSPORT = "transport"
    BROKER = "broker"
    TUNNEL = "tunnel"
    TABLE = "table"
    RESOLVER = "resolver"

    @property
    def group(self) -> str:
        """The entry-point group, `micro.registry`."""
        return f"micro.{self.value}"

    @property
    def hook(self) -> str:
        """The hook's name, `micro_registry`."""
        return f"micro_{self.value}"


class Counters(Protocol):
    """Where drivers count: what is dropped, refused or repaired is counted, and shown by `micro network status`.

    A driver's names begin with its own (`acme_rows_not_understood`), and are written out where they are counted.
    """

    def add(self, name: str, amount: int = 1) -> None:
        """Count `amount` more under `name`. Never fails and never waits; to be called in the event loop."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverContext:
    """What core lends a driver. All fields may be relied on but the two that say otherwise."""

    node_id: str
    """Id of this node, or of this process when it is not a node."""
    network: str
    """Name of the network, `go.micro`."""
    site: str
    """Name of this site, `eu`: keeps registries of different sites apart."""
    state_dir: str
    """A directory of this user's machine for files of the driver, mode 0700. Processes of one site may share it."""
    clock: Clock
    """Time: `now()` for what is measured within this process, `wall()` for what others read."""
    random: Random
    """Chance, for spreading retries and drawing among equals."""
    logger: logging.Logger
    """Named after the driver. Constant messages; what varies goes into `extra`."""
    counters: Counters
    """Where what is dropped is counted."""
    registry: Registry | None = None
    """The site's registry, for drivers built after it (broker, resolver); None for the others."""
    transport: Transport | None = None
    """The transports in use, as one (dials by scheme), for drivers built after it (registry, broker, resolver)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Driver(Generic[T_co]):
    """A driver, described.

    `options` is a frozen dataclass, every field with a default and a docstring-like `help`; make fields with
    `option()`. `create(options, context)` builds the object and touches nothing outside: connecting is
    `start`'s part. `capabilities` name what the conformance kit then also demands.
    """

    name: str
    """The word people type, in lower case: that of the entry point."""
    summary: str
    """One sentence, which `micro plugin list` shows."""
    options: type
    """The dataclass of options; `NoOptions` where there are none."""
    create: Callable[..., T_co]
    """`create(options, context)`: the driver, not started."""
    capabilities: frozenset[str] = frozenset()
    """Words of the role (its page lists them), each a promise beyond the contract; own words begin with `x-`."""
    contract: tuple[tuple[int, int], tuple[int, int]] = ((1, 0), (2, 0))
    """The range of CONTRACT_VERSION it was made for: from (included) and to (excluded)."""


def option(default: T, help: str, *, secret: bool = False) -> T:  # noqa: A002 - the word users know
    """A field of an options dataclass: `port: int = option(8085, "UDP port to listen on.")`.

    Core converts what people write to the annotated type (`str`, `int`, `float`, `bool`, tuples of them) and says which
    value does not fit. What the type cannot say, `__post_init__` checks: it raises `OptionError` naming the field, and
    core adds the plugin and where the value was set. A `secret` is masked wherever it is shown, and left out of the
    dataclass's repr.
    """
    if isinstance(default, (list, dict, set)):
        raise TypeError("use a tuple or frozenset: options are frozen")
    return dataclasses.field(default=default, repr=not secret, metadata={"help": help, "secret": secret})


@dataclass(frozen=True, slots=True, kw_only=True)
class NoOptions:
    """For drivers that have none."""


@dataclass(frozen=True, slots=True)
class CountersInMemory:
    """The plain implementation of `Counters`, for tests too: a dict of names and amounts in `values`."""

    values: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, amount: int = 1) -> None:
        self.values[name] = self.values.get(name, 0) + amount
