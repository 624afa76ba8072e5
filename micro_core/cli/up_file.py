"""The tables of `micro up`: [nodes.NAME] and [services.NAME] of a settings file, checked, as the processes to start.

[node] and [plugins.NAME] of the same file hold for all of them, as they do for `micro run`.
"""

from __future__ import annotations

import difflib
import os
import re
import shlex
import shutil
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from micro_core.config import Settings, build_options, load_settings
from micro_core.config.settings import NODE_OPTIONS, NodeSettings
from micro_core.config.sources import key_of, variable_of
from micro_core.config.toml_lines import lines_of_keys
from micro_core.config.values import Rank, Value, read_text
from micro_core.contract.driver import Role, option
from micro_core.contract.errors import ConfigError, OptionError
from micro_core.contract.names import NETWORK_SERVICE
from micro_core.plugins import Catalog

PARTS = ("registry", "broker", "tunnel", "router", "proxy")
"""What a node can be made of, in the order in which the parts are started."""

MAX_PROCESSES = 256
MAX_INSTANCES = 64

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}")
_OWN = ("MICRO_CONFIG", "MICRO_SITE", "MICRO_NAME", "MICRO_LISTEN", "MICRO_ADDRESS", "MICRO_NODES", "MICRO_PROXY")
"""Variables that differ from process to process: those of the shell are not passed on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeTable(NodeSettings):
    """[nodes.NAME]: everything that [node] may say, and how it is run. `name` and `site` are NAME by default."""

    parts: tuple[str, ...] = option((), "Run it as these processes: registry, broker, tunnel, router, proxy.")
    set: tuple[str, ...] = option(
        (), 'Settings of plugins, for it and the services of its site, as in "quic.port=8085".'
    )
    restart: bool = option(False, "Start it again when it ends by itself.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceTable:
    """[services.NAME]."""

    command: tuple[str, ...] | str = option("", "What to run; python is that of this environment.")
    site: str = option("", "Site of the node that it belongs to; may be left out where there is one site.")
    cwd: str = option("", "Where to run it; default: the directory of the file.")
    proxy: str = option(NETWORK_SERVICE, "Through what its own calls go; empty: straight to services of its site.")
    ready: str = option("ready", "How the line begins by which it says that it serves; empty: it says nothing.")
    ready_s: float = option(30.0, "How long it may take to say so.")
    instances: int = option(1, "How many of it to run.")
    restart: bool = option(False, "Start it again when it ends by itself.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessPlan:
    """One process: what to start, with which environment. `stage` orders starts; stops go the other way."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(repr=False)
    directory: Path
    stage: int
    site: str
    ready: str = "ready"
    ready_s: float = 60.0
    restart: bool = False


def read_plan(path: Path, environ: Mapping[str, str] = os.environ) -> list[ProcessPlan]:
    """The processes that a file asks for, in the order of their start. Raises ConfigError, OptionError, PluginMissing."""
    text = read_text(path)
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    return _File(path.resolve(), document, lines_of_keys(text), environ).plans()


