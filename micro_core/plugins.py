"""Plugins: found without importing them, loaded one at a time, explained when they are missing or broken.

An entry point's group says the role, its name the word people type. Only `load` imports, and only what was asked for; a
plugin that cannot be loaded is kept in quarantine with its distribution and the way out, and disturbs nobody else.
Built-in drivers come in by the same door.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from micro_core.spec.driver import CONTRACT_VERSION, Driver, Role
from micro_core.spec.errors import ConfigError, PluginAmbiguous, PluginBroken, PluginMissing

HOOKS_GROUP = "micro.hooks"
CORE_DISTRIBUTION = "micro-network"

KNOWN_PLUGINS: Mapping[str, str] = {
    "quic": "micro-quic-tunnel",
    "tls": "micro-tls-tunnel",
    "mdns": "micro-mdns-registry",
    "redis": "micro-redis-registry",
    "nats": "micro-nats-broker",
    "dns": "micro-dns-resolver",
    "http": "micro-http-resolver",
}
"""Words for which the distribution to install is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A plugin as its distribution describes it. `role` is None for cross-cutting hooks."""

    role: Role | None
    name: str
    distribution: str
    version: str
    module: str

    @property
    def is_builtin(self) -> bool:
        return self.distribution == CORE_DISTRIBUTION

    @property
    def qualified(self) -> str:
        """`tunnel:quic`: exact, whatever else is installed."""
        return f"{self.role.value if self.role else 'hooks'}:{self.name}"

    def answers_to(self, word: str) -> bool:
        """Whether `word` means this plugin: quic, tunnel:quic, quic_tunnel, micro-quic-tunnel."""
        plain = word.lower().replace("_", "-")
        names = {self.name, self.qualified, self.distribution.replace("_", "-")} if not self.is_builtin else set()
        role = self.role.value if self.role else "hooks"
        return plain in {name.lower() for name in names | {self.name, self.qualified, f"{self.name}-{role}"}}


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A plugin that is installed and cannot be used."""

    entry: Entry
    reason: str
    fix: str


