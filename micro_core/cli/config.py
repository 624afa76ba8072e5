"""The bodies of `micro config show` and `micro config validate`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import typer

from micro_core.cli.output import CONFIGURATION, run_guarded, show_error, show_json, show_table
from micro_core.config import MASK, NodeSettings, Settings, Value, build_options, display_value, load_settings
from micro_core.contract.driver import Driver, NoOptions, Role
from micro_core.contract.errors import BadRequest, ConfigError, OptionError
from micro_core.plugins import Catalog, Entry, blocked_names

Sources = tuple[str | None, str | None, Sequence[str], Sequence[str]]
"""The values of --config, --plugins, --set and -p."""


def show_config(sources: Sources, as_json: bool) -> None:
    """Print every setting with its origin.

    Invalid settings do not prevent the others from being printed. Raises typer.Exit(3) if there are any.
    """

    def body() -> None:
        errors: list[ConfigError] = []
        settings, catalog = _load(sources, errors)
        rows = _rows("node", NodeSettings, settings.node, _node_values(settings))
        for section in _plugin_sections(catalog, settings, errors):
            rows += section.rows()
        if as_json:
            problems = {"errors": [error.to_wire() for error in errors]} if errors else {}
            show_json("micro.config/1", {"settings": rows, **problems})
        else:
            columns = ["key", "value", "origin"]
            cells = [[row[column] for column in columns] for row in rows]
            show_table(["setting", "value", "origin"], cells, "no settings")
        _report(errors)

    run_guarded(body, as_json=as_json)


def validate_config(sources: Sources, as_json: bool) -> None:
    """Validate every setting and the options of every plugin in use, and print all errors.

    Raises typer.Exit(3) if there are any.
    """

    def body() -> None:
        errors: list[ConfigError] = []
        settings, catalog = _load(sources, errors)
        sections = _plugin_sections(catalog, settings, errors)
        names = [section.key for section in sections if section.driver is not None]
        _check_node(settings, errors)
        if as_json:
            found = [error.to_wire() for error in errors]
            show_json("micro.validate/1", {"valid": not errors, "drivers": names, "errors": found})
        elif not errors:
            typer.echo(f"valid: {', '.join(names)}")
        _report(errors)

    run_guarded(body, as_json=as_json)


_WITHOUT_OPTIONS: Driver[Any] = Driver(name="", summary="", options=NoOptions, create=NoOptions)


@dataclass(frozen=True, slots=True, kw_only=True)
class _PluginSection:
    """The settings of one plugin. `driver` is missing (None) if the plugin could not be identified or imported."""

    key: str
    values: dict[str, Value]
    driver: Driver[Any] | None = None
    options: object = None
    is_used: bool = True

    def rows(self) -> list[dict[str, Any]]:
        prefix = f"plugins.{self.key}"
        known = {field.name for field in dataclasses.fields(self.driver.options)} if self.driver is not None else set()
        rows = _rows(prefix, self.driver.options, self.options, self.values) if self.driver is not None else []
        if not self.is_used:
            # The defaults of a plugin that is not in use are irrelevant.
            rows = [row for row in rows if row["origin"] != "default"]
        # Only the driver knows which options are secret, so the value of an unknown option is masked.
        unknown = sorted((name, value) for name, value in self.values.items() if name not in known)
        return rows + [{"key": f"{prefix}.{name}", "value": MASK, "origin": value.origin} for name, value in unknown]


def _load(sources: Sources, errors: list[ConfigError]) -> tuple[Settings, Catalog]:
    config, plugins, sets, block = sources
    flags = {"node.plugins": plugins, "node.block": tuple(blocked_names(block)) or None}
    return load_settings(flags, sets=sets, config=config, report=errors.append), Catalog.discover()


def _plugin_sections(catalog: Catalog, settings: Settings, errors: list[ConfigError]) -> list[_PluginSection]:
    """Return a section for every plugin in use and for every plugin with a table. Errors are appended to `errors`."""
    entries = list(_entries_in_use(catalog, settings, errors))
    sections = [_plugin_section(catalog, settings, entry, errors) for entry in entries]
    for name in settings.plugin_tables():
        if any(entry.has_name(name) for entry in entries):
            continue
        matching = [entry for entry in catalog.entries if entry.has_name(name)]
        if len(matching) == 1:
            section = _plugin_section(catalog, settings, matching[0], errors)
            sections.append(dataclasses.replace(section, is_used=False))
            continue
        sections.append(_PluginSection(key=name, values=settings.plugin_values(name)))
        try:
            # A table that matches no plugin is an error, because its options have no effect. A table that matches
            # several plugins is accepted even if none of them is in use.
            if not matching:
                catalog.find(name)
        except ConfigError as error:
            errors.append(error)
    return sections


def _check_node(settings: Settings, errors: list[ConfigError]) -> None:
    """Append the errors that would keep a node from starting: invalid routing policies and addresses."""
    from micro_core.contract.names import split_host_port
    from micro_core.node.assembly import NO_LISTEN, router_options

    node = settings.node
    # Each policy is checked on its own, and the damping mode without any, so that every error is reported.
    for policies in ((), *((text,) for text in node.policies)):
        try:
            router_options(dataclasses.replace(node, policies=policies, damping="on" if policies else node.damping))
        except ConfigError as error:
            errors.append(error)
    listens = [("listen", node.listen)] if node.listen not in (NO_LISTEN, "") else []
    for name, address in (*listens, *(("nodes", address) for address in node.nodes)):
        try:
            split_host_port(address.partition("://")[2] or address, 0)
        except BadRequest as error:
            errors.append(
                OptionError(f"node.{name}: {error.detail}", at=settings.origin(f"node.{name}"), hint=error.hint)
            )


def _entries_in_use(catalog: Catalog, settings: Settings, errors: list[ConfigError]) -> Iterator[Entry]:
    from micro_core.drivers.selection import drivers_of, hooks_of

    for role in (*Role, None):
        try:
            yield from drivers_of(catalog, settings, role) if role is not None else hooks_of(catalog, settings)
        except ConfigError as error:
            # An unknown plugin name raises the same error for each role.
            if str(error) not in map(str, errors):
                errors.append(error)


def _plugin_section(catalog: Catalog, settings: Settings, entry: Entry, errors: list[ConfigError]) -> _PluginSection:
    values = settings.plugin_values(*entry.option_tables)
    try:
        # A cross-cutting plugin without a description has no options, so any option is an error.
        driver = catalog.describe(entry) or _WITHOUT_OPTIONS
        options: object = build_options(driver.options, values, entry.name, report=errors.append)
    except ConfigError as error:
        errors.append(error)
        return _PluginSection(key=entry.qualified, values=values)
    return _PluginSection(key=entry.qualified, values=values, driver=driver, options=options)


def _node_values(settings: Settings) -> dict[str, Value]:
    values = {field.name: settings.value(f"node.{field.name}") for field in dataclasses.fields(NodeSettings)}
    return {name: value for name, value in values.items() if value is not None}


def _rows(prefix: str, options_type: type, options: object, values: dict[str, Value]) -> list[dict[str, Any]]:
    rows = []
    for field in dataclasses.fields(options_type):
        value = values.get(field.name)
        rows.append(
            {
                "key": f"{prefix}.{field.name}",
                "value": display_value(options_type, field.name, getattr(options, field.name), value),
                "origin": value.origin if value is not None else "default",
            }
        )
    return rows


def _report(errors: Sequence[ConfigError]) -> None:
    for error in errors:
        show_error(error)
    if errors:
        raise typer.Exit(CONFIGURATION)
