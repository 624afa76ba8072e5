"""Where settings are said: micro.toml, MICRO_* variables, flags. Each becomes values by key, with their origins."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from micro_core.config.toml_lines import lines_of_keys
from micro_core.config.values import Rank, Report, Value, raise_it, read_text
from micro_core.contract.driver import Role
from micro_core.contract.errors import ConfigError, OptionError

FILE_NAME = "micro.toml"
PREFIX = "MICRO_"

Key = tuple[str | None, str]
"""(plugin's word, option); None instead of a word for the table [node]."""

_NETWORK_NAME = "MICRO_NETWORK_NAME"
_READ_ELSEWHERE = {"MICRO_CONFIG", "MICRO_STRICT_PLUGINS", "MICRO_DEBUG", _NETWORK_NAME}
_ROLE_WORDS = {role.value for role in Role}
_TABLES_OF_UP = ("nodes", "services")
"""Read by `micro up`, which starts several nodes and services of one file; nothing to a single process."""
_FLAGS = {"nodes": "--node", "block": "-p"}
"""Flags that are not called as what they set."""


def key_of(text: str) -> Key | None:
    """The key that `node.site`, `quic.port`, `registry:redis.url` or `plugins.quic.port` means; None for no key."""
    table, _, option = text.strip().rpartition(".")
    if table == "node":
        return (None, option) if option else None
    word = table.removeprefix("plugins.")
    return (word, option) if word and option else None


def variable_of(word: str, option: str) -> str:
    """The variable that says what `word.option` says: MICRO_QUIC__PORT, MICRO_REGISTRY__REDIS__URL."""
    return PREFIX + re.sub("[-.]", "_", f"{word}__{option}".replace(":", "__")).upper()


def from_flags(flags: Mapping[str, object], environ: Mapping[str, str]) -> dict[Key, Value]:
    """Values by key as in `node.site`; None means that the flag was not given."""
    values: dict[Key, Value] = {}
    for text, raw in flags.items():
        key = key_of(text)
        if key is None:
            raise OptionError(f"{text!r} is no key of a setting", hint="as in node.site, quic.port")
        if raw is not None:
            flag = _FLAGS.get(key[1], f"--{key[1].replace('_', '-')}")
            values[key] = Value(raw, f"flag {flag}", Rank.FLAG, environ=environ)
    return values


def from_sets(sets: Sequence[str], node_options: Collection[str], environ: Mapping[str, str]) -> dict[Key, Value]:
    """The texts of `--set key=value`; of two for one key the last counts."""
    values: dict[Key, Value] = {}
    for text in sets:
        # The value is not quoted: it may be a secret.
        name, separator, raw = text.partition("=")
        key = key_of(name)
        if not separator or key is None:
            hint = f"--set node.{name}=..." if name in node_options else "as in --set quic.port=8085"
            raise OptionError(f"--set {name:.80} is not understood", hint=hint)
        values[key] = Value(raw, f"flag --set {name.strip()}", Rank.SET, environ=environ)
    return values


def from_environment(
    environ: Mapping[str, str], node_options: Collection[str], report: Report = raise_it
) -> dict[Key, Value]:
    """MICRO_SITE, MICRO_QUIC__PORT, MICRO_TUNNEL__QUIC__PORT."""
    values: dict[Key, Value] = {}
    for variable, raw in environ.items():
        if not variable.startswith(PREFIX) or variable in _READ_ELSEWHERE:
            continue
        try:
            key = _key_of_variable(variable, node_options)
        except OptionError as error:
            report(error)
            continue
        if key is not None:
            values[key] = Value(raw, f"env {variable}", Rank.ENVIRONMENT, environ=environ)
    if _NETWORK_NAME in environ:
        # Of the two names for one setting the one that cannot be misread counts.
        values[None, "network"] = Value(
            environ[_NETWORK_NAME], f"env {_NETWORK_NAME}", Rank.ENVIRONMENT, environ=environ
        )
    return values


def _key_of_variable(variable: str, node_options: Collection[str]) -> Key | None:
    rest = variable.removeprefix(PREFIX).lower()
    word, separator, option = rest.partition("__")
    if separator and word and option:
        if word in _ROLE_WORDS and "__" in option:
            name, _, option = option.partition("__")
            word = f"{word}:{name}"
        return word, option
    if rest in node_options:
        return None, rest
    # Other programs have MICRO_ variables, too: only what looks like a slip of the pen is refused.
    near = difflib.get_close_matches(rest, sorted(node_options), n=1, cutoff=0.8)
    if near:
        raise OptionError(
            f"{variable} is not a setting", at="the environment", hint=f"did you mean {PREFIX}{near[0].upper()}?"
        )
    return None


def from_file(
    named: str, said_by: str, directory: Path, environ: Mapping[str, str], report: Report = raise_it
) -> dict[Key, Value]:
    """The file `named` (by a flag or variable, `said_by`), else micro.toml of `directory`, which may be missing.

    Raises ConfigError for a file that cannot be read, OptionError for a table or key that does not exist.
    """
    path = directory / (Path(named).expanduser() if named else FILE_NAME)
    try:
        text = read_text(path)
    except ConfigError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        if named:
            raise ConfigError(f"the settings file {named} does not exist", at=said_by) from error
        return {}
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    return _Document(path, document, lines_of_keys(text), environ).values(report)


def _holds_tables(content: object) -> bool:
    """Whether it can be one of _TABLES_OF_UP, and not a slip of the pen for [node]."""
    return isinstance(content, dict) and all(isinstance(entry, dict) for entry in content.values())


class _Document:
    """A parsed file, and what its tables say."""

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
            if table in _TABLES_OF_UP and _holds_tables(content):
                continue
            if table not in ("node", "plugins") or not isinstance(content, dict):
                near = difflib.get_close_matches(table, ["node", "plugins"], n=1)
                hint = f"did you mean [{near[0]}]?" if near else "tables are [node] and [plugins.NAME]"
                report(OptionError(f"unknown table or key {table!r:.80}", at=self._place(table), hint=hint))
                continue
            if table == "node":
                values |= {(None, key): self._value(raw, table, key) for key, raw in content.items()}
                continue
            for word, options in content.items():
                if not isinstance(options, dict):
                    place = self._place(table, word)
                    report(OptionError(f"plugins.{word} is not a table", at=place, hint=f"[plugins.{word}]"))
                    continue
                values |= {(word, key): self._value(raw, table, word, key) for key, raw in options.items()}
        return values

    def _value(self, raw: object, *path: str) -> Value:
        return Value(raw, self._place(*path), Rank.FILE, directory=self._path.parent, environ=self._environ)

    def _place(self, *path: str) -> str:
        """`micro.toml:14`; the line of the table round it where the key's own is not known."""
        for length in range(len(path), 0, -1):
            line = self._lines.get(path[:length])
            if line is not None:
                return f"{self._path.name}:{line}"
        return self._path.name
