"""Shell completion of plugin names and setting keys. typer completes the names of commands and options itself."""

from __future__ import annotations

import dataclasses

from micro_core.config import NodeSettings
from micro_core.contract.errors import MicroError
from micro_core.plugins import Catalog


def plugin_names(incomplete: str) -> list[str]:
    """Return completions of the last name in a list of plugins: `quic,m` becomes `quic,mdns`. Imports no plugin."""
    before, comma, prefix = incomplete.rpartition(",")
    names = dict.fromkeys(entry.name for entry in Catalog.discover().entries)
    return [f"{before}{comma}{name}" for name in names if name.startswith(prefix)]


def setting_keys(incomplete: str) -> list[str]:
    """Return completions of a setting key, e.g. `node.site=` or `quic.port=`.

    Once the name of a plugin is complete, that plugin is imported to find its options.
    """
    table, dot, _ = incomplete.rpartition(".")
    if "=" in incomplete:
        return []
    if not dot:
        found = ["node.", *(f"{name}." for name in plugin_names(""))]
    else:
        found = [f"{table}.{name}=" for name in _options_of(table)]
    return [key for key in found if key.startswith(incomplete)]


def _options_of(table: str) -> list[str]:
    if table == "node":
        return [field.name for field in dataclasses.fields(NodeSettings)]
    try:
        catalog = Catalog.discover()
        driver = catalog.describe(catalog.find(table))
    except MicroError:
        return []  # The command itself reports the error when it runs.
    return [field.name for field in dataclasses.fields(driver.options)] if driver is not None else []
