"""`micro plugin install|uninstall`: pip, for the environment that this very `micro` runs in.

Words are resolved to distributions first, so that `quic` never means whatever somebody has published under that name.
What pip is given to find them with (PIP_INDEX_URL, PIP_FIND_LINKS, pip.conf …) is pip's own business and reaches it.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import typer

from micro_core.cli.output import UsageError, guarded, note, show_json
from micro_core.contract.errors import ConfigError, PluginAmbiguous, PluginMissing
from micro_core.plugins import CORE_DISTRIBUTION, KNOWN_PLUGINS, Catalog, Entry
from micro_core.plugins.entries import canonical

# A word or a distribution's name, and what may follow it in a requirement: `quic`, `tunnel:quic`, `micro-x[y]>=1,<2`.
_WANTED = re.compile(r"([A-Za-z0-9][A-Za-z0-9._:-]*)((?:\[[A-Za-z0-9._,\s-]*\])?\s*(?:[<>=!~][^;@]*)?)")
_MAX_WANTED_CHARS = 300
_ALIKE = 0.85
"""How alike a distribution's name must be to a known one to be a slip of the finger rather than a stranger's plugin."""


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What to install: a distribution, and which versions of it."""

    distribution: str
    rest: str = ""


def install_plugins(names: Sequence[str], *, upgrade: bool, dry_run: bool, as_json: bool) -> None:
    """Install plugins with pip; says which drivers came with them. Exits 3 when pip fails."""

    def body() -> None:
        wanted = [_wanted(name) for name in names]
        options = ["--upgrade"] if upgrade else []
        command = _pip("install", *options, *(one.distribution + one.rest for one in wanted))
        _run(command, dry_run=dry_run)
        brought = [] if dry_run else _brought(wanted)
        if as_json:
            plugins = [entry.qualified for entry in brought]
            show_json("micro.install/1", {"command": command, "dry_run": dry_run, "plugins": plugins})
            return
        for entry in brought:
            typer.echo(f"{entry.qualified}  {entry.distribution} {entry.version}; use it: --plugins {entry.name}")

    guarded(body, as_json=as_json)


def uninstall_plugins(names: Sequence[str], *, yes: bool, dry_run: bool, as_json: bool) -> None:
    """Uninstall the distributions of plugins with pip; asks first, unless `yes`. Exits 3 when pip fails."""

    def body() -> None:
        catalog = Catalog.discover()
        distributions = list(dict.fromkeys(_installed(catalog, name) for name in names))
        going = [entry for entry in catalog.entries if entry.distribution in distributions]
        command = _pip("uninstall", "--yes", *distributions)
        if not dry_run and not yes:
            for entry in going:
                note(f"{entry.qualified}  {entry.distribution} {entry.version}")
            _ask(f"uninstall {', '.join(distributions)}?")
        _run(command, dry_run=dry_run)
        if as_json:
            plugins = [entry.qualified for entry in going]
            show_json("micro.uninstall/1", {"command": command, "dry_run": dry_run, "plugins": plugins})
        elif not dry_run:
            typer.echo(f"gone: {', '.join(entry.qualified for entry in going)}")

    guarded(body, as_json=as_json)


def _wanted(name: str) -> _Wanted:
    """The distribution that `name` means. Raises UsageError, PluginMissing, PluginAmbiguous."""
    match = _WANTED.fullmatch(name.strip()) if len(name) <= _MAX_WANTED_CHARS else None
    if match is None:
        raise UsageError(
            f"{name!r:.80} is not the name of a plugin", hint="as in quic, tunnel:quic or micro-quic-tunnel"
        )
    word, rest = match[1], match[2]
    known = [plugin for plugin in KNOWN_PLUGINS if plugin.answers_to(word)]
    if len(known) > 1:
        names = " or ".join(plugin.qualified for plugin in known)
        raise PluginAmbiguous(f"{word!r} could mean several plugins", hint=f"say which: {names}")
    if known:
        return _Wanted(known[0].distribution, rest)
    if canonical(word) == CORE_DISTRIBUTION:
        raise UsageError(f"{CORE_DISTRIBUTION} is what runs here", hint=f"pip install --upgrade {CORE_DISTRIBUTION}")
    installed = [entry.distribution for entry in Catalog.discover().entries if entry.answers_to(word)]
    if CORE_DISTRIBUTION in installed:
        raise UsageError(f"{word!r} is built in", hint=f"use it: --plugins {word}")
    if installed:
        return _Wanted(installed[0], rest)
    return _Wanted(_strangers(word), rest)


