"""`micro plugin list|info`."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

import typer

from micro_core.cli.output import CONFIGURATION, guarded, note, show_json, show_table
from micro_core.config import MASK
from micro_core.plugins import KNOWN_PLUGINS, Catalog, Entry


def list_plugins(*, check: bool, all_plugins: bool, as_json: bool) -> None:
    def body() -> None:
        catalog = Catalog.discover()
        broken = {q.entry: q for q in catalog.check()} if check else {}
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
            here = {entry.distribution for entry in catalog.entries}
            rows += [
                {
                    "role": distribution.rpartition("-")[2],
                    "name": name,
                    "distribution": distribution,
                    "version": "",
                    "state": "not installed",
                }
                for name, distribution in KNOWN_PLUGINS.items()
                if distribution not in here
            ]
        if as_json:
            reasons = [{"name": q.entry.qualified, "reason": q.reason, "fix": q.fix} for q in broken.values()]
            show_json("micro.plugins/1", {"plugins": rows, "broken": reasons})
        else:
            columns = ["role", "name", "distribution", "version", "state"]
            show_table(columns, [[row[column] for column in columns] for row in rows], "no plugins")
            for quarantined in broken.values():
                note(f"{quarantined.reason}\n  try: {quarantined.fix}")
        if broken:
            raise typer.Exit(CONFIGURATION)

    guarded(body, as_json=as_json)


def plugin_details(name: str, *, as_json: bool) -> None:
    def body() -> None:
        catalog = Catalog.discover()
        entry = catalog.find(name)
        driver = catalog.load(entry)
        options = [_option(entry, field, driver.options) for field in dataclasses.fields(driver.options)]
        details = {
            "name": entry.qualified,
            "summary": driver.summary,
            "distribution": entry.distribution,
            "version": entry.version,
            "contract": [".".join(map(str, bound)) for bound in driver.contract],
            "capabilities": sorted(driver.capabilities),
            "options": options,
        }
        if as_json:
            show_json("micro.plugin/1", details)
            return
        typer.echo(f"{entry.qualified}  {driver.summary}")
        typer.echo(
            f"{entry.distribution} {entry.version}, contract {details['contract'][0]} to {details['contract'][1]}"
        )
        typer.echo("")
        rows = [[o["name"], o["type"], o["default"], o["variable"], o["help"]] for o in options]
        show_table(["option", "type", "default", "variable", "meaning"], rows, "no options")

    guarded(body, as_json=as_json)


def _option(entry: Entry, field: dataclasses.Field[Any], options_type: type) -> dict[str, Any]:
    wanted = typing.get_type_hints(options_type)[field.name]
    is_secret = bool(field.metadata.get("secret"))
    return {
        "name": field.name,
        "type": getattr(wanted, "__name__", str(wanted)),
        "default": MASK if is_secret and field.default else field.default,
        "secret": is_secret,
        "variable": f"MICRO_{entry.name.upper()}__{field.name.upper()}",
        "help": field.metadata.get("help", ""),
    }
