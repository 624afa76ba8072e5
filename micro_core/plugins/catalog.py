"""The catalogue of installed plugins: which one a word means, and what has become of those that were loaded."""

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
    """A plugin nobody asked for by name cannot be used and was left out."""


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A plugin that is installed and cannot be used; `entry` has its distribution, version and group."""

    entry: Entry
    reason: str
    fix: str
    cause: BaseException | None = None
    """What the plugin raised, if it raised."""


class Catalog:
    """All installed plugins. `discover()` reads metadata; nothing is imported before `load`."""

    def __init__(self, entries: Iterable[Entry], *, strict: bool = False, unreadable: Sequence[str] = ()) -> None:
        self.entries = tuple(sorted(entries, key=lambda entry: (entry.qualified, entry.distribution)))
        self.unreadable = tuple(unreadable)
        """A sentence for each distribution whose metadata is damaged."""
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
        """Read the entry points of `distributions`, by default of all that are installed.

        MICRO_STRICT_PLUGINS=1 turns what would be warned about into PluginBroken.
        """
        found = importlib.metadata.distributions() if distributions is None else distributions
        entries, unreadable = read_entries(found)
        strict = environ.get("MICRO_STRICT_PLUGINS", "").strip().lower() not in ("", "0", "false", "no", "off")
        if strict and unreadable:
            raise PluginBroken(unreadable[0], hint="install that distribution again, or remove it")
        return cls(entries, strict=strict, unreadable=unreadable)

    @property
    def broken(self) -> list[Quarantined]:
        """The plugins that could not be loaded so far."""
        return [Quarantined(entry, error.detail, error.hint, error.__cause__) for entry, error in self._errors.items()]

    # ---------------------------------------------------------------- selection

    def select(self, words: Sequence[str], *, blocked: Iterable[str] = (), role: Role | None = None) -> list[Entry]:
        """The plugins that `words` mean, each once, in order; those blocked left out.

        Raises PluginMissing with the install line or the nearest name, PluginAmbiguous with the candidates.
        """
        blocks = tuple(blocked)
        chosen: dict[Entry, None] = {}
        for word in words:
            found = self._meant_by(word, role)
            standing = [entry for entry in found if not any(entry.has_name(no) for no in blocks)]
            if standing or not (found or canonical(word) in map(canonical, blocks)):
                chosen[self._only_one(word, standing, role)] = None
        return list(chosen)

    def find(self, word: str, *, role: Role | None = None) -> Entry:
        """The one plugin that `word` means. Raises PluginMissing, PluginAmbiguous."""
        return self._only_one(word, self._meant_by(word, role), role)

    def builtin(self, role: Role, names: Sequence[str], *, blocked: Iterable[str] = ()) -> list[Entry]:
        """Core's own drivers of these names, in their order; a stranger that claims one of them is not meant."""
        blocks = tuple(blocked)
        own = {entry.name: entry for entry in self.entries if entry.is_builtin and entry.role is role}
        found = [own[name] for name in names if name in own]
        return [entry for entry in found if not any(entry.has_name(no) for no in blocks)]

    def conflicts(self) -> list[tuple[Entry, Entry]]:
        """Pairs of distributions that claim the same role and name."""
        return [
            (first, second)
            for first, second in zip(self.entries, self.entries[1:], strict=False)
            if first.qualified == second.qualified
        ]

    def _meant_by(self, word: str, role: Role | None) -> list[Entry]:
        return [entry for entry in self.entries if entry.has_name(word) and (role is None or entry.role is role)]

    def _only_one(self, word: str, found: Sequence[Entry], role: Role | None) -> Entry:
        if not found:
            raise self._missing(word, role)
        if len(found) == 1:
            return found[0]
        if len({entry.qualified for entry in found}) == 1:
            claims = " and ".join(f"{entry.distribution} {entry.version}" for entry in found)
            last = found[-1].distribution
            raise PluginAmbiguous(
                f"{found[0].qualified} is claimed by {claims}",
                hint=f"pip uninstall all but one, or leave one out: -p no:{last} (MICRO_BLOCK={last})",
            )
        names = " or ".join(entry.qualified for entry in found)
        raise PluginAmbiguous(f"{word!r} could mean several plugins", hint=f"say which: {names}")

    def _missing(self, word: str, role: Role | None) -> PluginMissing:
        for known in KNOWN_PLUGINS:
            if known.has_name(word) and role in (None, known.role):
                return PluginMissing(f"plugin {word!r} is not installed", hint=f"pip install {known.distribution}")
        # The right name with the wrong role, before names that merely look alike.
        tail = canonical(word.rpartition(":")[2])
        candidates: list[Entry | KnownPlugin] = [*self.entries, *KNOWN_PLUGINS]
        near = sorted({found.qualified for found in candidates if canonical(found.name) == tail})
        if not near:
            words = {name for found in candidates for name in (found.name, found.qualified, found.distribution)}
            near = difflib.get_close_matches(canonical(word), sorted(words - {CORE_DISTRIBUTION}), n=1)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "micro plugin list --all"
        return PluginMissing(f"there is no plugin {word!r:.80}", hint=hint)

    # ------------------------------------------------------------------ loading

    def load(self, entry: Entry) -> Driver[Any]:
        """Import the plugin and return its driver's description. Raises PluginBroken; the reason is kept, too."""
        from micro_core.plugins.loading import load_driver

        role = entry.role
        if role is None:
            raise PluginBroken(f"{entry.qualified} is not a driver", hint="micro plugin info says what it is")
        driver: Driver[Any] = self._remembered(entry, lambda: load_driver(entry, role))
        return driver

    def load_hooks(self, *, blocked: Iterable[str] = ()) -> list[object]:
        """Load every installed cross-cutting plugin that is not blocked, for the commands they add.

        One that fails is left out with a PluginWarning. Raises PluginBroken instead where plugins are strict.
        """
        blocks = tuple(blocked)
        plugins: list[object] = []
        for entry in self.entries:
            if entry.role is not None or any(entry.has_name(no) for no in blocks):
                continue
            try:
                plugins.append(self.load_hooks_of(entry).plugin)
            except PluginBroken as error:
                if self._strict:
                    raise
                warnings.warn(str(error), PluginWarning, stacklevel=2)
        return plugins

    def load_hooks_of(self, entry: Entry) -> LoadedHooks:
        """Import one cross-cutting plugin. Raises PluginBroken; the reason is kept, too."""
        from micro_core.plugins.loading import load_hooks

        return self._remembered(entry, lambda: load_hooks(entry))

    def describe(self, entry: Entry) -> Driver[Any] | None:
        """The description of a driver, or of a cross-cutting plugin; None for one of those without options.

        Raises PluginBroken.
        """
        return self.load_hooks_of(entry).driver if entry.role is None else self.load(entry)

    def check(self) -> list[Quarantined]:
        """Load every plugin, and return those that cannot be."""
        for entry in self.entries:
            try:
                self.describe(entry)
            except PluginBroken:
                # Kept in `broken`, which is the answer.
                continue
        return self.broken

    def _remembered(self, entry: Entry, load: Callable[[], T]) -> T:
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
    """The names of `-p no:NAME`; raises ConfigError for anything else."""
    for option in options:
        if not option.startswith("no:") or option == "no:":
            raise ConfigError(f"-p {option} is not understood", hint="-p no:NAME leaves a plugin out")
    return [option.removeprefix("no:") for option in options]
