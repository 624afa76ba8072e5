"""The catalogue of installed plugins: finds a plugin by name, loads it once, and records plugins that cannot be loaded."""

from __future__ import annotations

import difflib
import importlib.metadata
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from micro_core.contract.driver import Driver, Role
from micro_core.contract.errors import ConfigError, PluginAmbiguous, PluginBroken, PluginMissing
from micro_core.plugins.entries import CORE_DISTRIBUTION, KNOWN_PLUGINS, Entry, KnownPlugin, canonical, read_entries

if TYPE_CHECKING:
    from micro_core.plugins.loading import LoadedHooks

T = TypeVar("T")


class PluginWarning(UserWarning):
    """A plugin that was not named cannot be loaded and is left out."""


@dataclass(frozen=True, slots=True)
class BrokenPlugin:
    """An installed plugin that cannot be loaded. `entry` contains its distribution, version and group."""

    entry: Entry
    reason: str
    fix: str
    """What the user can try, e.g. a `pip` command."""
    cause: BaseException | None = None
    """The exception of the plugin, if it raised one."""


class Catalog:
    """All installed plugins. `discover` reads their metadata; a plugin is imported when it is loaded.

    Args:
        entries: The entry points of the plugins.
        strict: Raise PluginBroken where a broken plugin would otherwise cause a warning.
        unreadable: A message for each distribution whose metadata is damaged.
    """

    def __init__(self, entries: Iterable[Entry], *, strict: bool = False, unreadable: Sequence[str] = ()) -> None:
        self.entries = tuple(sorted(entries, key=lambda entry: (entry.qualified, entry.distribution)))
        self.unreadable = tuple(unreadable)
        """A message for each distribution whose metadata is damaged."""
        self._strict = strict
        self._loaded: dict[Entry, Any] = {}
        self._errors: dict[Entry, PluginBroken] = {}

    @classmethod
    def discover(
        cls,
        environ: Mapping[str, str] = os.environ,
        *,
        distributions: Iterable[importlib.metadata.Distribution] | None = None,
    ) -> Catalog:
        """Read the entry points of `distributions`; default: all installed distributions. Imports no plugin.

        Raises:
            PluginBroken: The metadata of a distribution is damaged and MICRO_STRICT_PLUGINS=1 is set in `environ`.
        """
        found = importlib.metadata.distributions() if distributions is None else distributions
        entries, unreadable = read_entries(found)
        strict = environ.get("MICRO_STRICT_PLUGINS", "").strip().lower() not in ("", "0", "false", "no", "off")
        if strict and unreadable:
            raise PluginBroken(unreadable[0], hint="reinstall or uninstall that distribution")
        return cls(entries, strict=strict, unreadable=unreadable)

    @property
    def broken(self) -> list[BrokenPlugin]:
        """The plugins that could not be loaded so far."""
        return [BrokenPlugin(entry, error.detail, error.hint, error.__cause__) for entry, error in self._errors.items()]

    # ---------------------------------------------------------------- selection

    def select(self, names: Sequence[str], *, blocked: Iterable[str] = (), role: Role | None = None) -> list[Entry]:
        """Return the plugins with these names, in order and without duplicates.

        Args:
            names: Names of plugins in any of their forms, e.g. `quic` or `tunnel:quic`.
            blocked: Names of plugins to leave out, whether they are installed or not.
            role: Consider only plugins of this role; default: all.

        Raises:
            PluginMissing: No plugin has one of the names. The hint is the install command or a similar name.
            PluginAmbiguous: Several plugins have one of the names. The hint lists them.
        """
        blocks = tuple(blocked)
        selected: dict[Entry, None] = {}
        for name in names:
            found = self._matching(name, role)
            allowed = [entry for entry in found if not any(entry.has_name(block) for block in blocks)]
            if allowed or not (found or canonical(name) in map(canonical, blocks)):
                selected[self._require_single(name, allowed, role)] = None
        return list(selected)

    def find(self, name: str, *, role: Role | None = None) -> Entry:
        """Return the plugin with this name, among those of `role` if it is given.

        Raises:
            PluginMissing: No plugin has the name. The hint is the install command or a similar name.
            PluginAmbiguous: Several plugins have the name. The hint lists them.
        """
        return self._require_single(name, self._matching(name, role), role)

    def builtin(self, role: Role, names: Sequence[str], *, blocked: Iterable[str] = ()) -> list[Entry]:
        """Return the built-in drivers with these names, in order. Other plugins with the same names are ignored."""
        blocks = tuple(blocked)
        own = {entry.name: entry for entry in self.entries if entry.is_builtin and entry.role is role}
        found = [own[name] for name in names if name in own]
        return [entry for entry in found if not any(entry.has_name(block) for block in blocks)]

    def conflicts(self) -> list[tuple[Entry, Entry]]:
        """Return the pairs of plugins with the same role and name."""
        return [
            (first, second)
            for first, second in zip(self.entries, self.entries[1:], strict=False)
            if first.qualified == second.qualified
        ]

    def _matching(self, name: str, role: Role | None) -> list[Entry]:
        return [entry for entry in self.entries if entry.has_name(name) and (role is None or entry.role is role)]

    def _require_single(self, name: str, found: Sequence[Entry], role: Role | None) -> Entry:
        if not found:
            raise self._missing(name, role)
        if len(found) == 1:
            return found[0]
        if len({entry.qualified for entry in found}) == 1:
            providers = " and ".join(f"{entry.distribution} {entry.version}" for entry in found)
            last = found[-1].distribution
            raise PluginAmbiguous(
                f"{found[0].qualified} is provided by {providers}",
                hint=f"uninstall all but one, or exclude one: -p no:{last} (MICRO_BLOCK={last})",
            )
        candidates = " or ".join(entry.qualified for entry in found)
        raise PluginAmbiguous(f"the plugin name {name!r} is ambiguous", hint=f"use {candidates}")

    def _missing(self, name: str, role: Role | None) -> PluginMissing:
        for known in KNOWN_PLUGINS:
            if known.has_name(name) and role in (None, known.role):
                return PluginMissing(f"plugin {name!r} is not installed", hint=f"pip install {known.distribution}")
        # Plugins with the same name and another role are suggested before plugins with a similar name.
        plain = canonical(name.rpartition(":")[2])
        candidates: list[Entry | KnownPlugin] = [*self.entries, *KNOWN_PLUGINS]
        similar = sorted({found.qualified for found in candidates if canonical(found.name) == plain})
        if not similar:
            known_names = {each for found in candidates for each in (found.name, found.qualified, found.distribution)}
            similar = difflib.get_close_matches(canonical(name), sorted(known_names - {CORE_DISTRIBUTION}), n=1)
        hint = f"did you mean {' or '.join(map(repr, similar))}?" if similar else "micro plugin list --all"
        return PluginMissing(f"unknown plugin {name!r:.80}", hint=hint)

    # ------------------------------------------------------------------ loading

    def load(self, entry: Entry) -> Driver[Any]:
        """Import the plugin of a driver and return its description. Later calls return the same result.

        Raises:
            PluginBroken: The plugin cannot be loaded, which is also recorded in `broken`; or it is not a driver.
        """
        from micro_core.plugins.loading import load_driver

        role = entry.role
        if role is None:
            raise PluginBroken(f"{entry.qualified} is not a driver", hint=f"micro plugin info {entry.qualified}")
        driver: Driver[Any] = self._load_once(entry, lambda: load_driver(entry, role))
        return driver

    def load_hooks(self, *, blocked: Iterable[str] = ()) -> list[object]:
        """Load every installed cross-cutting plugin that is not blocked, for the commands that they add.

        A plugin that cannot be loaded is left out with a PluginWarning.

        Raises:
            PluginBroken: A plugin cannot be loaded and the catalogue is strict.
        """
        blocks = tuple(blocked)
        plugins: list[object] = []
        for entry in self.entries:
            if entry.role is not None or any(entry.has_name(block) for block in blocks):
                continue
            try:
                plugins.append(self.load_hooks_of(entry).plugin)
            except PluginBroken as error:
                if self._strict:
                    raise
                warnings.warn(str(error), PluginWarning, stacklevel=2)
        return plugins

    def load_hooks_of(self, entry: Entry) -> LoadedHooks:
        """Import one cross-cutting plugin. Later calls return the same result.

        Raises:
            PluginBroken: The plugin cannot be loaded, which is also recorded in `broken`.
        """
        from micro_core.plugins.loading import load_hooks

        return self._load_once(entry, lambda: load_hooks(entry))

    def describe(self, entry: Entry) -> Driver[Any] | None:
        """Return the description of a driver or a cross-cutting plugin; None for a cross-cutting plugin without options.

        Raises:
            PluginBroken: The plugin cannot be loaded, which is also recorded in `broken`.
        """
        return self.load_hooks_of(entry).driver if entry.role is None else self.load(entry)

    def check(self) -> list[BrokenPlugin]:
        """Load every plugin, and return those that cannot be loaded."""
        for entry in self.entries:
            try:
                self.describe(entry)
            except PluginBroken:
                # Recorded in `broken`.
                continue
        return self.broken

    def _load_once(self, entry: Entry, load: Callable[[], T]) -> T:
        if entry in self._errors:
            raise self._errors[entry]
        if entry not in self._loaded:
            try:
                self._loaded[entry] = load()
            except PluginBroken as error:
                self._errors[entry] = error
                raise
        loaded: T = self._loaded[entry]
        return loaded


def blocked_names(options: Sequence[str]) -> list[str]:
    """Return the names from the values of `-p no:NAME`.

    Raises:
        ConfigError: A value does not have this form.
    """
    for option in options:
        if not option.startswith("no:") or option == "no:":
            raise ConfigError(
                f"invalid option -p {option:.80}: it is not no:NAME", hint="exclude a plugin with -p no:NAME"
            )
    return [option.removeprefix("no:") for option in options]
