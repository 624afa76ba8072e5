"""Combines the settings of all sources: the settings of the node, and the options of plugins."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from micro_core.config.options import build_options
from micro_core.config.sources import Key, from_environment, from_file, from_flags, from_sets, parse_key
from micro_core.config.values import Rank, Report, Value, raise_error
from micro_core.contract.driver import option
from micro_core.contract.errors import BadRequest, ConfigError, OptionError
from micro_core.contract.names import check_network_name, check_site

LOG_LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSettings:
    """The table [node]: the settings of a node, and those with which services and commands of the same site find it."""

    name: str = option("", "Display name of the node; default: host name and site.")
    network: str = option("go.micro", "Name of the network to join.")
    site: str = option("local", "Name of the site; services of one site share a registry.")
    plugins: tuple[str, ...] = option((), "Plugins to use, e.g. quic,mdns.")
    block: tuple[str, ...] = option((), "Plugins to leave out, as with -p no:NAME.")
    listen: str = option(
        ":8085",
        "Address for links from other nodes, as host:port, or one per driver: quic://:8085,tls://:443. "
        "With none the node only dials out.",
    )
    address: str = option(
        "", "Address at which the node accepts calls, e.g. tcp://127.0.0.1:9090; default: a free port on loopback."
    )
    nodes: tuple[str, ...] = option((), "Addresses of nodes to keep a link to.")
    token: str = option("", "Token of the network; default: the stored token of this user.", secret=True)
    token_file: str = option("", "File that contains the token of the network.")
    links_site: int = option(2, "Number of links to keep to nodes of the own site, accepted links included.")
    links_remote: int = option(
        2,
        "Number of links to keep to nodes of other sites, accepted links included. "
        "0 here and in links_site: link to the nodes in nodes only.",
    )
    max_links: int = option(
        64, "Number of links above which accepted links are closed, but not the only link to a site."
    )
    policies: tuple[str, ...] = option(
        (), "Which routes are advertised to which neighbour, e.g. site=us: export=local."
    )
    gateway: bool = option(False, "Advertise a default route for services that neighbours have no other route to.")
    damping: str = option("on", "Suppress flapping services of this site: on, off or dry-run.")
    restart_lease: float = option(
        60.0,
        "Seconds for which routes kept from before a restart are used until the neighbours advertise theirs; "
        "0 disables this.",
    )
    state_dir: str = option(
        "", "Directory of keys, tokens and the local registry; default: the state directory of the user."
    )
    proxy: str = option("", "For clients: service name or address of the node through which calls are sent.")
    timeout: float = option(5.0, "For clients: seconds that a call may take.")
    lease: float = option(30.0, "Seconds that a registration stays valid without being renewed.")
    log: str = option("warning", "Lowest level of logged messages: debug, info, warning, error.")


NODE_OPTIONS = frozenset(field.name for field in dataclasses.fields(NodeSettings))


class Settings:
    """The effective settings, by key (`node.site`, `quic.port`).

    Args:
        values: The values of all sources, by key.
        environ: The variables of the process, for the default of the state directory.
        report: Receives each invalid value in [node]. If it does not raise, the setting keeps its default.

    Raises:
        OptionError: A value in [node] is invalid, and `report` raises.
    """

    def __init__(
        self, values: Mapping[Key, Value], *, environ: Mapping[str, str] = os.environ, report: Report = raise_error
    ) -> None:
        self._values = dict(values)
        self._environ = environ
        of_node = {name: value for (plugin, name), value in values.items() if plugin is None}
        self.node: NodeSettings = build_options(NodeSettings, of_node, "node", report=report)
        self._check(report)

    @property
    def plugin_names(self) -> tuple[str, ...]:
        """The names of the plugins to use, in the order of preference."""
        return self.node.plugins

    def plugin_values(self, *names: str) -> dict[str, Value]:
        """Return the values that are set for a plugin under any of its names (`quic`, `tunnel:quic`), by option.

        If an option is set under several names, the source with the higher rank takes precedence, then the later name. A
        qualified name (`tunnel:quic`) also matches the tables `quic_tunnel` and `micro-quic-tunnel`.
        """
        found: dict[str, tuple[Rank, int, Value]] = {}
        for (table, option_name), value in self._values.items():
            matching = [index for index, name in enumerate(names) if table is not None and _matches(table, name)]
            if matching:
                candidate = (value.rank, max(matching), value)
                if option_name not in found or candidate[:2] > found[option_name][:2]:
                    found[option_name] = candidate
        return {option_name: value for option_name, (_, _, value) in found.items()}

    def plugin_tables(self) -> list[str]:
        """Return the names under which options of plugins are set, sorted."""
        return sorted({table for table, _ in self._values if table is not None})

    def value(self, key: str) -> Value | None:
        """Return the value that is set for `node.site` or `quic.port`; None if no source sets it."""
        parsed = parse_key(key)
        if parsed is None or parsed[0] is None:
            return self._values.get(parsed) if parsed is not None else None
        return self.plugin_values(parsed[0]).get(parsed[1])

    def origin(self, key: str) -> str:
        """Return where `node.site` or `quic.port` is set; `default` if no source sets it."""
        value = self.value(key)
        return value.origin if value is not None else "default"

    def state_dir(self) -> Path:
        """Return the directory for keys, tokens and registries of this user. It is created with mode 0700.

        Raises:
            ConfigError: The directory cannot be created.
        """
        path = Path(self.node.state_dir).expanduser() if self.node.state_dir else self._user_state() / "micro"
        try:
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise ConfigError(
                f"cannot create the state directory {path}: {error.strerror}",
                at=self.origin("node.state_dir"),
                hint="set MICRO_STATE_DIR to another directory",
            ) from error
        return path

    def _user_state(self) -> Path:
        # The XDG Base Directory Specification requires that relative paths are ignored.
        path = Path(self._environ.get("XDG_STATE_HOME", ""))
        return path if path.is_absolute() else Path.home() / ".local" / "state"

    def _check(self, report: Report) -> None:
        node = self.node
        for name, is_valid, wanted in (
            ("log", node.log in LOG_LEVELS, f"one of {', '.join(LOG_LEVELS)}"),
            ("links_site", node.links_site >= 0, "0 or more"),
            ("links_remote", node.links_remote >= 0, "0 or more"),
            ("max_links", node.max_links >= 1, "1 or more"),
            ("timeout", node.timeout > 0, "more than 0 seconds"),
            ("lease", node.lease > 0, "more than 0 seconds"),
            ("restart_lease", node.restart_lease >= 0, "0 seconds or more"),
        ):
            if not is_valid:
                value = getattr(node, name)
                report(OptionError(f"node.{name}: {value!r:.60} is not {wanted}", at=self.origin(f"node.{name}")))
        for name, check in (("network", check_network_name), ("site", check_site)):
            try:
                check(getattr(node, name))
            except BadRequest as error:
                invalid = OptionError(f"node.{name}: {error.detail}", at=self.origin(f"node.{name}"), hint=error.hint)
                invalid.__cause__ = error
                report(invalid)


def load_settings(
    flags: Mapping[str, object] | None = None,
    *,
    sets: Sequence[str] = (),
    config: str | None = None,
    environ: Mapping[str, str] = os.environ,
    directory: Path | None = None,
    report: Report = raise_error,
) -> Settings:
    """Read all sources and return the effective settings. Blocks while it reads the settings file.

    Args:
        flags: Values of command-line options by key (`node.site`). None means that the option was not given.
        sets: Arguments of `--set`, as `key=value`.
        config: Path of the settings file; default: MICRO_CONFIG, otherwise micro.toml in `directory`, which may be missing.
        environ: The variables of the process.
        directory: Directory at which relative paths start; default: the working directory.
        report: Receives each invalid setting. By default, the first one is raised.

    Raises:
        ConfigError: The settings file cannot be read, is not valid TOML, or was named and does not exist.
        OptionError: A setting is invalid, and `report` raises; or the form of a flag or `--set` is invalid.
    """
    named, named_by = (config, "flag --config") if config else (environ.get("MICRO_CONFIG", ""), "env MICRO_CONFIG")
    values: dict[Key, Value] = {}
    # A later source takes precedence over an earlier one.
    values |= from_file(named, named_by, directory or Path.cwd(), environ, report)
    values |= from_environment(environ, NODE_OPTIONS, report)
    values |= from_sets(sets, NODE_OPTIONS, environ)
    values |= from_flags(flags or {}, environ)
    return Settings(values, environ=environ, report=report)


def _normalize(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def _matches(table: str, name: str) -> bool:
    """Return whether a table contains the options of the plugin `name`, which may be qualified (`tunnel:quic`)."""
    normal_table, normal_name = _normalize(table), _normalize(name)
    role, _, plain = normal_name.rpartition(":")
    return normal_table == normal_name or (bool(role) and normal_table in (f"{plain}-{role}", f"micro-{plain}-{role}"))
