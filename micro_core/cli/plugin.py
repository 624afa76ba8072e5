"""The bodies of `micro plugin list` and `micro plugin info`."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

import typer

from micro_core.cli.output import CONFIGURATION, note, run_guarded, show_json, show_table
from micro_core.config import display_value, type_name
from micro_core.contract.driver import Driver
from micro_core.plugins import KNOWN_PLUGINS, Catalog, Entry


def list_plugins(*, check: bool, all_plugins: bool, as_json: bool) -> None:
    """Print the installed plugins by role. Plugins are imported only with `check`.

    Raises typer.Exit(3) if `check` finds a broken plugin.
    """

    def body() -> None:
        catalog = Catalog.discover()
        broken = {found.entry: found for found in catalog.check()} if check else {}
        conflicts = {entry for pair in catalog.conflicts() for entry in pair}
        rows = [
            {
                "role": entry.role.value if entry.role else "hooks",
                "name": entry.name,
                "distribution": entry.distribution,
                "version": entry.version,
                "state": "broken" if entry in broken else "conflict" if entry in conflicts else "installed",
            }
            for entry in catalog.entries
        ]
        if all_plugins:
            rows += _not_installed(catalog)
        if as_json:
            reasons = [
                {
                    "name": found.entry.qualified,
                    "distribution": found.entry.distribution,
                    "version": found.entry.version,
                    "group": found.entry.group,
                    "reason": found.reason,
                    "fix": found.fix,
                }
                for found in broken.values()
            ]
            show_json("micro.plugins/1", {"plugins": rows, "broken": reasons, "unreadable": list(catalog.unreadable)})
        else:
            columns = ["role", "name", "distribution", "version", "state"]
            show_table(columns, [[row[column] for column in columns] for row in rows], "no plugins")
            for found in broken.values():
                note(f"{found.reason}\n   at: {found.entry.distribution} {found.entry.version}\n hint: {found.fix}")
            for problem in catalog.unreadable:
                note(problem)
        if broken:
            raise typer.Exit(CONFIGURATION)

    run_guarded(body, as_json=as_json)


def plugin_details(name: str, *, as_json: bool) -> None:
    """Print a plugin and its options. The plugin is imported. Raises typer.Exit(3) if it is broken or not installed."""

    def body() -> None:
        catalog = Catalog.discover()
        entry = catalog.find(name)
        details: dict[str, Any] = {
            "name": entry.qualified,
            "distribution": entry.distribution,
            "version": entry.version,
            "module": entry.module,
        }
        driver = catalog.describe(entry)
        if entry.role is None:
            details["hooks"] = _hooks(catalog, entry)
        if driver is not None:
            minimum, below = (".".join(map(str, bound)) for bound in driver.contract)
            details |= {"summary": driver.summary, "contract": [minimum, below]}
            details |= {"capabilities": sorted(driver.capabilities)}
            prefix = _variable_prefix(catalog, entry)
            details["options"] = [_option(prefix, field, driver) for field in dataclasses.fields(driver.options)]
            if entry.role is not None:
                details["verification"] = _verification(entry)
        if as_json:
            show_json("micro.plugin/1", details)
        else:
            _show_details(entry, details)

    run_guarded(body, as_json=as_json)


def _not_installed(catalog: Catalog) -> list[dict[str, str]]:
    installed = {entry.distribution for entry in catalog.entries}
    return [
        {
            "role": known.role.value if known.role else "hooks",
            "name": known.name,
            "distribution": known.distribution,
            "version": "",
            "state": "not installed",
        }
        for known in KNOWN_PLUGINS
        if known.distribution not in installed
    ]


def _show_details(entry: Entry, details: dict[str, Any]) -> None:
    typer.echo(f"{entry.qualified}  {details.get('summary', '')}".rstrip())
    about = f"{entry.distribution} {entry.version}"
    if "contract" in details:
        about += ", contract >= {}, < {}".format(*details["contract"])
    typer.echo(about)
    if "hooks" in details:
        names = ", ".join(details["hooks"]) or "none"
        typer.echo(f"hooks: {names}; select the plugin to use them, e.g. --plugins {entry.name}")
    if details.get("capabilities"):
        typer.echo(f"capabilities: {', '.join(details['capabilities'])}")
    if "verification" in details:
        typer.echo(f"kit: {_verification_text(entry, details['verification'])}")
    if "options" in details:
        typer.echo("")
        columns = ["option", "type", "default", "variable", "meaning"]
        keys = ["name", "type", "default", "variable", "help"]
        show_table(columns, [[row[key] for key in keys] for row in details["options"]], "no options")


def _verification(entry: Entry) -> dict[str, Any] | None:
    """Return the last result of `micro plugin verify` for this version. None without a result, or if the settings are invalid."""
    from micro_core.cli.verify import last_report
    from micro_core.config import load_settings
    from micro_core.contract.errors import ConfigError

    try:
        return last_report(load_settings(), entry)
    except ConfigError:
        return None


def _verification_text(entry: Entry, found: Mapping[str, Any] | None) -> str:
    if found is None:
        return f"no result for this version; run `micro plugin verify {entry.qualified}`"
    from micro_core.cli.verify import format_counts

    options = " ".join(f"{key}={value}" for key, value in found["options"].items())
    configuration = options or "default options"
    environment = found["environment"] or f"{configuration}, without fault injection"
    return f"{found['result']} at {found['at']} ({format_counts(found['totals'])}), run with {environment}"


def _hooks(catalog: Catalog, entry: Entry) -> list[str]:
    from micro_core.plugins.loading import hooks_of

    return hooks_of(entry, catalog.load_hooks_of(entry).plugin)


def _variable_prefix(catalog: Catalog, entry: Entry) -> str:
    """Return `QUIC`, or `REGISTRY__MEMORY` if plugins of several roles have this name."""
    is_shared = any(other.name == entry.name and other.role is not entry.role for other in catalog.entries)
    names = [entry.role.value, entry.name] if is_shared and entry.role else [entry.name]
    return "__".join(names).upper().replace("-", "_").replace(".", "_")


def _option(prefix: str, field: dataclasses.Field[Any], driver: Driver[Any]) -> dict[str, Any]:
    option_type = typing.get_type_hints(driver.options)[field.name]
    default = field.default
    if default is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    return {
        "name": field.name,
        "type": type_name(option_type),
        "default": display_value(driver.options, field.name, default),
        "secret": bool(field.metadata.get("secret")),
        "variable": f"MICRO_{prefix}__{field.name.upper()}",
        "help": field.metadata.get("help", ""),
    }
