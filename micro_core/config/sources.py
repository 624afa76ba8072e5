"""Reads settings from `micro.toml`, `MICRO_*` variables and flags, as values by key with their origins."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from micro_core.config.toml_lines import lines_of_keys
from micro_core.config.values import Rank, Report, Value, raise_error, read_text
from micro_core.contract.driver import Role
from micro_core.contract.errors import ConfigError, OptionError

FILE_NAME = "micro.toml"
PREFIX = "MICRO_"

Key = tuple[str | None, str]
"""(name of the plugin, option); None instead of a name for the table [node]."""

_NETWORK_NAME = "MICRO_NETWORK_NAME"
_NOT_SETTINGS = {"MICRO_CONFIG", "MICRO_STRICT_PLUGINS", "MICRO_DEBUG", _NETWORK_NAME}
_ROLE_NAMES = {role.value for role in Role}
_TABLES_OF_UP = ("nodes", "services")
"""Tables of `micro up`, which starts several nodes and services. A single process ignores them."""
_FLAGS = {"nodes": "--node", "block": "-p"}
"""Flags whose name differs from the name of the setting."""


def parse_key(text: str) -> Key | None:
    """Return the key of `node.site`, `quic.port`, `registry:redis.url` or `plugins.quic.port`; None if `text` is invalid."""
    table, _, option = text.strip().rpartition(".")
    if table == "node":
        return (None, option) if option else None
    name = table.removeprefix("plugins.")
    return (name, option) if name and option else None


def variable_name(plugin: str, option: str) -> str:
    """Return the variable that sets an option of a plugin: `MICRO_QUIC__PORT`, `MICRO_REGISTRY__REDIS__URL`."""
    return PREFIX + re.sub("[-.]", "_", f"{plugin}__{option}".replace(":", "__")).upper()


def from_flags(flags: Mapping[str, object], environ: Mapping[str, str]) -> dict[Key, Value]:
    """Return the values of command-line options.

    Args:
        flags: Values by key, e.g. `node.site`. None means that the option was not given.
        environ: The variables for `$env:` references.

    Raises:
        OptionError: A key is invalid.
    """
    values: dict[Key, Value] = {}
    for text, raw in flags.items():
        key = parse_key(text)
        if key is None:
            raise OptionError(f"invalid setting {text!r:.80}", hint="use TABLE.NAME, e.g. node.site or quic.port")
        if raw is not None:
            flag = _FLAGS.get(key[1], f"--{key[1].replace('_', '-')}")
            values[key] = Value(raw, f"flag {flag}", Rank.FLAG, environ=environ)
    return values


def from_sets(sets: Sequence[str], node_options: Collection[str], environ: Mapping[str, str]) -> dict[Key, Value]:
    """Return the values of `--set key=value`. If a key is given twice, the last value is used.

    Args:
        sets: The arguments of `--set`.
        node_options: Names of the settings in [node], for hints.
        environ: The variables for `$env:` references.

    Raises:
        OptionError: An argument is not `TABLE.NAME=VALUE`.
    """
    values: dict[Key, Value] = {}
    for text in sets:
        # The value is not quoted in errors, because it may be a secret.
        name, separator, raw = text.partition("=")
        key = parse_key(name)
        if not separator or key is None:
            hint = f"--set node.{name}=..." if name in node_options else "e.g. --set quic.port=8085"
            raise OptionError(f"invalid option --set {name:.80}: it is not TABLE.NAME=VALUE", hint=hint)
        values[key] = Value(raw, f"flag --set {name.strip()}", Rank.SET, environ=environ)
    return values


def from_environment(
    environ: Mapping[str, str], node_options: Collection[str], report: Report = raise_error
) -> dict[Key, Value]:
    """Return the values of variables such as MICRO_SITE, MICRO_QUIC__PORT and MICRO_TUNNEL__QUIC__PORT.

    Variables that resemble neither an option of a plugin nor a setting are ignored, because other programs may use the
    prefix, too.

    Args:
        environ: All variables.
        node_options: Names of the settings in [node].
        report: Receives an OptionError for each variable that is probably misspelled.
    """
    values: dict[Key, Value] = {}
    for variable, raw in environ.items():
        if not variable.startswith(PREFIX) or variable in _NOT_SETTINGS:
            continue
        try:
            key = _key_of_variable(variable, node_options)
        except OptionError as error:
            report(error)
            continue
        if key is not None:
            values[key] = Value(raw, f"env {variable}", Rank.ENVIRONMENT, environ=environ)
    if _NETWORK_NAME in environ:
        # Takes precedence over MICRO_NETWORK, because its name is unambiguous.
        values[None, "network"] = Value(
            environ[_NETWORK_NAME], f"env {_NETWORK_NAME}", Rank.ENVIRONMENT, environ=environ
        )
    return values


def _key_of_variable(variable: str, node_options: Collection[str]) -> Key | None:
    rest = variable.removeprefix(PREFIX).lower()
    plugin, separator, option = rest.partition("__")
    if separator and plugin and option:
        if plugin in _ROLE_NAMES and "__" in option:
            name, _, option = option.partition("__")
            plugin = f"{plugin}:{name}"
        return plugin, option
    if rest in node_options:
        return None, rest
    # Other programs have MICRO_ variables, too, so only a variable that resembles a setting is an error.
    similar = difflib.get_close_matches(rest, sorted(node_options), n=1, cutoff=0.8)
    if similar:
        raise OptionError(
            f"unknown variable {variable}", at="the environment", hint=f"did you mean {PREFIX}{similar[0].upper()}?"
        )
    return None


def from_file(
    named: str, named_by: str, directory: Path, environ: Mapping[str, str], report: Report = raise_error
) -> dict[Key, Value]:
    """Return the values of a settings file. Blocks while it reads the file.

    Args:
        named: Path of the file; empty for micro.toml in `directory`, which may be missing.
        named_by: The flag or variable that set `named`, for errors.
        directory: The directory at which a relative path starts.
        environ: The variables for `$env:` references.
        report: Receives an OptionError for each unknown table, and for each key outside a table.

    Raises:
        ConfigError: The file cannot be read or is not valid TOML.
    """
    path = directory / (Path(named).expanduser() if named else FILE_NAME)
    try:
        text = read_text(path)
    except ConfigError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        if named:
            raise ConfigError(f"the settings file {named} does not exist", at=named_by) from error
        return {}
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    return _Document(path, document, lines_of_keys(text), environ).values(report)


def _contains_only_tables(content: object) -> bool:
    """Return whether `content` can be one of _TABLES_OF_UP, rather than a misspelled [node]."""
    return isinstance(content, dict) and all(isinstance(entry, dict) for entry in content.values())


class _Document:
    """A parsed settings file."""

    def __init__(
        self, path: Path, document: dict[str, object], lines: Mapping[tuple[str, ...], int], environ: Mapping[str, str]
    ) -> None:
        self._path = path
        self._document = document
        self._lines = lines
        self._environ = environ

    def values(self, report: Report) -> dict[Key, Value]:
        values: dict[Key, Value] = {}
        for table, content in self._document.items():
            if table in _TABLES_OF_UP and _contains_only_tables(content):
                continue
            if table not in ("node", "plugins") or not isinstance(content, dict):
                similar = difflib.get_close_matches(table, ["node", "plugins"], n=1)
                hint = f"did you mean [{similar[0]}]?" if similar else "the tables are [node] and [plugins.NAME]"
                report(OptionError(f"unknown table or key {table!r:.80}", at=self._origin(table), hint=hint))
                continue
            if table == "node":
                values |= {(None, key): self._value(raw, table, key) for key, raw in content.items()}
                continue
            for plugin, options in content.items():
                if not isinstance(options, dict):
                    origin = self._origin(table, plugin)
                    report(OptionError(f"plugins.{plugin} is not a table", at=origin, hint=f"use [plugins.{plugin}]"))
                    continue
                values |= {(plugin, key): self._value(raw, table, plugin, key) for key, raw in options.items()}
        return values

    def _value(self, raw: object, *path: str) -> Value:
        return Value(raw, self._origin(*path), Rank.FILE, directory=self._path.parent, environ=self._environ)

    def _origin(self, *path: str) -> str:
        """Return e.g. `micro.toml:14`, with the line of the enclosing table if the line of the key is not known."""
        for length in range(len(path), 0, -1):
            line = self._lines.get(path[:length])
            if line is not None:
                return f"{self._path.name}:{line}"
        return self._path.name
