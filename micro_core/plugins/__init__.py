"""Plugins: found without importing them, loaded one at a time, explained when they are missing or broken.

An entry point's group says the role, its name the word people type. Only loading imports, and only what was asked for;
a plugin that cannot be loaded is kept in quarantine with its distribution and the way out, and disturbs nobody else.
Built-in drivers come in by the same door.

`entries` reads metadata, `catalog` selects and remembers, `loading` imports and judges, `hooks` asks
those that cut across.
"""

from micro_core.plugins.catalog import Catalog, PluginWarning, Quarantined, blocked_names
from micro_core.plugins.entries import CORE_DISTRIBUTION, HOOKS_GROUP, KNOWN_PLUGINS, Entry, KnownPlugin
from micro_core.plugins.hooks import Hooks

__all__ = [
    "CORE_DISTRIBUTION",
    "HOOKS_GROUP",
    "KNOWN_PLUGINS",
    "Catalog",
    "Entry",
    "Hooks",
    "KnownPlugin",
    "PluginWarning",
    "Quarantined",
    "blocked_names",
]