def _strangers(word: str) -> str:
    """A distribution that is not ours, which must be given by its whole name. Raises PluginMissing."""
    spellings = {text for plugin in KNOWN_PLUGINS for text in (plugin.name, plugin.qualified, plugin.distribution)}
    is_distribution = "-" in canonical(word) and ":" not in word
    near = difflib.get_close_matches(canonical(word), sorted(spellings), n=1, cutoff=_ALIKE if is_distribution else 0.6)
    if near:
        raise PluginMissing(f"there is no plugin {word!r}", hint=f"did you mean {near[0]!r}?")
    if not is_distribution:
        raise PluginMissing(
            f"there is no known plugin {word!r}",
            hint="micro plugin list --all; a plugin of others by its distribution's name, as in acme-etcd-registry",
        )
    return word


def _installed(catalog: Catalog, name: str) -> str:
    """The installed distribution that `name` means. Raises PluginMissing, PluginAmbiguous, UsageError."""
    if canonical(name) == CORE_DISTRIBUTION:
        raise UsageError(f"{CORE_DISTRIBUTION} is micro itself", hint=f"pip uninstall {CORE_DISTRIBUTION}")
    found = {entry.distribution for entry in catalog.entries if canonical(entry.distribution) == canonical(name)}
    # A distribution may hold several plugins: by its own name it is meant whole.
    distribution = found.pop() if found else catalog.find(name).distribution
    if distribution == CORE_DISTRIBUTION:
        raise UsageError(f"{name!r} is built in", hint=f"-p no:{name} (MICRO_BLOCK={name}) leaves it out")
    return distribution


def _pip(*words: str) -> list[str]:
    """The pip command of this environment. Raises ConfigError where there is none."""
    if importlib.util.find_spec("pip") is None:
        with_other_tools = " ".join(word for word in words if not word.startswith("-"))
        raise ConfigError(
            "this environment has no pip",
            at=sys.prefix,
            hint=f"{sys.executable} -m ensurepip, or: uv pip {with_other_tools} --python {sys.executable}",
        )
    return [sys.executable, "-m", "pip", "--disable-pip-version-check", *words]


def _run(command: Sequence[str], *, dry_run: bool) -> None:
    """Show the command and, unless it is to be shown alone, run it. Raises ConfigError when it fails."""
    note(f"$ {shlex.join(command)}")
    if dry_run:
        return
    # What pip says is for people: stdout is for our own answer.
    done = subprocess.run([*command], stdin=subprocess.DEVNULL, stdout=2, check=False)  # noqa: S603 - checked above
    if done.returncode != 0:
        raise ConfigError(f"pip ended with {done.returncode}", at=sys.prefix, hint="it says why above")


def _brought(wanted: Sequence[_Wanted]) -> list[Entry]:
    """The plugins of what was installed, as they are found now."""
    importlib.invalidate_caches()
    catalog = Catalog.discover()
    names = {canonical(one.distribution) for one in wanted}
    brought = [entry for entry in catalog.entries if canonical(entry.distribution) in names]
    for one in wanted:
        if not any(canonical(entry.distribution) == canonical(one.distribution) for entry in brought):
            note(f"{one.distribution} is installed, and has no plugin for micro")
    return brought


def _ask(question: str) -> None:
    if not sys.stdin.isatty():
        raise UsageError("nobody is there to be asked", hint="--yes does it without a question")
    if not typer.confirm(question, err=True):
        raise typer.Abort
