"""Settings: flag, MICRO_* variable, micro.toml, default; the first that says something counts, and it is remembered which.

    [node]                  name, network, site, plugins, listen, address, nodes, token, ...   (NodeSettings)
    [plugins.quic]          options of the driver `quic`; [plugins."registry:redis"] where the word alone is ambiguous

Variables: MICRO_SITE for node.site and so on, MICRO_QUIC__PORT for an option of a plugin. Flags: `--set quic.port=1`,
`--set node.site=eu`. A value `$env:NAME` or `$file:path` is read from there, so that secrets need not stand in files.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from micro_core.spec.driver import option
from micro_core.spec.errors import ConfigError, OptionError

T = TypeVar("T")

MAX_FILE_BYTES = 1024 * 1024
FILE_NAME = "micro.toml"
MASK = "***"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSettings:
    """The table [node]: what a node is, and how services and commands of the same site find it."""

    name: str = option("", "Name for people; default: the host's name.")
    network: str = option("go.micro", "Network to belong to; nodes of another name are not linked.")
    site: str = option("local", "Site: services of one site share a registry.")
    plugins: tuple[str, ...] = option((), "Plugins to use, as in quic,mdns.")
    block: tuple[str, ...] = option((), "Plugins to leave out, as -p no:NAME does.")
    listen: str = option(":8085", "host:port on which other nodes may link; none to dial only.")
    address: str = option(
        "", "Where the node takes calls, as in tcp://127.0.0.1:9090; empty: any free port on loopback."
    )
    nodes: tuple[str, ...] = option((), "Addresses of nodes to stay linked to.")
    token: str = option("", "The network's token; empty: the one kept for this user on this machine.", secret=True)
    token_file: str = option("", "File that holds the network's token.")
    target_links: int = option(3, "Links to keep beyond those in nodes.")
    state_dir: str = option("", "Keys, tokens and the local registry; empty: the user's state directory.")
    proxy: str = option("", "For clients: service or address of the node through which calls go.")
    timeout: float = option(5.0, "For clients: seconds a call may take.")
    lease: float = option(30.0, "Seconds a registration stands without being renewed.")
    log: str = option("warning", "Least level of log lines: debug, info, warning, error.")


_ENVIRONMENT_ALIASES = {"MICRO_NETWORK_NAME": "network"}
_RESERVED_VARIABLES = {"MICRO_CONFIG", "MICRO_STRICT_PLUGINS", "MICRO_DEBUG"}
_NODE_FIELDS = {field.name for field in dataclasses.fields(NodeSettings)}


@dataclass(frozen=True, slots=True)
class Value:
    """A raw value and where it was said: `flag --set quic.port=1`, `env MICRO_QUIC__PORT`, `micro.toml:14`."""

    raw: object
    origin: str


class Settings:
    """Everything that was said, by key (`node.site`, `quic.port`)."""

    def __init__(self, values: Mapping[str, Value]) -> None:
        self._values = dict(values)
        raw = {key.removeprefix("node."): value for key, value in values.items() if key.startswith("node.")}
        self.node: NodeSettings = build_options(NodeSettings, raw, "node")

    @property
    def plugin_words(self) -> tuple[str, ...]:
        return self.node.plugins

    def plugin_values(self, *words: str) -> dict[str, Value]:
        """What was said about a plugin under any of its words, by option name."""
        found: dict[str, Value] = {}
        for word in words:
            prefix = f"plugins.{word}."
            found |= {key[len(prefix) :]: value for key, value in self._values.items() if key.startswith(prefix)}
        return found

    def plugin_tables(self) -> list[str]:
        """The words under which plugin options were given."""
        return sorted({key.split(".", 2)[1] for key in self._values if key.startswith("plugins.")})

    def origin(self, key: str) -> str:
        """Where `node.site` or `plugins.quic.port` was said; `default` when nowhere."""
        value = self._values.get(key)
        return value.origin if value is not None else "default"

    def keys(self) -> list[str]:
        return sorted(self._values)

    def state_dir(self) -> Path:
        """The directory for keys, tokens and registries of this user, mode 0700."""
        chosen = self.node.state_dir or os.environ.get("XDG_STATE_HOME", "")
        path = Path(self.node.state_dir).expanduser() if self.node.state_dir else None
        if path is None:
            path = (Path(chosen) if chosen else Path.home() / ".local" / "state") / "micro"
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        return path


def load_settings(
    flags: Mapping[str, object] | None = None,
    *,
    sets: Sequence[str] = (),
    config: str | None = None,
    environ: Mapping[str, str] = os.environ,
    directory: Path | None = None,
) -> Settings:
    """Read every source. `flags` are by key (`node.site`), None meaning not given; `sets` are `key=value` texts.

    Raises ConfigError for a file that was named and cannot be read, OptionError for what it says wrong.
    """
    values: dict[str, Value] = {}
    values |= _from_file(config or environ.get("MICRO_CONFIG", ""), directory or Path.cwd())
    values |= _from_environment(environ)
    for text in sets:
        key, separator, raw = text.partition("=")
        if not separator or "." not in key:
            raise OptionError(f"--set {text} is not understood", hint="--set quic.port=8085")
        values[_full_key(key)] = Value(raw, f"flag --set {key}")
    for key, given in (flags or {}).items():
        if given is not None:
            values[key] = Value(given, f"flag --{key.rpartition('.')[2].replace('_', '-')}")
    return Settings(values)


def build_options(options_type: type[T], values: Mapping[str, Value], name: str) -> T:
    """An instance of an options dataclass out of raw values; raises OptionError naming key, place and remedy."""
    hints = typing.get_type_hints(options_type)
    fields = {field.name for field in dataclasses.fields(options_type)}  # type: ignore[arg-type]  # always a dataclass
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        if key not in fields:
            near = difflib.get_close_matches(key, sorted(fields), n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"options: {', '.join(sorted(fields)) or 'none'}"
            raise OptionError(f"{name}: unknown option {key!r}", at=value.origin, hint=hint)
        arguments[key] = _coerce(_resolve(value, f"{name}.{key}"), hints[key], f"{name}.{key}", value.origin)
    return options_type(**arguments)


def is_secret(options_type: type, key: str) -> bool:
    """Whether an option's value is masked wherever it is shown."""
    return any(field.name == key and field.metadata.get("secret") for field in dataclasses.fields(options_type))