class _File:
    def __init__(
        self, path: Path, document: dict[str, Any], lines: Mapping[tuple[str, ...], int], environ: Mapping[str, str]
    ) -> None:
        self._path = path
        self._document = document
        self._lines = lines
        self._environ = environ
        self._base = {name: value for name, value in environ.items() if name not in _OWN}
        self._base["MICRO_CONFIG"] = str(path)
        self._base["PYTHONUNBUFFERED"] = "1"
        # `python` of a command is the one that has micro installed, whether its environment is activated or not.
        self._base["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), environ.get("PATH", os.defpath)))

    def plans(self) -> list[ProcessPlan]:
        nodes = {name: self._node(name, table) for name, table in self._tables("nodes").items()}
        sites = {settings.node.site: plans for settings, plans in nodes.values()}
        self._check_listeners({name: settings for name, (settings, _) in nodes.items()})
        plans = [plan for _, of_node in nodes.values() for plan in of_node]
        for name, table in self._tables("services").items():
            plans += self._service(name, table, sites)
        if not plans:
            raise ConfigError(
                f"{self._path.name} names nothing to start", hint='[nodes.eu], [services.greeter] with command = "..."'
            )
        if len(plans) > MAX_PROCESSES:
            raise ConfigError(f"{self._path.name} asks for {len(plans)} processes; {MAX_PROCESSES} is the most")
        return sorted(plans, key=lambda plan: plan.stage)

    # ------------------------------------------------------------------- nodes

    def _node(self, name: str, table: dict[str, Any]) -> tuple[Settings, list[ProcessPlan]]:
        entry = build_options(NodeTable, self._values("nodes", name, table), f"nodes.{name}")
        said = {key: getattr(entry, key) for key in table if key in NODE_OPTIONS}
        said = {"site": name, "name": name, **said}
        environment = {**self._base, **{f"MICRO_{key.upper()}": _as_text(value) for key, value in said.items()}}
        settings = load_settings(
            config=str(self._path), sets=entry.set, environ=environment, directory=self._path.parent
        )
        plugins = self._plugins(settings, f"nodes.{name}")
        for part in entry.parts:
            if part not in PARTS:
                near = difflib.get_close_matches(part, PARTS, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"parts: {', '.join(PARTS)}"
                raise OptionError(
                    f"nodes.{name}: there is no part {part!r:.40}", at=self._place("nodes", name), hint=hint
                )
        if "registry" in entry.parts and "registry:service" not in plugins:
            raise OptionError(
                f"nodes.{name}: its part registry is used by nobody",
                at=self._place("nodes", name),
                hint='plugins = ["registry:service", ...]',
            )
        environment |= _variables(entry.set)
        sets = tuple(word for text in entry.set for word in ("--set", text))
        parts = [part for part in PARTS if part in entry.parts] or ["run"]
        return settings, [
            ProcessPlan(
                name=name if part == "run" else f"{name}.{part}",
                command=(sys.executable, "-m", "micro_core", part, *sets),
                environment=environment,
                directory=self._path.parent,
                stage=PARTS.index(part) if part in PARTS else len(PARTS) - 1,
                site=settings.node.site,
                restart=entry.restart,
            )
            for part in parts
        ]

    def _plugins(self, settings: Settings, name: str) -> set[str]:
        """What the node's words mean. Raises PluginMissing, PluginAmbiguous."""
        try:
            chosen = Catalog.discover().select(settings.plugin_words, blocked=settings.node.block)
        except ConfigError as error:
            error.at = error.at or f"{self._path.name}, {name}"
            raise
        return {entry.qualified for entry in chosen}

    def _check_listeners(self, nodes: Mapping[str, Settings]) -> None:
        """Two nodes of one file run on one machine: they cannot listen at one address."""
        taken: dict[str, str] = {}
        for name, settings in nodes.items():
            chosen = Catalog.discover().select(settings.plugin_words, blocked=settings.node.block)
            for key in ("listen", "address"):
                value = getattr(settings.node, key)
                has_links = any(entry.role is Role.TUNNEL for entry in chosen)
                if not value or value == "none" or value.endswith(":0") or (key == "listen" and not has_links):
                    continue
                if value in taken:
                    raise OptionError(
                        f"nodes.{name} and nodes.{taken[value]} both have {key} = {value!r}",
                        at=self._place("nodes", name),
                        hint=f'give each its own, as in {key} = "127.0.0.1:8086", or "none" to dial only',
                    )
                taken[value] = name

    # ---------------------------------------------------------------- services

    def _service(self, name: str, table: dict[str, Any], sites: Mapping[str, list[ProcessPlan]]) -> list[ProcessPlan]:
        place = self._place("services", name)
        own = self._environment(name, table.get("env", {}))
        rest = {key: value for key, value in table.items() if key != "env"}
        entry = build_options(ServiceTable, self._values("services", name, rest), f"services.{name}")
        words = tuple(shlex.split(entry.command)) if isinstance(entry.command, str) else entry.command
        if not words:
            raise OptionError(f"services.{name}: no command", at=place, hint='command = "python greeter.py"')
        if not 1 <= entry.instances <= MAX_INSTANCES:
            raise OptionError(f"services.{name}: instances = {entry.instances}", at=place, hint=f"1 to {MAX_INSTANCES}")
        if entry.ready_s <= 0:
            raise OptionError(f"services.{name}: ready_s = {entry.ready_s}", at=place, hint="more than 0 seconds")
        node = self._node_of(name, entry.site, sites)
        environment = dict(self._base)
        if node is not None:
            shared = ("MICRO_NETWORK", "MICRO_STATE_DIR", "MICRO_PLUGINS", "MICRO_BLOCK", "MICRO_LOG", "MICRO_LEASE")
            environment |= {
                key: value for key, value in node.environment.items() if key in shared or _is_of_a_plugin(key)
            }
        if node is not None or entry.site:
            environment["MICRO_SITE"] = entry.site or (node.site if node is not None else "")
        if entry.proxy and node is not None:
            environment["MICRO_PROXY"] = entry.proxy
        environment |= own
        directory = self._path.parent / Path(entry.cwd).expanduser()
        if not directory.is_dir():
            raise OptionError(
                f"services.{name}: there is no directory {directory}", at=self._place("services", name, "cwd")
            )
        program = words[0] if os.sep not in words[0] else str(directory / words[0])
        if shutil.which(program, path=environment["PATH"]) is None:
            raise OptionError(
                f"services.{name}: there is no program {words[0]!r:.80}",
                at=self._place("services", name, "command"),
                hint="its path, or a program on PATH",
            )
        plan = ProcessPlan(
            name=name,
            command=words,
            environment=environment,
            directory=directory,
            stage=len(PARTS),
            site=environment.get("MICRO_SITE", ""),
            ready=entry.ready,
            ready_s=entry.ready_s,
            restart=entry.restart,
        )
        if entry.instances == 1:
            return [plan]
        return [replace(plan, name=f"{name}.{number}") for number in range(1, entry.instances + 1)]

    def _node_of(self, name: str, site: str, sites: Mapping[str, list[ProcessPlan]]) -> ProcessPlan | None:
        """The node of the service's site; None where the file has no nodes at all."""
        if not sites:
            return None
        if not site:
            if len(sites) > 1:
                raise OptionError(
                    f"services.{name}: which site?",
                    at=self._place("services", name),
                    hint=f'site = "{next(iter(sites))}", or another of {", ".join(sites)}',
                )
            return next(iter(sites.values()))[0]
        if site not in sites:
            near = difflib.get_close_matches(site, [*sites], n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"sites of this file: {', '.join(sites)}"
            raise OptionError(
                f"services.{name}: no node of this file is on site {site!r:.60}",
                at=self._place("services", name, "site"),
                hint=hint,
            )
        return sites[site][0]

    def _environment(self, name: str, table: object) -> dict[str, str]:
        place = self._place("services", name, "env")
        if not isinstance(table, dict):
            raise OptionError(f"services.{name}.env is not a table", at=place, hint='env = { KEY = "value" }')
        found = {}
        for key, value in table.items():
            if not isinstance(value, (str, int, float, bool)) or "=" in key or "\0" in f"{key}{value}" or not key:
                raise OptionError(f"services.{name}.env.{key!r:.60} is not a text", at=place, hint='KEY = "value"')
            found[key] = _as_text(value)
        return found

    # ------------------------------------------------------------------ reading

    def _tables(self, kind: str) -> dict[str, dict[str, Any]]:
        known = ("node", "plugins", "nodes", "services")
        for table in self._document:
            if table not in known:
                near = difflib.get_close_matches(table, known, n=1)
                hint = f"did you mean [{near[0]}]?" if near else f"tables are {', '.join(known)}"
                raise OptionError(f"unknown table or key {table!r:.80}", at=self._place(table), hint=hint)
        found = self._document.get(kind, {})
        if not isinstance(found, dict):
            raise OptionError(f"{kind} is not a table", at=self._place(kind), hint=f"[{kind}.NAME]")
        for name, table in found.items():
            if not isinstance(table, dict):
                raise OptionError(f"{kind}.{name} is not a table", at=self._place(kind, name), hint=f"[{kind}.{name}]")
            if not _NAME.fullmatch(name):
                raise OptionError(
                    f"{kind}.{name!r:.60} is not a name",
                    at=self._place(kind, name),
                    hint="letters, digits, - _ and ., at most 32",
                )
        return found

    def _values(self, kind: str, name: str, table: Mapping[str, Any]) -> dict[str, Value]:
        directory = self._path.parent
        return {
            key: Value(raw, self._place(kind, name, key), Rank.FILE, directory=directory, environ=self._environ)
            for key, raw in table.items()
        }

    def _place(self, *path: str) -> str:
        for length in range(len(path), 0, -1):
            line = self._lines.get(path[:length])
            if line is not None:
                return f"{self._path.name}:{line}"
        return self._path.name


def options_of(table: type) -> Sequence[tuple[str, str]]:
    """(name, what it means) of each key of a table."""
    return [(entry.name, entry.metadata["help"]) for entry in fields(table)]


def _as_text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _variables(sets: Sequence[str]) -> dict[str, str]:
    """What `set` says of plugins, as variables: a service's command takes no --set."""
    found = {}
    for text in sets:
        name, _, value = text.partition("=")
        match key_of(name):
            case str() as word, key:
                found[variable_of(word, key)] = value
    return found


def _is_of_a_plugin(variable: str) -> bool:
    return variable.startswith("MICRO_") and "__" in variable
