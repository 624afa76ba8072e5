"""The bodies of `micro plugin install` and `uninstall`: pip, in the environment in which this `micro` runs.

A name is resolved to a known distribution first. Otherwise `quic` would install whatever another author has published
under that name. pip reads its own settings (PIP_INDEX_URL, PIP_FIND_LINKS, pip.conf, ...) as usual.
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

from micro_core.cli.output import UsageError, note, run_guarded, show_json
from micro_core.contract.errors import ConfigError, PluginAmbiguous, PluginMissing
from micro_core.plugins import CORE_DISTRIBUTION, KNOWN_PLUGINS, Catalog, Entry
from micro_core.plugins.entries import canonical

# The name of a plugin or distribution, then optional extras and versions: `quic`, `tunnel:quic`, `micro-x[y]>=1,<2`.
_REQUIREMENT = re.compile(r"([A-Za-z0-9][A-Za-z0-9._:-]*)((?:\[[A-Za-z0-9._,\s-]*\])?\s*(?:[<>=!~][^;@]*)?)")
_MAX_REQUIREMENT_CHARS = 300
_TYPO_SIMILARITY = 0.85
"""A distribution whose name is at least this similar to a known name is taken for a typing error."""


@dataclass(frozen=True, slots=True)
class _Requirement:
    """A distribution to install, and its extras and versions as pip reads them."""

    distribution: str
    specifier: str = ""


def install_plugins(names: Sequence[str], *, upgrade: bool, dry_run: bool, as_json: bool) -> None:
    """Install plugins with pip and print the installed drivers. Raises typer.Exit(3) if pip fails."""

    def body() -> None:
        requirements = [_resolve(name) for name in names]
        options = ["--upgrade"] if upgrade else []
        command = _pip("install", *options, *(one.distribution + one.specifier for one in requirements))
        _run(command, dry_run=dry_run)
        installed = [] if dry_run else _installed_entries(requirements)
        if as_json:
            plugins = [entry.qualified for entry in installed]
            show_json("micro.install/1", {"command": command, "dry_run": dry_run, "plugins": plugins})
            return
        for entry in installed:
            typer.echo(
                f"installed {entry.qualified} ({entry.distribution} {entry.version}); use it with "
                f"--plugins {entry.name}"
            )

    run_guarded(body, as_json=as_json)


def uninstall_plugins(names: Sequence[str], *, yes: bool, dry_run: bool, as_json: bool) -> None:
    """Uninstall the distributions of plugins with pip, after asking for confirmation unless `yes` is set.

    Raises typer.Exit(3) if pip fails.
    """

    def body() -> None:
        catalog = Catalog.discover()
        distributions = list(dict.fromkeys(_installed_distribution(catalog, name) for name in names))
        entries = [entry for entry in catalog.entries if entry.distribution in distributions]
        command = _pip("uninstall", "--yes", *distributions)
        if not dry_run and not yes:
            for entry in entries:
                note(f"{entry.qualified}  {entry.distribution} {entry.version}")
            _confirm(f"uninstall {', '.join(distributions)}?")
        _run(command, dry_run=dry_run)
        if as_json:
            plugins = [entry.qualified for entry in entries]
            show_json("micro.uninstall/1", {"command": command, "dry_run": dry_run, "plugins": plugins})
        elif not dry_run:
            typer.echo(f"uninstalled: {', '.join(entry.qualified for entry in entries)}")

    run_guarded(body, as_json=as_json)


def _resolve(name: str) -> _Requirement:
    """Return the distribution that `name` refers to. Raises UsageError, PluginMissing, PluginAmbiguous."""
    match = _REQUIREMENT.fullmatch(name.strip()) if len(name) <= _MAX_REQUIREMENT_CHARS else None
    if match is None:
        raise UsageError(
            f"{name!r:.80} is not the name of a plugin", hint="use e.g. quic, tunnel:quic or micro-quic-tunnel"
        )
    name, specifier = match[1], match[2]
    known = [plugin for plugin in KNOWN_PLUGINS if plugin.has_name(name)]
    if len(known) > 1:
        names = " or ".join(plugin.qualified for plugin in known)
        raise PluginAmbiguous(f"{name!r} is the name of several plugins", hint=f"use {names}")
    if known:
        return _Requirement(known[0].distribution, specifier)
    if canonical(name) == CORE_DISTRIBUTION:
        raise UsageError(
            f"{CORE_DISTRIBUTION} is micro itself, not a plugin", hint=f"pip install --upgrade {CORE_DISTRIBUTION}"
        )
    installed = [entry.distribution for entry in Catalog.discover().entries if entry.has_name(name)]
    if CORE_DISTRIBUTION in installed:
        raise UsageError(f"{name!r} is built in", hint=f"use it with --plugins {name}")
    if installed:
        return _Requirement(installed[0], specifier)
    return _Requirement(_third_party_distribution(name), specifier)


def _third_party_distribution(name: str) -> str:
    """Return `name` if it can be the full name of a third-party distribution. Raises PluginMissing otherwise."""
    spellings = {text for plugin in KNOWN_PLUGINS for text in (plugin.name, plugin.qualified, plugin.distribution)}
    is_distribution = "-" in canonical(name) and ":" not in name
    cutoff = _TYPO_SIMILARITY if is_distribution else 0.6
    similar = difflib.get_close_matches(canonical(name), sorted(spellings), n=1, cutoff=cutoff)
    if similar:
        raise PluginMissing(f"unknown plugin {name!r}", hint=f"did you mean {similar[0]!r}?")
    if not is_distribution:
        raise PluginMissing(
            f"unknown plugin {name!r}",
            hint="`micro plugin list --all` lists the known plugins; install a third-party plugin by the full name of "
            "its distribution, e.g. acme-etcd-registry",
        )
    return name


def _installed_distribution(catalog: Catalog, name: str) -> str:
    """Return the installed distribution that `name` refers to. Raises PluginMissing, PluginAmbiguous, UsageError."""
    if canonical(name) == CORE_DISTRIBUTION:
        raise UsageError(
            f"{CORE_DISTRIBUTION} is micro itself, not a plugin", hint=f"pip uninstall {CORE_DISTRIBUTION}"
        )
    found = {entry.distribution for entry in catalog.entries if canonical(entry.distribution) == canonical(name)}
    # A distribution may contain several plugins, so its name is looked up before the names of plugins.
    distribution = found.pop() if found else catalog.find(name).distribution
    if distribution == CORE_DISTRIBUTION:
        raise UsageError(f"{name!r} is built in", hint=f"exclude it with -p no:{name} (MICRO_BLOCK={name})")
    return distribution


def _pip(*arguments: str) -> list[str]:
    """Return the command line of pip in this environment. Raises ConfigError if pip is not installed."""
    if importlib.util.find_spec("pip") is None:
        without_options = " ".join(argument for argument in arguments if not argument.startswith("-"))
        raise ConfigError(
            "this environment has no pip",
            at=sys.prefix,
            hint=f"{sys.executable} -m ensurepip, or: uv pip {without_options} --python {sys.executable}",
        )
    return [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]


def _run(command: Sequence[str], *, dry_run: bool) -> None:
    """Print the command and run it, unless `dry_run` is set. Raises ConfigError if it fails."""
    note(f"$ {shlex.join(command)}")
    if dry_run:
        return
    # The output of pip goes to standard error: standard output is for the result of this command.
    done = subprocess.run([*command], stdin=subprocess.DEVNULL, stdout=2, check=False)  # noqa: S603 - checked above
    if done.returncode != 0:
        raise ConfigError(f"pip failed with exit code {done.returncode}", at=sys.prefix, hint="see its output above")


def _installed_entries(requirements: Sequence[_Requirement]) -> list[Entry]:
    """Return the plugins of the distributions that have just been installed."""
    importlib.invalidate_caches()
    catalog = Catalog.discover()
    names = {canonical(one.distribution) for one in requirements}
    installed = [entry for entry in catalog.entries if canonical(entry.distribution) in names]
    for one in requirements:
        if not any(canonical(entry.distribution) == canonical(one.distribution) for entry in installed):
            note(f"{one.distribution} is installed, but it contains no plugin for micro")
    return installed


def _confirm(question: str) -> None:
    if not sys.stdin.isatty():
        raise UsageError("cannot ask for confirmation: standard input is not a terminal", hint="pass --yes")
    if not typer.confirm(question, err=True):
        raise typer.Abort
