"""Reads the names and roles of installed plugins from the metadata of their distributions, without importing them."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from micro_core.contract.driver import Role

HOOKS_GROUP = "micro.hooks"
CORE_DISTRIBUTION = "micro-network"

GROUPS: Mapping[str, Role | None] = {**{role.group: role for role in Role}, HOOKS_GROUP: None}
"""The entry-point groups of plugins, with their roles; None for cross-cutting hooks."""


def canonical(name: str) -> str:
    """Return a name in the form in which names are compared: lower case, with single hyphens (PEP 503).

    For example, `micro_quic_tunnel`, `Micro-Quic-Tunnel` and `micro.quic.tunnel` are the same name.
    """
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def names_with_role(name: str, role: Role | None) -> tuple[str, str, str]:
    """Return the three names of a plugin: plain (`quic`), qualified (`tunnel:quic`) and with suffix (`quic-tunnel`).

    `role` is None for cross-cutting hooks, whose role name is `hooks`.
    """
    role_name = role.value if role is not None else "hooks"
    return canonical(name), canonical(f"{role_name}:{name}"), canonical(f"{name}-{role_name}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """An entry point of an installed distribution. `role` is None for cross-cutting hooks."""

    role: Role | None
    name: str
    distribution: str
    version: str
    module: str
    """The object with the hooks: `module` or `module:attribute`."""

    @property
    def is_builtin(self) -> bool:
        """Whether the plugin belongs to the distribution of core."""
        return self.distribution == CORE_DISTRIBUTION

    @property
    def group(self) -> str:
        """The entry-point group, e.g. `micro.tunnel`."""
        return self.role.group if self.role is not None else HOOKS_GROUP

    @property
    def qualified(self) -> str:
        """The name with the role, e.g. `tunnel:quic`. Plugins of other roles do not match it."""
        return f"{self.role.value if self.role else 'hooks'}:{self.name}"

    @property
    def option_tables(self) -> tuple[str, ...]:
        """Names under which the options of the plugin are set; later names take precedence."""
        return (self.name, *(() if self.is_builtin else (self.distribution,)), self.qualified)

    def has_name(self, name: str) -> bool:
        """Return whether `name` refers to this plugin, e.g. quic, tunnel:quic, quic_tunnel or micro-quic-tunnel."""
        plain = canonical(name)
        # The name of the core distribution would match all built-in drivers.
        is_distribution = not self.is_builtin and plain == canonical(self.distribution)
        return is_distribution or plain in names_with_role(self.name, self.role)


@dataclass(frozen=True, slots=True)
class KnownPlugin:
    """A plugin that is known by name, even if it is not installed. `role` is None for cross-cutting hooks."""

    role: Role | None
    name: str

    @property
    def qualified(self) -> str:
        """The name with the role, e.g. `tunnel:quic`."""
        return names_with_role(self.name, self.role)[1]

    @property
    def distribution(self) -> str:
        """The distribution to install, e.g. `micro-quic-tunnel`."""
        return f"micro-{names_with_role(self.name, self.role)[2]}"

    def has_name(self, name: str) -> bool:
        """Return whether `name` refers to this plugin or its distribution."""
        return canonical(name) in (*names_with_role(self.name, self.role), self.distribution)


KNOWN_PLUGINS = (
    KnownPlugin(Role.TUNNEL, "quic"),
    KnownPlugin(Role.TUNNEL, "tls"),
    KnownPlugin(Role.REGISTRY, "mdns"),
    KnownPlugin(Role.REGISTRY, "redis"),
    KnownPlugin(Role.BROKER, "nats"),
    KnownPlugin(Role.TABLE, "sqlite"),
    KnownPlugin(Role.RESOLVER, "dns"),
    KnownPlugin(Role.RESOLVER, "http"),
    KnownPlugin(None, "prometheus"),
)
"""The plugins of this repository, for the hint of the error about a plugin that is not installed."""


def read_entries(distributions: Iterable[importlib.metadata.Distribution]) -> tuple[list[Entry], list[str]]:
    """Return the plugins of `distributions`, and a message for each distribution whose metadata cannot be read.

    If several distributions have the same name, only the first one is read, because imports use the first one, too. An
    example is an editable install with its build directory.
    """
    entries: list[Entry] = []
    unreadable: list[str] = []
    seen: set[str] = set()
    for distribution in distributions:
        try:
            text = distribution.read_text("entry_points.txt")
            # Parsing the metadata of all distributions would take longer than everything else at startup.
            if not text or "micro." not in text:
                continue
            points = [point for point in distribution.entry_points if point.group in GROUPS]
        except Exception as error:  # noqa: BLE001 - a damaged file can raise any exception; it is reported
            unreadable.append(
                f"cannot read the entry points of {_directory(distribution)}: {type(error).__name__}: {error}"
            )
            continue
        name, version = _name_and_version(distribution)
        if not points or canonical(name) in seen:
            continue
        seen.add(canonical(name))
        entries += [
            Entry(
                role=GROUPS[point.group],
                name=point.name,
                distribution=name,
                version=version,
                # `module:attribute [extra]`: extras of entry points are obsolete.
                module=point.value.partition("[")[0].strip(),
            )
            for point in points
        ]
    return list(dict.fromkeys(entries)), unreadable


def _name_and_version(distribution: importlib.metadata.Distribution) -> tuple[str, str]:
    try:
        metadata = distribution.metadata
        name = (metadata.get_all("Name") or [""])[0]
        version = (metadata.get_all("Version") or [""])[0]
    except (OSError, TypeError, UnicodeDecodeError):
        name = version = ""
    return name or _directory(distribution).partition("-")[0], version


def _directory(distribution: importlib.metadata.Distribution) -> str:
    """Return the name of the metadata directory, which a distribution without a name has, too."""
    path = getattr(distribution, "_path", None)
    return str(getattr(path, "name", "")) or "a distribution without a name"