class Catalog:
    """All installed plugins. `discover()` reads metadata; nothing is imported before `load`."""

    def __init__(self, entries: Iterable[Entry], *, strict: bool = False) -> None:
        self.entries = tuple(sorted(entries, key=lambda entry: (entry.qualified, entry.distribution)))
        self.broken: list[Quarantined] = []
        self._strict = strict
        self._loaded: dict[Entry, Driver[Any]] = {}

    @classmethod
    def discover(cls, environ: Mapping[str, str] = os.environ) -> Catalog:
        """Read the entry points of every installed distribution. MICRO_STRICT_PLUGINS=1 makes warnings errors."""
        groups: list[tuple[str, Role | None]] = [(role.group, role) for role in Role]
        entries = []
        for group, role in [*groups, (HOOKS_GROUP, None)]:
            for point in importlib.metadata.entry_points(group=group):
                dist = point.dist
                entries.append(
                    Entry(
                        role=role,
                        name=point.name,
                        distribution=dist.name if dist is not None else "unknown",
                        version=dist.version if dist is not None else "",
                        module=point.value,
                    )
                )
        # One distribution may be seen twice on sys.path (an editable install and its build directory).
        return cls(dict.fromkeys(entries), strict=environ.get("MICRO_STRICT_PLUGINS", "") not in ("", "0"))

    # ---------------------------------------------------------------- selection

    def select(self, words: Sequence[str], *, blocked: Iterable[str] = (), role: Role | None = None) -> list[Entry]:
        """The plugins that `words` mean, each once, in order; those blocked left out.

        Raises PluginMissing with the install line or the nearest name, PluginAmbiguous with the candidates.
        """
        chosen: dict[Entry, None] = {}
        for word in words:
            found = self.find(word, role=role)
            if not any(found.answers_to(no) for no in blocked):
                chosen[found] = None
        return list(chosen)

    def find(self, word: str, *, role: Role | None = None) -> Entry:
        """The one plugin that `word` means."""
        found = [entry for entry in self.entries if entry.answers_to(word) and (role is None or entry.role is role)]
        if not found:
            raise self._missing(word)
        if len(found) == 1:
            return found[0]
        if len({entry.qualified for entry in found}) == 1:
            claims = ", ".join(f"{entry.distribution} {entry.version}" for entry in found)
            raise PluginAmbiguous(
                f"{found[0].qualified} is claimed by several distributions: {claims}", hint="uninstall all but one"
            )
        names = " or ".join(entry.qualified for entry in found)
        raise PluginAmbiguous(f"{word!r} could mean several plugins", hint=f"say which: {names}")

    def conflicts(self) -> list[tuple[Entry, Entry]]:
        """Pairs of distributions that claim the same role and name."""
        pairs = []
        for first, second in zip(self.entries, self.entries[1:], strict=False):
            if first.qualified == second.qualified:
                pairs.append((first, second))
        return pairs

    def _missing(self, word: str) -> PluginMissing:
        name = word.rpartition(":")[2]
        distribution = KNOWN_PLUGINS.get(name)
        if distribution is not None:
            return PluginMissing(f"plugin {word!r} is not installed", hint=f"pip install {distribution}")
        names = sorted({entry.name for entry in self.entries} | {entry.qualified for entry in self.entries})
        near = difflib.get_close_matches(word, [*names, *KNOWN_PLUGINS], n=1)
        hint = f"did you mean {near[0]!r}?" if near else "micro plugin list --all"
        return PluginMissing(f"there is no plugin {word!r}", hint=hint)

    # ------------------------------------------------------------------ loading

    def load(self, entry: Entry) -> Driver[Any]:
        """Import the plugin and return its driver's description. Raises PluginBroken; the reason is kept, too."""
        if entry in self._loaded:
            return self._loaded[entry]
        try:
            driver = self._load(entry)
        except PluginBroken as error:
            self.broken.append(Quarantined(entry, error.detail, error.hint))
            raise
        self._loaded[entry] = driver
        return driver

    def load_hooks(self, *, blocked: Iterable[str] = ()) -> list[object]:
        """Load every cross-cutting plugin that is not blocked; one that fails is warned about and left out."""
        modules: list[object] = []
        names = list(blocked)
        for entry in self.entries:
            if entry.role is not None or any(entry.answers_to(no) for no in names):
                continue
            try:
                modules.append(self._import(entry))
            except PluginBroken as error:
                self.broken.append(Quarantined(entry, error.detail, error.hint))
                if self._strict:
                    raise
                warnings.warn(f"{error}", stacklevel=2)
        return modules

    def check(self) -> list[Quarantined]:
        """Load every driver, and return those that cannot be."""
        for entry in self.entries:
            if entry.role is not None and entry not in self._loaded:
                try:
                    self.load(entry)
                except PluginBroken:
                    # Kept in `broken`, which is the answer.
                    continue
        return self.broken

    def _load(self, entry: Entry) -> Driver[Any]:
        import pluggy

        from micro_core.spec import hookspecs

        role = entry.role
        if role is None:
            raise PluginBroken(f"{entry.qualified} is not a driver", hint="it is loaded by itself")
        module = self._import(entry)
        manager = pluggy.PluginManager(hookspecs.PROJECT)
        manager.add_hookspecs(hookspecs)
        try:
            manager.register(module, name=entry.qualified)
            manager.check_pending()
        except pluggy.PluginValidationError as error:
            raise self._is_broken(entry, _hook_reason(str(error), manager)) from error
        implementations = getattr(manager.hook, role.hook).get_hookimpls()
        if not implementations:
            raise self._is_broken(entry, f"module {entry.module} implements no hook {role.hook}")
        try:
            driver = implementations[0].function()
        except Exception as error:
            raise self._is_broken(entry, f"{role.hook} raised {type(error).__name__}: {error}") from error
        return self._checked(entry, driver)

    def _checked(self, entry: Entry, driver: object) -> Driver[Any]:
        if not isinstance(driver, Driver):
            raise self._is_broken(entry, f"its hook returned a {type(driver).__name__}, not a Driver")
        if driver.name != entry.name:
            raise self._is_broken(entry, f"its driver calls itself {driver.name!r}, its entry point {entry.name!r}")
        least, below = driver.contract
        if not least <= CONTRACT_VERSION < below:
            wanted = f"{'.'.join(map(str, least))} up to, not including, {'.'.join(map(str, below))}"
            have = ".".join(map(str, CONTRACT_VERSION))
            raise PluginBroken(
                f"{entry.distribution} {entry.version} is made for contract {wanted}; this is {have}",
                at=entry.qualified,
                hint=f"pip install --upgrade {CORE_DISTRIBUTION} {entry.distribution}",
            )
        return driver

    def _import(self, entry: Entry) -> object:
        name, _, attribute = entry.module.partition(":")
        try:
            module: object = importlib.import_module(name)
            return getattr(module, attribute) if attribute else module
        except Exception as error:
            # A plugin may raise anything while it is imported, SyntaxError included.
            raise self._is_broken(entry, f"importing {entry.module} raised {type(error).__name__}: {error}") from error

    def _is_broken(self, entry: Entry, reason: str) -> PluginBroken:
        return PluginBroken(
            f"plugin {entry.qualified} of {entry.distribution} {entry.version} is broken: {reason}",
            hint=f"pip install --upgrade {entry.distribution}, or pip uninstall {entry.distribution}",
        )


def _hook_reason(text: str, manager: Any) -> str:
    hooks = [name for name in vars(manager.hook) if name.startswith("micro_")]
    for word in text.replace("'", " ").split():
        if word.startswith("micro_") and word not in hooks:
            near = difflib.get_close_matches(word, hooks, n=1)
            return f"there is no hook {word}" + (f"; did you mean {near[0]}?" if near else "")
    return text


def blocked_words(options: Sequence[str]) -> list[str]:
    """The names of `-p no:NAME`; raises ConfigError for anything else."""
    for option in options:
        if not option.startswith("no:") or option == "no:":
            raise ConfigError(f"-p {option} is not understood", hint="-p no:NAME leaves a plugin out")
    return [option.removeprefix("no:") for option in options]