# -------------------------------------------------------------------------------- sources


def _from_file(named: str, directory: Path) -> dict[str, Value]:
    path = Path(named).expanduser() if named else directory / FILE_NAME
    try:
        raw = path.read_bytes()[: MAX_FILE_BYTES + 1]
    except FileNotFoundError:
        if named:
            raise ConfigError(f"the settings file {named} does not exist") from None
        return {}
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    if len(raw) > MAX_FILE_BYTES:
        raise ConfigError(f"{path} is larger than {MAX_FILE_BYTES} bytes")
    try:
        text = raw.decode()
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    lines = _lines_of_keys(text)
    values: dict[str, Value] = {}

    def place(table: str, key: str) -> str:
        line = lines.get((table, key))
        return f"{path.name}:{line}" if line else path.name

    for table, content in document.items():
        if table not in ("node", "plugins") or not isinstance(content, dict):
            near = difflib.get_close_matches(table, ["node", "plugins"], n=1)
            hint = f"did you mean [{near[0]}]?" if near else "tables are [node] and [plugins.NAME]"
            raise OptionError(f"unknown table or key {table!r}", at=place("", table), hint=hint)
        for key, raw_value in content.items():
            if table == "node":
                values[f"node.{key}"] = Value(raw_value, place("node", key))
            elif isinstance(raw_value, dict):
                for inner, inner_value in raw_value.items():
                    values[f"plugins.{key}.{inner}"] = Value(inner_value, place(f"plugins.{key}", inner))
            else:
                raise OptionError(f"plugins.{key} is not a table", at=place(table, key), hint=f"[plugins.{key}]")
    return values


def _lines_of_keys(text: str) -> dict[tuple[str, str], int]:
    """Where each key stands, by (table, key): good enough for pointing at a line, not a parser."""
    found: dict[tuple[str, str], int] = {}
    table = ""
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if stripped.startswith("["):
            table = stripped.strip("[]").replace('"', "").replace(" ", "")
        elif "=" in stripped and not stripped.startswith("#"):
            key = stripped.partition("=")[0].strip().strip('"')
            found.setdefault((table, key), number)
    return found


