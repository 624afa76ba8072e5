"""Everything that was said, put together: the node's settings, and what plugins were told."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from micro_core.config.options import build_options
from micro_core.config.sources import Key, from_environment, from_file, from_flags, from_sets, key_of
from micro_core.config.values import Rank, Report, Value, raise_it
from micro_core.contract.driver import option
from micro_core.contract.errors import BadRequest, ConfigError, OptionError
from micro_core.contract.names import check_network_name, check_site

LOG_LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSettings:
    """The table [node]: what a node is, and how services and commands of the same site find it."""

    name: str = option("", "Name for people; default: the host's name.")
    network: str = option("go.micro", "Network to belong to; nodes of another name are not linked.")
    site: str = option("local", "Site: services of one site share a registry.")
    plugins: tuple[str, ...] = option((), "Plugins to use, as in quic,mdns.")
    block: tuple[str, ...] = option((), "Plugins to leave out, as -p no:NAME does.")
    listen: str = option(
        ":8085",
        "host:port on which other nodes may link; quic://:8085,tls://:443 for each driver its own; none to dial only.",
    )
    address: str = option(
        "", "Where the node takes calls, as in tcp://127.0.0.1:9090; empty: any free port on loopback."
    )
    nodes: tuple[str, ...] = option((), "Addresses of nodes to stay linked to.")
    token: str = option("", "The network's token; empty: the one kept for this user on this machine.", secret=True)
    token_file: str = option("", "File that holds the network's token.")
    target_links: int = option(3, "Links to keep beyond those in nodes.")
    policies: tuple[str, ...] = option((), "Rules of what is told to which neighbour, as in site=us: export=local.")
    gateway: bool = option(False, "Offer a way to everything that neighbours know no other way to.")
    damping: str = option("on", "Hold back services of this site that flap: on, off, dry-run.")
    restart_lease: float = option(
        60.0,
        "Seconds for which routes kept from before a restart are used until neighbours tell theirs; 0: not at all.",
    )
    state_dir: str = option("", "Keys, tokens and the local registry; empty: the user's state directory.")
    proxy: str = option("", "For clients: service or address of the node through which calls go.")
    timeout: float = option(5.0, "For clients: seconds a call may take.")
    lease: float = option(30.0, "Seconds a registration stands without being renewed.")
    log: str = option("warning", "Least level of log lines: debug, info, warning, error.")


NODE_OPTIONS = frozenset(field.name for field in dataclasses.fields(NodeSettings))


class Settings:
    """What was said, by key (`node.site`, `quic.port`). Raises OptionError for what [node] says wrong.

    With a `report` that does not raise, what is wrong is left at its default.
    """

    def __init__(
        self, values: Mapping[Key, Value], *, environ: Mapping[str, str] = os.environ, report: Report = raise_it
    ) -> None:
        self._values = dict(values)
        self._environ = environ
        of_node = {name: value for (word, name), value in values.items() if word is None}
        self.node: NodeSettings = build_options(NodeSettings, of_node, "node", report=report)
        self._check(report)

    @property
    def plugin_names(self) -> tuple[str, ...]:
        return self.node.plugins

    def plugin_values(self, *words: str) -> dict[str, Value]:
        """What was said about a plugin under any of its words (`quic`, `tunnel:quic`), by option name.

        Of several words the source that counts more wins, then the later word. A qualified word stands for
        `quic_tunnel` and `micro-quic-tunnel`, too.
        """
        found: dict[str, tuple[Rank, int, Value]] = {}
        for (word, name), value in self._values.items():
            places = [place for place, mine in enumerate(words) if word is not None and _means(word, mine)]
            if places:
                claim = (value.rank, max(places), value)
                if name not in found or claim[:2] > found[name][:2]:
                    found[name] = claim
        return {name: value for name, (_, _, value) in found.items()}

    def plugin_tables(self) -> list[str]:
        """The words under which plugin options were given."""
        return sorted({word for word, _ in self._values if word is not None})

    def value(self, key: str) -> Value | None:
        """What was said for `node.site` or `quic.port`; None when nobody said anything."""
        parsed = key_of(key)
        if parsed is None or parsed[0] is None:
            return self._values.get(parsed) if parsed is not None else None
        return self.plugin_values(parsed[0]).get(parsed[1])

    def origin(self, key: str) -> str:
        """Where `node.site` or `quic.port` was said; `default` when nowhere."""
        value = self.value(key)
        return value.origin if value is not None else "default"

    def state_dir(self) -> Path:
        """The directory for keys, tokens and registries of this user, made with mode 0700. Raises ConfigError."""
        path = Path(self.node.state_dir).expanduser() if self.node.state_dir else self._user_state() / "micro"
        try:
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise ConfigError(
                f"cannot make the state directory {path}: {error.strerror}",
                at=self.origin("node.state_dir"),
                hint="MICRO_STATE_DIR=... for another place",
            ) from error
        return path

    def _user_state(self) -> Path:
        # XDG base directories: a path that is not absolute is to be ignored.
        chosen = Path(self._environ.get("XDG_STATE_HOME", ""))
        return chosen if chosen.is_absolute() else Path.home() / ".local" / "state"

    def _check(self, report: Report) -> None:
        node = self.node
        for name, is_right, wanted in (
            ("log", node.log in LOG_LEVELS, f"one of {', '.join(LOG_LEVELS)}"),
            ("target_links", node.target_links >= 0, "0 or more"),
            ("timeout", node.timeout > 0, "more than 0 seconds"),
            ("lease", node.lease > 0, "more than 0 seconds"),
            ("restart_lease", node.restart_lease >= 0, "0 seconds or more"),
        ):
            if not is_right:
                value = getattr(node, name)
                report(OptionError(f"node.{name}: {value!r:.60} is not {wanted}", at=self.origin(f"node.{name}")))
        for name, check in (("network", check_network_name), ("site", check_site)):
            try:
                check(getattr(node, name))
            except BadRequest as error:
                wrong = OptionError(f"node.{name}: {error.detail}", at=self.origin(f"node.{name}"), hint=error.hint)
                wrong.__cause__ = error
                report(wrong)


def load_settings(
    flags: Mapping[str, object] | None = None,
    *,
    sets: Sequence[str] = (),
    config: str | None = None,
    environ: Mapping[str, str] = os.environ,
    directory: Path | None = None,
    report: Report = raise_it,
) -> Settings:
    """Read every source. `flags` are by key (`node.site`), None meaning not given; `sets` are `key=value` texts.

    `config` names the file (else MICRO_CONFIG, else micro.toml of `directory`, by default the working one).
    Raises ConfigError for a file that was named and cannot be read, OptionError for what is said wrong: the first of
    it, unless `report` keeps them.
    """
    named, said_by = (config, "flag --config") if config else (environ.get("MICRO_CONFIG", ""), "env MICRO_CONFIG")
    values: dict[Key, Value] = {}
    # Each overrides those before it.
    values |= from_file(named, said_by, directory or Path.cwd(), environ, report)
    values |= from_environment(environ, NODE_OPTIONS, report)
    values |= from_sets(sets, NODE_OPTIONS, environ)
    values |= from_flags(flags or {}, environ)
    return Settings(values, environ=environ, report=report)


def _plain(word: str) -> str:
    return re.sub(r"[-_.]+", "-", word.strip()).lower()


def _means(said: str, mine: str) -> bool:
    """Whether a table's word means the plugin's word `mine`, which may be qualified."""
    plain, own = _plain(said), _plain(mine)
    role, _, name = own.rpartition(":")
    return plain == own or (bool(role) and plain in (f"{name}-{role}", f"micro-{name}-{role}"))
