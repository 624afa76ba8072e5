"""`micro config show|validate`, `micro version`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import typer

from micro_core.cli.output import CONFIGURATION, guarded, say_error, show_json, show_table
from micro_core.config import MASK, NodeSettings, Settings, Value, build_options, load_settings, shown
from micro_core.contract.driver import CONTRACT_VERSION, Driver, NoOptions, Role
from micro_core.contract.errors import BadRequest, ConfigError, OptionError
from micro_core.plugins import CORE_DISTRIBUTION, Catalog, Entry, blocked_words

Sources = tuple[str | None, str | None, Sequence[str], Sequence[str]]
"""(--config, --plugins, --set, -p)"""


def show_config(sources: Sources, as_json: bool) -> None:
    """Every setting with its origin. What cannot be read in full is shown as far as it can; then it exits 3."""

    def body() -> None:
        errors: list[ConfigError] = []
        settings, catalog = _read(sources, errors)
        rows = _rows("node", NodeSettings, settings.node, _node_values(settings))
        for part in _parts(catalog, settings, errors):
            rows += part.rows()
        if as_json:
            problems = {"errors": [error.to_wire() for error in errors]} if errors else {}
            show_json("micro.config/1", {"settings": rows, **problems})
        else:
            columns = ["key", "value", "origin"]
            cells = [[row[column] for column in columns] for row in rows]
            show_table(["setting", "value", "origin"], cells, "no settings")
        _end_with(errors)

    guarded(body, as_json=as_json)


def validate_config(sources: Sources, as_json: bool) -> None:
    """Check every setting and the options of every plugin that is named. Exits 3 and says all that is wrong."""

    def body() -> None:
        errors: list[ConfigError] = []
        settings, catalog = _read(sources, errors)
        names = [part.key for part in _parts(catalog, settings, errors) if part.driver is not None]
        _check_node(settings, errors)
        if as_json:
            found = [error.to_wire() for error in errors]
            show_json("micro.validate/1", {"valid": not errors, "drivers": names, "errors": found})
        elif not errors:
            typer.echo(f"valid: {', '.join(names)}")
        _end_with(errors)

    guarded(body, as_json=as_json)


def show_version(as_json: bool) -> None:
    """The versions of the distribution, of the contract with plugins and of the wire."""

    def body() -> None:
        import importlib.metadata

        from micro_core.wire.header import WIRE_VERSIONS

        version = importlib.metadata.version(CORE_DISTRIBUTION)
        contract = ".".join(map(str, CONTRACT_VERSION))
        if as_json:
            show_json("micro.version/1", {"version": version, "contract": contract, "wire": list(WIRE_VERSIONS)})
        else:
            typer.echo(f"micro {version} (contract {contract}, wire {', '.join(map(str, WIRE_VERSIONS))})")

    guarded(body, as_json=as_json)


_WITHOUT_OPTIONS: Driver[Any] = Driver(name="", summary="", options=NoOptions, create=NoOptions)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """What the settings say of one plugin; `driver` is None where it cannot be known what that means."""

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
            # Of a plugin that is not in use, only what was said of it.
            rows = [row for row in rows if row["origin"] != "default"]
        # What is not known, or not without the driver, may be a secret.
        strange = sorted((name, value) for name, value in self.values.items() if name not in known)
        return rows + [{"key": f"{prefix}.{name}", "value": MASK, "origin": value.origin} for name, value in strange]


def _read(sources: Sources, errors: list[ConfigError]) -> tuple[Settings, Catalog]:
    config, plugins, sets, block = sources
    flags = {"node.plugins": plugins, "node.block": tuple(blocked_words(block)) or None}
    return load_settings(flags, sets=sets, config=config, report=errors.append), Catalog.discover()


def _parts(catalog: Catalog, settings: Settings, errors: list[ConfigError]) -> list[_Part]:
    """Every plugin in use and every plugin that has a table; `errors` gets what is wrong with them."""
    entries = list(_entries_in_use(catalog, settings, errors))
    parts = [_part(catalog, settings, entry, errors) for entry in entries]
    for word in settings.plugin_tables():
        if any(entry.answers_to(word) for entry in entries):
            continue
        meant = [entry for entry in catalog.entries if entry.answers_to(word)]
        if len(meant) == 1:
            parts.append(dataclasses.replace(_part(catalog, settings, meant[0], errors), is_used=False))
            continue
        parts.append(_Part(key=word, values=settings.plugin_values(word)))
        try:
            # Of no plugin, its options would be lost in silence; of several that are not in use, nothing is wrong.
            if not meant:
                catalog.find(word)
        except ConfigError as error:
            errors.append(error)
    return parts


def _check_node(settings: Settings, errors: list[ConfigError]) -> None:
    """What a node would refuse at its start: rules of routing, and addresses."""
    from micro_core.contract.names import split_host_port
    from micro_core.node.assembly import NO_LISTEN, router_options

    node = settings.node
    # One rule at a time, and damping without any: each is wrong for itself.
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
    from micro_core.drivers.runtime import drivers_of, hooks_of

    for role in (*Role, None):
        try:
            yield from drivers_of(catalog, settings, role) if role is not None else hooks_of(catalog, settings)
        except ConfigError as error:
            # A word that no plugin answers to is wrong for every role alike.
            if str(error) not in map(str, errors):
                errors.append(error)


def _part(catalog: Catalog, settings: Settings, entry: Entry, errors: list[ConfigError]) -> _Part:
    values = settings.plugin_values(*entry.words)
    try:
        # A cross-cutting plugin that describes nothing has no options, and none may be given.
        driver = catalog.describe(entry) or _WITHOUT_OPTIONS
        options: object = build_options(driver.options, values, entry.name, report=errors.append)
    except ConfigError as error:
        errors.append(error)
        return _Part(key=entry.qualified, values=values)
    return _Part(key=entry.qualified, values=values, driver=driver, options=options)


def _node_values(settings: Settings) -> dict[str, Value]:
    said = {field.name: settings.value(f"node.{field.name}") for field in dataclasses.fields(NodeSettings)}
    return {name: value for name, value in said.items() if value is not None}


def _rows(prefix: str, options_type: type, options: object, values: dict[str, Value]) -> list[dict[str, Any]]:
    rows = []
    for field in dataclasses.fields(options_type):
        said = values.get(field.name)
        rows.append(
            {
                "key": f"{prefix}.{field.name}",
                "value": shown(options_type, field.name, getattr(options, field.name), said),
                "origin": said.origin if said is not None else "default",
            }
        )
    return rows


def _end_with(errors: Sequence[ConfigError]) -> None:
    for error in errors:
        say_error(error)
    if errors:
        raise typer.Exit(CONFIGURATION)
