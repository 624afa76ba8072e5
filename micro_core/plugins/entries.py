"""Plugins as their distributions describe them: names and roles out of metadata, with nothing imported."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from micro_core.contract.driver import Role

HOOKS_GROUP = "micro.hooks"
CORE_DISTRIBUTION = "micro-network"

GROUPS: Mapping[str, Role | None] = {**{role.group: role for role in Role}, HOOKS_GROUP: None}
"""Every entry-point group that is read, with its role; None for cross-cutting hooks."""


def canonical(word: str) -> str:
    """`word` as names are compared: `micro_quic_tunnel`, `Micro-Quic-Tunnel` and `micro.quic.tunnel` are one."""
    return re.sub(r"[-_.]+", "-", word.strip()).lower()


def role_words(name: str, role: Role | None) -> tuple[str, str, str]:
    """What a plugin of this name and role is called: `quic`, `tunnel:quic`, `quic-tunnel`."""
    role_word = role.value if role is not None else "hooks"
    return canonical(name), canonical(f"{role_word}:{name}"), canonical(f"{name}-{role_word}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A plugin as its distribution describes it. `role` is None for cross-cutting hooks."""

    role: Role | None
    name: str
    distribution: str
    version: str
    module: str
    """Where it is: `module`, or `module:attribute`."""

    @property
    def is_builtin(self) -> bool:
        return self.distribution == CORE_DISTRIBUTION

    @property
    def group(self) -> str:
        """The entry-point group, `micro.tunnel`."""
        return self.role.group if self.role is not None else HOOKS_GROUP

    @property
    def qualified(self) -> str:
        """`tunnel:quic`: exact, whatever else is installed."""
        return f"{self.role.value if self.role else 'hooks'}:{self.name}"

    @property
    def option_tables(self) -> tuple[str, ...]:
        """Names under which the options of the plugin are set; later names take precedence."""
        return (self.name, *(() if self.is_builtin else (self.distribution,)), self.qualified)

    def has_name(self, word: str) -> bool:
        """Whether `word` means this plugin: quic, tunnel:quic, quic_tunnel, micro-quic-tunnel."""
        plain = canonical(word)
        # The core's own name would mean every built-in driver at once.
        is_distribution = not self.is_builtin and plain == canonical(self.distribution)
        return is_distribution or plain in role_words(self.name, self.role)


@dataclass(frozen=True, slots=True)
class KnownPlugin:
    """A plugin that may not be installed, and what to install for it. `role` is None for cross-cutting hooks."""

    role: Role | None
    name: str

    @property
    def qualified(self) -> str:
        return role_words(self.name, self.role)[1]

    @property
    def distribution(self) -> str:
        return f"micro-{role_words(self.name, self.role)[2]}"

    def has_name(self, word: str) -> bool:
        return canonical(word) in (*role_words(self.name, self.role), self.distribution)


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


def read_entries(distributions: Iterable[importlib.metadata.Distribution]) -> tuple[list[Entry], list[str]]:
    """The plugins of `distributions`, and a sentence for each distribution whose metadata cannot be read.

    Of several distributions of one name only the first counts, as it does for imports (an editable install and its
    build directory, say).
    """
    entries: list[Entry] = []
    unreadable: list[str] = []
    seen: set[str] = set()
    for distribution in distributions:
        try:
            text = distribution.read_text("entry_points.txt")
            # Parsing the metadata of everything that is installed would cost more than all the rest.
            if not text or "micro." not in text:
                continue
            points = [point for point in distribution.entry_points if point.group in GROUPS]
        except Exception as error:  # noqa: BLE001 - a stranger's damaged file may raise anything; it is reported
            unreadable.append(
                f"the entry points of {_place(distribution)} cannot be read: {type(error).__name__}: {error}"
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
                # `module:attribute [extra]`: extras of entry points are long obsolete.
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
    return name or _place(distribution).partition("-")[0], version


def _place(distribution: importlib.metadata.Distribution) -> str:
    """The directory of the metadata, for people: distributions without a name have that at least."""
    path = getattr(distribution, "_path", None)
    return str(getattr(path, "name", "")) or "a distribution without a name"
