"""The description of a driver that a plugin returns. Core builds the driver from it when it is needed."""

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
"""Version of `micro_core.contract`. A new minor version only adds; a new major version may change or remove."""

HOOKS_GROUP = "micro.hooks"
"""Entry-point group of cross-cutting plugins.

The commands of an installed plugin are always available. Interceptors and node events need the plugin to be selected, like
a driver: `--plugins quic,NAME`."""

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Role(enum.Enum):
    """The six roles of a driver. The value is the name in configuration and the last component of the entry-point group."""

    REGISTRY = "registry"
    """Stores the instances on a site."""
    TRANSPORT = "transport"
    """Connects processes of a site."""
    BROKER = "broker"
    """Delivers messages of topics on a site."""
    TUNNEL = "tunnel"
    """Links nodes."""
    TABLE = "table"
    """Stores the routes of a node."""
    RESOLVER = "resolver"
    """Finds addresses of nodes of a network."""

    @property
    def group(self) -> str:
        """The entry-point group, e.g. `micro.registry`."""
        return f"micro.{self.value}"

    @property
    def hook(self) -> str:
        """The name of the hook, e.g. `micro_registry`."""
        return f"micro_{self.value}"


class Counters(Protocol):
    """Counters for everything that a driver drops, refuses or repairs. `micro network status` shows them.

    Begin the names of counters with the name of the driver, e.g. `acme_rows_invalid`, and write each name out in the call,
    so that it can be found by a search.
    """

    def add(self, name: str, amount: int = 1) -> None:
        """Add `amount` to the counter `name`. Does not raise or block. Call it in the event loop only."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverContext:
    """The objects and values that core passes to a driver. All fields are set, except the two that may be None."""

    node_id: str
    """Id of this node, or of this process if it is not a node."""
    network: str
    """Name of the network, e.g. `go.micro`."""
    site: str
    """Name of this site, e.g. `eu`. Registries that share a back end use it to keep sites apart."""
    state_dir: str
    """A local directory for files of the driver, with mode 0700. Other processes of the same user may use it, too."""
    clock: Clock
    """Time: `now()` for durations within this process, `wall()` for values that other processes read."""
    random: Random
    """Random numbers for the jitter of retries and for selection among equals."""
    logger: logging.Logger
    """Logger with the name of the driver. Use constant messages and pass variable values in `extra`."""
    counters: Counters
    """Counters of dropped, refused and repaired items."""
    registry: Registry | None = None
    """The registry of the site for drivers that are built after it (broker, resolver); None for the other roles."""
    transport: Transport | None = None
    """All transports in use as one, which dials by the scheme of the address, for drivers that are built after them
    (registry, broker, resolver); None for the other roles."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Driver(Generic[T_co]):
    """The description of a driver, which the hook of a plugin returns."""

    name: str
    """The name of the driver in lower case. It is the same as the name of the entry point, and the one that users type."""
    summary: str
    """One sentence for `micro plugin list`."""
    options: type
    """A frozen dataclass of options in which every field has a default; see `option`. `NoOptions` for a driver without options."""
    create: Callable[..., T_co]
    """`create(options, context)` returns the driver. It performs no I/O and starts no task; `start` connects. It may raise `OptionError`
    if the options contradict the context."""
    capabilities: frozenset[str] = frozenset()
    """Guarantees beyond the contract of the role, which the conformance kit then checks, too. The page of the role lists their
    names; names of additional capabilities begin with `x-`."""
    contract: tuple[tuple[int, int], tuple[int, int]] = ((1, 0), (2, 0))
    """The supported range of CONTRACT_VERSION: minimum (inclusive) and maximum (exclusive)."""


def option(default: T, help: str, *, secret: bool = False) -> T:  # noqa: A002 - the name that users expect
    """Return a field of an options dataclass.

    Example: `port: int = option(8085, "UDP port to listen on.")`.

    Core converts configured values to the annotated type: `str`, `int`, `float`, `bool`, a tuple or frozenset of
    these types, or `X | None`. It reports values that cannot be converted. Check further conditions in `__post_init__`
    and raise `OptionError` with the name of the field in the text; core adds the plugin and the source of the value.

    Args:
        default: The default value. It is immutable, since options are frozen.
        help: One sentence for `micro plugin info` and the reference pages.
        secret: Mask the value in all output, and leave it out of the repr of the dataclass.

    Raises:
        TypeError: `default` is a list, dict or set.
    """
    if isinstance(default, (list, dict, set)):
        raise TypeError("invalid default of an option: it is mutable (hint: use a tuple or frozenset)")
    return dataclasses.field(default=default, repr=not secret, metadata={"help": help, "secret": secret})


@dataclass(frozen=True, slots=True, kw_only=True)
class NoOptions:
    """The options type of a driver without options."""


@dataclass(frozen=True, slots=True)
class CountersInMemory:
    """Counters in a dict, `values`. Tests can use it, too."""

    values: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, amount: int = 1) -> None:
        """Add `amount` to the counter `name`."""
        self.values[name] = self.values.get(name, 0) + amount
