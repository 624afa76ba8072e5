"""Finds installed plugins without importing them, selects them by name, and loads them one at a time.

The group of an entry point is the role of the plugin, and the name of the entry point is the name that users type. A plugin is
imported only when it is loaded. A plugin that cannot be loaded is recorded with its distribution, the reason and a fix, and
does not affect other plugins. Built-in drivers are found through entry points, too.

`entries` reads the metadata, `catalog` selects and caches, `loading` imports and checks, and `hooks` calls the cross-cutting
plugins.
"""

from micro_core.plugins.catalog import BrokenPlugin, Catalog, PluginWarning, blocked_names
from micro_core.plugins.entries import CORE_DISTRIBUTION, HOOKS_GROUP, KNOWN_PLUGINS, Entry, KnownPlugin
from micro_core.plugins.hooks import Hooks

__all__ = [
    "CORE_DISTRIBUTION",
    "HOOKS_GROUP",
    "KNOWN_PLUGINS",
    "BrokenPlugin",
    "Catalog",
    "Entry",
    "Hooks",
    "KnownPlugin",
    "PluginWarning",
    "blocked_names",
]
