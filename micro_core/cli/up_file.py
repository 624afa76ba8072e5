"""Reads the tables [nodes.NAME] and [services.NAME] of a settings file and returns the processes to start.

The tables [node] and [plugins.NAME] of the same file apply to all these processes, as they do for `micro run`.
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
from dataclasses import replace
from pathlib import Path
from typing import Any

from micro_core.cli.up_tables import COMPONENTS, NodeTable, ProcessPlan, ServiceTable
from micro_core.config import Settings, build_options, load_settings
from micro_core.config.settings import NODE_OPTIONS
from micro_core.config.sources import parse_key, variable_name
from micro_core.config.toml_lines import lines_of_keys
from micro_core.config.values import Rank, Value, read_text
from micro_core.contract.driver import Role
from micro_core.contract.errors import ConfigError, OptionError
from micro_core.plugins import Catalog

MAX_PROCESSES = 256
MAX_INSTANCES = 64

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}")
_PER_PROCESS = (
    "MICRO_CONFIG",
    "MICRO_SITE",
    "MICRO_NAME",
    "MICRO_LISTEN",
    "MICRO_ADDRESS",
    "MICRO_NODES",
    "MICRO_PROXY",
)
"""Variables that differ between processes. They are not inherited from the shell."""


def read_plan(path: Path, environ: Mapping[str, str] = os.environ) -> list[ProcessPlan]:
    """Return the processes of a file in the order of their start.

    `environ` is the environment of the shell.

    Raises ConfigError if the file cannot be read or has nothing to start, OptionError if a key or value is invalid,
    PluginMissing or PluginAmbiguous if a plugin name cannot be resolved.
    """
    text = read_text(path)
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    return _File(path.resolve(), document, lines_of_keys(text), environ).plans()


class _File:
    """One settings file, and the environment of the shell."""

    def __init__(
        self, path: Path, document: dict[str, Any], lines: Mapping[tuple[str, ...], int], environ: Mapping[str, str]
    ) -> None:
        self._path = path
        self._document = document
        self._lines = lines
        self._environ = environ
        self._base = {name: value for name, value in environ.items() if name not in _PER_PROCESS}
        self._base["MICRO_CONFIG"] = str(path)
        self._base["PYTHONUNBUFFERED"] = "1"
        # The `python` of this environment comes first on PATH, even if the environment is not activated.
        self._base["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), environ.get("PATH", os.defpath)))

    def plans(self) -> list[ProcessPlan]:
        nodes = {name: self._node(name, table) for name, table in self._tables("nodes").items()}
        sites = {settings.node.site: plans for settings, plans in nodes.values()}
        self._check_listeners({name: settings for name, (settings, _) in nodes.items()})
        plans = [plan for _, node_plans in nodes.values() for plan in node_plans]
        for name, table in self._tables("services").items():
            plans += self._service(name, table, sites)
        if not plans:
            raise ConfigError(
                f"{self._path.name} has nothing to start",
                hint='add [nodes.eu], or [services.greeter] with command = "..."',
            )
        if len(plans) > MAX_PROCESSES:
            raise ConfigError(f"{self._path.name} has {len(plans)} processes; at most {MAX_PROCESSES} are allowed")
        return sorted(plans, key=lambda plan: plan.stage)

    # ------------------------------------------------------------------- nodes

    def _node(self, name: str, table: dict[str, Any]) -> tuple[Settings, list[ProcessPlan]]:
        entry = build_options(NodeTable, self._values("nodes", name, table), f"nodes.{name}")
        values = {"site": name, "name": name, **{key: getattr(entry, key) for key in table if key in NODE_OPTIONS}}
        environment = {**self._base, **{f"MICRO_{key.upper()}": _as_text(value) for key, value in values.items()}}
        settings = load_settings(
            config=str(self._path), sets=entry.set, environ=environment, directory=self._path.parent
        )
        plugins = self._plugins(settings, f"nodes.{name}")
        for component in entry.components:
            if component not in COMPONENTS:
                near = difflib.get_close_matches(component, COMPONENTS, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"use any of {', '.join(COMPONENTS)}"
                raise OptionError(
                    f"nodes.{name}: unknown component {component!r:.40}", at=self._position("nodes", name), hint=hint
                )
        if "registry" in entry.components and "registry:service" not in plugins:
            raise OptionError(
                f"nodes.{name}: no process uses the component registry",
                at=self._position("nodes", name),
                hint='add registry:service to the plugins: plugins = ["registry:service", ...]',
            )
        environment |= _variables(entry.set)
        sets = tuple(argument for text in entry.set for argument in ("--set", text))
        commands = [component for component in COMPONENTS if component in entry.components] or ["run"]
        return settings, [
            ProcessPlan(
                name=name if command == "run" else f"{name}.{command}",
                command=(sys.executable, "-m", "micro_core", command, *sets),
                environment=environment,
                directory=self._path.parent,
                stage=COMPONENTS.index(command) if command in COMPONENTS else len(COMPONENTS) - 1,
                site=settings.node.site,
                restart=entry.restart,
            )
            for command in commands
        ]

    def _plugins(self, settings: Settings, name: str) -> set[str]:
        """Return the plugins that the node uses. Raises PluginMissing, PluginAmbiguous."""
        try:
            chosen = Catalog.discover().select(settings.plugin_names, blocked=settings.node.block)
        except ConfigError as error:
            error.at = error.at or f"{self._path.name}, {name}"
            raise
        return {entry.qualified for entry in chosen}

    def _check_listeners(self, nodes: Mapping[str, Settings]) -> None:
        """Raise OptionError if two nodes listen on the same address: all nodes of a file run on one machine."""
        taken: dict[str, str] = {}
        for name, settings in nodes.items():
            chosen = Catalog.discover().select(settings.plugin_names, blocked=settings.node.block)
            for key in ("listen", "address"):
                value = getattr(settings.node, key)
                has_links = any(entry.role is Role.TUNNEL for entry in chosen)
                if not value or value == "none" or value.endswith(":0") or (key == "listen" and not has_links):
                    continue
                if value in taken:
                    raise OptionError(
                        f"nodes.{name} and nodes.{taken[value]} both have {key} = {value!r}",
                        at=self._position("nodes", name),
                        hint=f'give each node its own, e.g. {key} = "127.0.0.1:8086", or "none" for outgoing links only',
                    )
                taken[value] = name

    # ---------------------------------------------------------------- services

    def _service(self, name: str, table: dict[str, Any], sites: Mapping[str, list[ProcessPlan]]) -> list[ProcessPlan]:
        position = self._position("services", name)
        own_variables = self._environment(name, table.get("env", {}))
        rest = {key: value for key, value in table.items() if key != "env"}
        entry = build_options(ServiceTable, self._values("services", name, rest), f"services.{name}")
        command = tuple(shlex.split(entry.command)) if isinstance(entry.command, str) else entry.command
        if not command:
            raise OptionError(
                f"services.{name}: command is missing", at=position, hint='e.g. command = "python greeter.py"'
            )
        if not 1 <= entry.instances <= MAX_INSTANCES:
            raise OptionError(
                f"services.{name}: instances = {entry.instances} is out of range (1 to {MAX_INSTANCES})", at=position
            )
        if entry.ready_s <= 0:
            raise OptionError(
                f"services.{name}: ready_s = {entry.ready_s} is out of range (more than 0 seconds)", at=position
            )
        node = self._node_of(name, entry.site, sites)
        environment = dict(self._base)
        if node is not None:
            shared = ("MICRO_NETWORK", "MICRO_STATE_DIR", "MICRO_PLUGINS", "MICRO_BLOCK", "MICRO_LOG", "MICRO_LEASE")
            environment |= {
                key: value for key, value in node.environment.items() if key in shared or _is_plugin_variable(key)
            }
        if node is not None or entry.site:
            environment["MICRO_SITE"] = entry.site or (node.site if node is not None else "")
        if entry.proxy and node is not None:
            environment["MICRO_PROXY"] = entry.proxy
        environment |= own_variables
        directory = self._path.parent / Path(entry.cwd).expanduser()
        if not directory.is_dir():
            raise OptionError(
                f"services.{name}: directory {directory} does not exist", at=self._position("services", name, "cwd")
            )
        program = command[0] if os.sep not in command[0] else str(directory / command[0])
        if shutil.which(program, path=environment["PATH"]) is None:
            raise OptionError(
                f"services.{name}: program {command[0]!r:.80} not found",
                at=self._position("services", name, "command"),
                hint="use a path, or a program on PATH",
            )
        plan = ProcessPlan(
            name=name,
            command=command,
            environment=environment,
            directory=directory,
            stage=len(COMPONENTS),
            site=environment.get("MICRO_SITE", ""),
            ready=entry.ready,
            ready_s=entry.ready_s,
            restart=entry.restart,
        )
        if entry.instances == 1:
            return [plan]
        return [replace(plan, name=f"{name}.{number}") for number in range(1, entry.instances + 1)]

    def _node_of(self, name: str, site: str, sites: Mapping[str, list[ProcessPlan]]) -> ProcessPlan | None:
        """Return the node of the service's site, or None if the file has no nodes. Raises OptionError."""
        if not sites:
            return None
        if not site:
            if len(sites) > 1:
                raise OptionError(
                    f"services.{name}: site is missing, and the file has several sites",
                    at=self._position("services", name),
                    hint=f"use one of {', '.join(sites)}",
                )
            return next(iter(sites.values()))[0]
        if site not in sites:
            near = difflib.get_close_matches(site, [*sites], n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"the file has the sites {', '.join(sites)}"
            raise OptionError(
                f"services.{name}: no node in this file is on site {site!r:.60}",
                at=self._position("services", name, "site"),
                hint=hint,
            )
        return sites[site][0]

    def _environment(self, name: str, table: object) -> dict[str, str]:
        position = self._position("services", name, "env")
        if not isinstance(table, dict):
            raise OptionError(f"services.{name}.env is not a table", at=position, hint='env = { KEY = "value" }')
        found = {}
        for key, value in table.items():
            if not isinstance(value, (str, int, float, bool)) or "=" in key or "\0" in f"{key}{value}" or not key:
                raise OptionError(f"services.{name}.env.{key!r:.60} is not a string", at=position, hint='KEY = "value"')
            found[key] = _as_text(value)
        return found

    # ------------------------------------------------------------------ reading

    def _tables(self, kind: str) -> dict[str, dict[str, Any]]:
        known = ("node", "plugins", "nodes", "services")
        for table in self._document:
            if table not in known:
                near = difflib.get_close_matches(table, known, n=1)
                hint = f"did you mean [{near[0]}]?" if near else f"known tables: {', '.join(known)}"
                raise OptionError(f"unknown table or key {table!r:.80}", at=self._position(table), hint=hint)
        found = self._document.get(kind, {})
        if not isinstance(found, dict):
            raise OptionError(f"{kind} is not a table", at=self._position(kind), hint=f"[{kind}.NAME]")
        for name, table in found.items():
            if not isinstance(table, dict):
                raise OptionError(
                    f"{kind}.{name} is not a table", at=self._position(kind, name), hint=f"[{kind}.{name}]"
                )
            if not _NAME.fullmatch(name):
                raise OptionError(
                    f"{kind}.{name!r:.60} is not a valid name",
                    at=self._position(kind, name),
                    hint="use at most 32 letters, digits, hyphens, underscores and dots",
                )
        return found

    def _values(self, kind: str, name: str, table: Mapping[str, Any]) -> dict[str, Value]:
        directory = self._path.parent
        return {
            key: Value(raw, self._position(kind, name, key), Rank.FILE, directory=directory, environ=self._environ)
            for key, raw in table.items()
        }

    def _position(self, *path: str) -> str:
        """Return the line of a key, or of the table that contains it."""
        for length in range(len(path), 0, -1):
            line = self._lines.get(path[:length])
            if line is not None:
                return f"{self._path.name}:{line}"
        return self._path.name


def _as_text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _variables(sets: Sequence[str]) -> dict[str, str]:
    """Return the plugin options in `set` as environment variables, because the command of a service has no --set."""
    found = {}
    for text in sets:
        name, _, value = text.partition("=")
        match parse_key(name):
            case str() as plugin, key:
                found[variable_name(plugin, key)] = value
    return found


def _is_plugin_variable(variable: str) -> bool:
    return variable.startswith("MICRO_") and "__" in variable
