"""`micro plugin new`: a whole package that installs and passes its kit at once, from the files under templates/plugin."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import time
from pathlib import Path

import typer

from micro_core.cli.output import UsageError, guarded, note, show_json
from micro_core.cli.template_rendering import filled, templates, write_files
from micro_core.contract.driver import CONTRACT_VERSION, Role
from micro_core.contract.errors import ConfigError, Conflict
from micro_core.plugins import CORE_DISTRIBUTION, HOOKS_GROUP, KNOWN_PLUGINS, Catalog

KINDS = (*(role.value for role in Role), "hooks")

KIT_ENTRY = """
# What `micro plugin verify {name}` runs.
[project.entry-points."micro.testing"]
{name} = "{module}.conformance"
"""

_NAME = re.compile(r"[a-z](?:-?[a-z0-9]){1,19}")
_LICENSE = re.compile(r"[A-Za-z0-9.+ ()-]{2,80}")
_SUMMARIES = {
    "registry": "Services of this very process.",
    "transport": "Sockets over TCP.",
    "broker": "Topics within one process.",
    "tunnel": "Links over plain TCP, for tests.",
    "table": "Routes in a dict.",
    "resolver": "Nodes of a network from a file.",
    "hooks": "A log of slow calls.",
}
"""What the driver of a template is, until its author makes it something else."""


def write_plugin(kind: str, name: str, *, directory: str, license_name: str, author: str, as_json: bool) -> None:
    """Write the package. Raises UsageError for a name that cannot be one, Conflict where something stands already."""

    def body() -> None:
        words = _words(kind, name, license_name, author)
        place = Path(directory or words["distribution"])
        if place.exists() and (not place.is_dir() or any(place.iterdir())):
            raise Conflict(f"{place} exists already, and is not an empty directory", hint="choose another --dir")
        for owner in sorted(_owners(kind, name)):
            is_same = owner == words["distribution"]
            effect = (
                "installing this one replaces it" if is_same else "where both are installed, the name means neither"
            )
            note(f"{owner} has a plugin of this name already: {effect}")
        files = _rendered(kind, words)
        try:
            write_files(place, files)
        except OSError as error:
            raise ConfigError(f"cannot write into {place}: {error.strerror}", hint="choose another --dir") from error
        if as_json:
            written = {"directory": str(place), "distribution": words["distribution"], "files": sorted(files)}
            show_json("micro.plugin-new/1", written)
            return
        typer.echo(f"wrote {place}: {len(files)} files of the distribution {words['distribution']}\n\nnext:")
        typer.echo(
            f"  cd {place}\n  pip install -e '.[dev]'\n  pytest\n  micro plugin {'info' if kind == 'hooks' else 'verify'} {name}"
        )

    guarded(body, as_json=as_json)


def _words(kind: str, name: str, license_name: str, author: str) -> dict[str, str]:
    if kind not in KINDS:
        raise UsageError(f"{kind!r:.40} is no role", hint=f"one of {', '.join(KINDS)}")
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r:.60} cannot be a plugin's name", hint="2 to 20 of a-z, 0-9 and single -, as in etcd or wire-guard"
        )
    if not _LICENSE.fullmatch(license_name):
        raise UsageError(f"{license_name!r:.60} is no SPDX expression", hint="as in MIT or Apache-2.0")
    author = author.strip() or _git("user.name") or "The authors"
    if not author.isprintable() or set(author) & set('"\\@') or len(author) > 100:
        raise UsageError(f"{author!r:.60} cannot be an author's name", hint="at most 100 characters, no quotes, no @")
    role = None if kind == "hooks" else Role(kind)
    snake = name.replace("-", "_")
    major, minor = CONTRACT_VERSION
    return {
        "name": name,
        "NAME": snake.upper(),
        "snake": snake,
        "Class": "".join(part.capitalize() for part in name.split("-")),
        # RFC 3986 3.1: letters, digits and -; the name is already that.
        "scheme": name,
        "role": kind,
        "distribution": f"micro-{name}-{kind}",
        "module": f"micro_{snake}_{kind}",
        "group": role.group if role is not None else HOOKS_GROUP,
        "description": _SUMMARIES[kind],
        "license": license_name,
        "author": author,
        "year": str(time.localtime().tm_year),
        "core_version": ".".join(importlib.metadata.version(CORE_DISTRIBUTION).split(".")[:2]),
        "contract_major": str(major),
        "contract_minor": str(minor),
        "contract_next": str(major + 1),
        "Kind": "A cross-cutting plugin" if role is None else f"A {kind} driver",
        "kit_entry": "" if role is None else KIT_ENTRY.format(name=name, module=f"micro_{snake}_{kind}"),
        "verify": "" if role is None else f"      - run: micro plugin verify {name}\n",
        "kit": "its own tests" if role is None else f"the kit of the {kind} role, and its own tests",
        "use": f"micro run --plugins {name}",
    }


def _owners(kind: str, name: str) -> set[str]:
    """The distributions, installed or known, that have a plugin of this role and name."""
    role = None if kind == "hooks" else Role(kind)
    installed = {entry.distribution for entry in Catalog.discover().entries if (entry.role, entry.name) == (role, name)}
    return installed | {known.distribution for known in KNOWN_PLUGINS if (known.role, known.name) == (role, name)}


def _rendered(kind: str, words: dict[str, str]) -> dict[str, str]:
    """The text of every file, by its path below the package's directory."""
    texts = {**templates("plugin", "common"), **templates("plugin", kind)}
    words["about"] = filled(texts.pop("about.md"), words)
    mit, other = texts.pop("LICENSE.mit"), texts.pop("LICENSE.other")
    texts["LICENSE"] = mit if words["license"] == "MIT" else other
    return {filled(path, words): filled(text, words) for path, text in texts.items()}


def _git(key: str) -> str:
    """A setting of git, where there is git; empty where not."""
    try:
        done = subprocess.run(["git", "config", "--get", key], capture_output=True, text=True, timeout=5, check=False)  # noqa: S603, S607 - a fixed command of the author's own machine
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()
