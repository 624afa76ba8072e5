"""`micro config show|validate`, `micro version`."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from typing import Any

import typer

from micro_core.cli.client import Common, settings_of
from micro_core.cli.output import guarded, show_json, show_table
from micro_core.config import MASK, NodeSettings, Settings, build_options, is_secret
from micro_core.plugins import CORE_DISTRIBUTION, Catalog
from micro_core.rpc.defaults import check_tables, drivers_of
from micro_core.spec.driver import CONTRACT_VERSION, Driver, Role
from micro_core.wire.header import WIRE_VERSIONS


def show_config(common: Common, as_json: bool) -> None:
    def body() -> None:
        settings = settings_of(common)
        rows = _node_rows(settings)
        for name, driver, options in _drivers(settings):
            rows += _option_rows(settings, name, driver, options)
        if as_json:
            show_json("micro.config/1", {"settings": rows})
        else:
            show_table(
                ["setting", "value", "origin"],
                [[row["key"], row["value"], row["origin"]] for row in rows],
                "no settings",
            )

    guarded(body, as_json=as_json)


def validate_config(common: Common, as_json: bool) -> None:
    def body() -> None:
        settings = settings_of(common)
        names = [name for name, _, _ in _drivers(settings)]
        if as_json:
            show_json("micro.validate/1", {"valid": True, "drivers": names})
        else:
            typer.echo(f"valid: {', '.join(names)}")

    guarded(body, as_json=as_json)


def show_version(as_json: bool) -> None:
    def body() -> None:
        version = importlib.metadata.version(CORE_DISTRIBUTION)
        contract = ".".join(map(str, CONTRACT_VERSION))
        if as_json:
            show_json("micro.version/1", {"version": version, "contract": contract, "wire": list(WIRE_VERSIONS)})
        else:
            typer.echo(f"micro {version} (contract {contract}, wire {', '.join(map(str, WIRE_VERSIONS))})")

    guarded(body, as_json=as_json)


def _drivers(settings: Settings) -> list[tuple[str, Driver[Any], Any]]:
    """(name, description, options) of every driver that a node of these settings would use; raises what is wrong."""
    catalog = Catalog.discover()
    check_tables(catalog, settings)
    found: list[tuple[str, Driver[Any], Any]] = []
    for role in Role:
        for entry in drivers_of(catalog, settings, role):
            driver = catalog.load(entry)
            values = settings.plugin_values(entry.name, entry.qualified)
            options: Any = build_options(driver.options, values, entry.name)
            found.append((entry.qualified, driver, options))
    return found


def _node_rows(settings: Settings) -> list[dict[str, Any]]:
    return [
        {
            "key": f"node.{field.name}",
            "value": _shown(NodeSettings, field.name, getattr(settings.node, field.name)),
            "origin": settings.origin(f"node.{field.name}"),
        }
        for field in dataclasses.fields(NodeSettings)
    ]


def _option_rows(settings: Settings, name: str, driver: Driver[Any], options: Any) -> list[dict[str, Any]]:
    rows = []
    word = name.partition(":")[2]
    for field in dataclasses.fields(driver.options):
        origins = [settings.origin(f"plugins.{table}.{field.name}") for table in (name, word)]
        rows.append(
            {
                "key": f"plugins.{name}.{field.name}",
                "value": _shown(driver.options, field.name, getattr(options, field.name)),
                "origin": next((origin for origin in origins if origin != "default"), "default"),
            }
        )
    return rows


def _shown(options_type: type, key: str, value: Any) -> Any:
    return MASK if value and is_secret(options_type, key) else value
