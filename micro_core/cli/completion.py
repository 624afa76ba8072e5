"""What completion offers beyond our own words: plugins by name, settings by key."""

from __future__ import annotations

import dataclasses

from micro_core.config import NodeSettings
from micro_core.contract.errors import MicroError
from micro_core.plugins import Catalog


def plugin_names(incomplete: str) -> list[str]:
    """Names of installed plugins, for the last word of a list: `quic,m` becomes `quic,mdns`. Imports none of them."""
    before, comma, word = incomplete.rpartition(",")
    names = dict.fromkeys(entry.name for entry in Catalog.discover().entries)
    return [f"{before}{comma}{name}" for name in names if name.startswith(word)]


def setting_keys(incomplete: str) -> list[str]:
    """`node.site=`, `quic.port=`: keys of [node], and options of the plugin whose name is written, which is imported."""
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
        return []  # nothing to offer; the command itself says what is wrong
    return [field.name for field in dataclasses.fields(driver.options)] if driver is not None else []