def _from_environment(environ: Mapping[str, str]) -> dict[str, Value]:
    values: dict[str, Value] = {}
    for variable, raw in environ.items():
        if not variable.startswith("MICRO_") or variable in _RESERVED_VARIABLES:
            continue
        rest = variable.removeprefix("MICRO_").lower()
        word, separator, key = rest.partition("__")
        if separator and word and key:
            values[f"plugins.{word}.{key}"] = Value(raw, f"env {variable}")
            continue
        field = _ENVIRONMENT_ALIASES.get(variable, rest)
        if field not in _NODE_FIELDS:
            # Other programs have MICRO_ variables, too: only what looks like a slip of the pen is refused.
            near = difflib.get_close_matches(field, sorted(_NODE_FIELDS), n=1, cutoff=0.8)
            if near:
                hint = f"did you mean MICRO_{near[0].upper()}?"
                raise OptionError(f"{variable} is not a setting", at="the environment", hint=hint)
            continue
        values[f"node.{field}"] = Value(raw, f"env {variable}")
    return values


def _full_key(key: str) -> str:
    table, _, rest = key.partition(".")
    if table in ("node", "plugins"):
        return key
    return f"plugins.{table}.{rest}"


# -------------------------------------------------------------------------------- values


def _resolve(value: Value, key: str) -> object:
    raw = value.raw
    if not isinstance(raw, str):
        return raw
    if raw.startswith("$env:"):
        name = raw.removeprefix("$env:")
        if name not in os.environ:
            raise OptionError(f"{key}: the variable {name} is not set", at=value.origin)
        return os.environ[name]
    if raw.startswith("$file:"):
        path = Path(raw.removeprefix("$file:")).expanduser()
        try:
            return path.read_text()[:MAX_FILE_BYTES].strip()
        except (OSError, UnicodeDecodeError) as error:
            raise OptionError(f"{key}: cannot read {path}: {error}", at=value.origin) from error
    return raw


def _coerce(raw: object, wanted: Any, key: str, origin: str) -> object:
    for choice in (
        typing.get_args(wanted) if typing.get_origin(wanted) in (types.UnionType, typing.Union) else (wanted,)
    ):
        if choice is type(None):
            if raw is None or raw == "":
                return None
            continue
        coerced = _coerce_one(raw, choice)
        if coerced is not None:
            return coerced
    raise OptionError(f"{key}: {_shown(raw)} is not {_described(wanted)}", at=origin)


def _coerce_one(raw: object, wanted: Any) -> object | None:
    """`raw` as `wanted`; None when it is not one. Texts (flags, environment) are read; other types must fit."""
    if wanted is bool:
        if isinstance(raw, bool):
            return raw
        words = {
            "1": True,
            "true": True,
            "yes": True,
            "on": True,
            "0": False,
            "false": False,
            "no": False,
            "off": False,
        }
        return words.get(raw.strip().lower()) if isinstance(raw, str) else None
    if wanted is str:
        return raw if isinstance(raw, str) else None
    if wanted in (int, float):
        if isinstance(raw, bool):
            return None
        if isinstance(raw, str):
            try:
                number: object = wanted(raw.strip())
            except ValueError:
                return None
            return number
        return wanted(raw) if isinstance(raw, int) or (isinstance(raw, float) and wanted is float) else None
    if typing.get_origin(wanted) is tuple:
        items = [part.strip() for part in raw.split(",") if part.strip()] if isinstance(raw, str) else raw
        if not isinstance(items, (list, tuple)):
            return None
        inner = [_coerce_one(item, typing.get_args(wanted)[0]) for item in items]
        return None if any(item is None for item in inner) else tuple(inner)
    return None


def _described(wanted: Any) -> str:
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
    if wanted in words:
        return words[wanted]
    if typing.get_origin(wanted) is tuple:
        return "a list"
    return " or ".join(_described(choice) for choice in typing.get_args(wanted) if choice is not type(None)) or str(
        wanted
    )


def _shown(raw: object) -> str:
    return f"{raw!r:.60}"
