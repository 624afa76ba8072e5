"""Selects the drivers of a role: those that `plugins` names, and the defaults.

A named driver replaces the default of its role. Named transports and resolvers are added to the defaults instead, unless
a default is blocked: addresses of each kind can then be dialled, and nodes of one site find each other.
"""

from __future__ import annotations

from collections.abc import Iterable

from micro_core.config import Settings
from micro_core.contract.driver import Role
from micro_core.contract.errors import ConfigError
from micro_core.plugins import Catalog, Entry

DEFAULTS: dict[Role, tuple[str, ...]] = {
    Role.REGISTRY: ("local",),
    # Both, so that addresses of both kinds can be dialled. Services listen on the first.
    Role.TRANSPORT: ("tcp", "unix"),
    Role.BROKER: ("node",),
    Role.TUNNEL: (),
    Role.TABLE: ("memory",),
    Role.RESOLVER: ("registry",),
}
"""Drivers of a role if the settings name none. All of them are built in."""

ADDITIVE_ROLES = (Role.TRANSPORT, Role.RESOLVER)
"""Roles whose defaults are used in addition to named drivers."""

SINGLE_ROLES = (Role.TABLE, Role.BROKER)
"""Roles with exactly one driver."""


def drivers_of(catalog: Catalog, settings: Settings, role: Role) -> list[Entry]:
    """Return the drivers of `role` that the settings select, in order.

    Raises:
        PluginMissing: a named plugin is not installed.
        PluginAmbiguous: several installed plugins have a given name.
        ConfigError: several drivers are named for a role that has one, or all drivers of a role are blocked.
    """
    blocked = settings.node.block
    named = [entry for entry in catalog.select(settings.plugin_names, blocked=blocked) if entry.role is role]
    if len(named) > 1 and role in SINGLE_ROLES:
        names = ", ".join(entry.name for entry in named)
        raise ConfigError(f"several drivers are named for the role {role.value}: {names}", hint="name only one")
    if named and role not in ADDITIVE_ROLES:
        return named
    defaults = catalog.builtin(role, DEFAULTS[role], blocked=blocked)
    found = list(dict.fromkeys([*named, *defaults]))
    if not found and role not in (Role.TUNNEL, Role.RESOLVER):
        raise ConfigError(f"every driver for the role {role.value} is blocked", hint="remove one -p no:NAME")
    return found


def hooks_of(catalog: Catalog, settings: Settings) -> list[Entry]:
    """Return the cross-cutting plugins that the settings name, in order. Raises PluginMissing, PluginAmbiguous."""
    named = catalog.select(settings.plugin_names, blocked=settings.node.block)
    return [entry for entry in named if entry.role is None]


def selected_names(catalog: Catalog, settings: Settings, roles: Iterable[Role] = Role) -> tuple[str, ...]:
    """Return the qualified names, e.g. `tunnel:quic`, of the selected drivers of `roles` and cross-cutting plugins."""
    entries = [entry for role in roles for entry in drivers_of(catalog, settings, role)]
    return tuple(entry.qualified for entry in [*entries, *hooks_of(catalog, settings)])


def check_tables(catalog: Catalog, settings: Settings) -> None:
    """Raise PluginMissing for a table [plugins.NAME] without an installed plugin, because its options have no effect."""
    for name in settings.plugin_tables():
        if not any(entry.has_name(name) for entry in catalog.entries):
            catalog.find(name)
