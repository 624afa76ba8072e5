"""The body of `micro plugin new`: writes a plugin package from the templates under `templates/plugin`.

The package can be installed and passes its conformance kit without changes.
"""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import time
from pathlib import Path

import typer

from micro_core.cli.output import UsageError, note, run_guarded, show_json
from micro_core.cli.template_rendering import load_templates, render, write_files
from micro_core.contract.driver import CONTRACT_VERSION, Role
from micro_core.contract.errors import ConfigError, Conflict
from micro_core.plugins import CORE_DISTRIBUTION, HOOKS_GROUP, KNOWN_PLUGINS, Catalog

KINDS = (*(role.value for role in Role), "hooks")

KIT_ENTRY = """
# The conformance kit that `micro plugin verify {name}` runs.
[project.entry-points."micro.testing"]
{name} = "{module}.conformance"
"""

_NAME = re.compile(r"[a-z](?:-?[a-z0-9]){1,19}")
_LICENSE = re.compile(r"[A-Za-z0-9.+ ()-]{2,80}")
_SUMMARIES = {
    "registry": "Keeps the services of one process in memory.",
    "transport": "Connects processes over TCP.",
    "broker": "Delivers messages within one process.",
    "tunnel": "Links nodes over unencrypted TCP, for tests.",
    "table": "Keeps routes in memory, up to a limit.",
    "resolver": "Reads the nodes of a network from a file.",
    "hooks": "Logs slow calls.",
}
"""The initial description of a package. It describes the driver of the template."""


def write_plugin(kind: str, name: str, *, directory: str, license_name: str, author: str, as_json: bool) -> None:
    """Write the package and print how to test it. An existing directory is used only if it is empty.

    Raises typer.Exit if an argument is invalid, the directory exists already, or it is not writable.
    """

    def body() -> None:
        variables = _variables(kind, name, license_name, author)
        distribution = variables["distribution"]
        target = Path(directory or distribution)
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise Conflict(f"{target} already exists and is not an empty directory", hint="choose another --dir")
        for owner in sorted(_owners(kind, name)):
            effect = (
                "installing this package replaces it"
                if owner == distribution
                else "if both are installed, the name is ambiguous and cannot be used"
            )
            note(f"{owner} already has a plugin with this name: {effect}")
        files = _rendered(kind, variables)
        try:
            write_files(target, files)
        except OSError as error:
            raise ConfigError(f"cannot write to {target}: {error.strerror}", hint="choose another --dir") from error
        if as_json:
            written = {"directory": str(target), "distribution": distribution, "files": sorted(files)}
            show_json("micro.plugin-new/1", written)
            return
        check = "info" if kind == "hooks" else "verify"
        typer.echo(f"created {target} with {len(files)} files of the distribution {distribution}\n\nnext:")
        typer.echo(f"  cd {target}\n  pip install -e '.[dev]'\n  pytest\n  micro plugin {check} {name}")

    run_guarded(body, as_json=as_json)


def _variables(kind: str, name: str, license_name: str, author: str) -> dict[str, str]:
    """Return the variables of the templates. Raises UsageError if an argument is invalid."""
    if kind not in KINDS:
        raise UsageError(f"unknown role {kind!r:.40}", hint=f"use one of {', '.join(KINDS)}")
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r:.60} is not a valid plugin name",
            hint="use 2 to 20 characters of a-z, 0-9 and single hyphens, e.g. etcd or wire-guard",
        )
    if not _LICENSE.fullmatch(license_name):
        raise UsageError(f"{license_name!r:.60} is not an SPDX expression", hint="use e.g. MIT or Apache-2.0")
    author = author.strip() or _git("user.name") or "The authors"
    if not author.isprintable() or set(author) & set('"\\@') or len(author) > 100:
        raise UsageError(
            f"{author!r:.60} is not a valid author", hint="at most 100 characters, without quotes, backslashes and @"
        )
    role = None if kind == "hooks" else Role(kind)
    snake = name.replace("-", "_")
    major, minor = CONTRACT_VERSION
    return {
        "name": name,
        "NAME": snake.upper(),
        "snake": snake,
        "Class": "".join(part.capitalize() for part in name.split("-")),
        # A scheme consists of letters, digits and hyphens (RFC 3986 section 3.1), like the name.
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
        "kit": "its own tests" if role is None else f"the conformance kit of the {kind} role, and its own tests",
        "use": f"micro run --plugins {name}",
    }


def _owners(kind: str, name: str) -> set[str]:
    """Return the distributions, installed or known, that contain a plugin with this role and name."""
    role = None if kind == "hooks" else Role(kind)
    installed = {entry.distribution for entry in Catalog.discover().entries if (entry.role, entry.name) == (role, name)}
    return installed | {known.distribution for known in KNOWN_PLUGINS if (known.role, known.name) == (role, name)}


def _rendered(kind: str, variables: dict[str, str]) -> dict[str, str]:
    """Return the text of every file by its path below the directory of the package."""
    texts = {**load_templates("plugin", "common"), **load_templates("plugin", kind)}
    variables["about"] = render(texts.pop("about.md"), variables)
    mit, other = texts.pop("LICENSE.mit"), texts.pop("LICENSE.other")
    texts["LICENSE"] = mit if variables["license"] == "MIT" else other
    return {render(path, variables): render(text, variables) for path, text in texts.items()}


def _git(key: str) -> str:
    """Return a setting of git. Empty if it is not set, or git is not installed."""
    try:
        done = subprocess.run(["git", "config", "--get", key], capture_output=True, text=True, timeout=5, check=False)  # noqa: S603, S607 - a fixed command
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()
