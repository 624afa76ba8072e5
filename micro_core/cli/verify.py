"""`micro plugin verify`: the role's kit for an installed plugin, in a process of its own, and what came of it."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from micro_core.cli.output import PARTIAL, UsageError, guarded, note, paint, show_json
from micro_core.config import Settings, build_options, load_settings, shown
from micro_core.contract.driver import Driver
from micro_core.contract.errors import ConfigError, DeadlineExceeded, PluginMissing
from micro_core.plugins import Catalog, Entry

NEEDED_MODULES = ("pytest", "pytest_asyncio")
MAX_LINE_CHARS = 100_000
"""A part's result is a line; a plugin that writes into our pipe does not fill the memory."""

_MARKS = {"passed": ("ok", "32"), "failed": ("FAILED", "31"), "skipped": ("skipped", "33")}


def verify_plugin(
    name: str, *, sets: Sequence[str], config: str | None, capabilities: str | None, timeout_s: float, as_json: bool
) -> None:
    """Run the kit, print and record the report; exits 9 when a part failed."""

    def body() -> None:
        catalog, settings = Catalog.discover(), load_settings(sets=sets, config=config)
        entry = catalog.find(name)
        if entry.role is None:
            raise UsageError(f"{entry.qualified} is no driver: there is no kit for what cuts across")
        missing = [module for module in NEEDED_MODULES if importlib.util.find_spec(module) is None]
        if missing:
            needed = " and ".join(module.replace("_", "-") for module in missing)
            raise PluginMissing(f"the kits need {needed}", hint="pip install 'micro-network[testing]'")
        # Here, too, so that what is wrong with plugin or options is said as everywhere.
        driver = catalog.load(entry)
        build_options(driver.options, settings.plugin_values(*entry.words), entry.name)
        words = None if capabilities is None else [word.strip() for word in capabilities.split(",") if word.strip()]
        request = {"name": entry.qualified, "sets": list(sets), "config": config, "capabilities": words}
        parts, environment = [], ""
        if not as_json:
            typer.echo(f"{entry.qualified}  {entry.distribution} {entry.version}")
        for found in _run(request, timeout_s):
            if "environment" in found:
                environment = str(found["environment"])
                continue
            parts.append(found)
            if not as_json:
                _show_part(found)
        report = _report(entry, parts, sorted(driver.capabilities) if words is None else words)
        # A test environment brings options of its own; those of the settings are then not used.
        report |= {"environment": environment, "options": {} if environment else _options(settings, entry, driver)}
        _record(settings, entry, report)
        if as_json:
            show_json("micro.verification/1", {**report, "parts": parts})
        else:
            _show_totals(report)
        if report["result"] == "failed":
            raise typer.Exit(PARTIAL)

    guarded(body, as_json=as_json)


def counted(counts: Mapping[str, int]) -> str:
    """`12 passed, 0 failed, 3 skipped`."""
    return ", ".join(f"{counts[outcome]} {outcome}" for outcome in _MARKS)


def recorded(settings: Settings, entry: Entry) -> dict[str, Any] | None:
    """What the last `verify` of this very version said, without its parts; None when there is nothing."""
    try:
        found = json.loads(_place(settings, entry).read_text())
    except (OSError, ValueError):
        return None
    return (
        found
        if isinstance(found, dict) and {"result", "totals", "at", "environment", "options"} <= found.keys()
        else None
    )


# ---------------------------------------------------------------------------------- the run


def _run(request: Mapping[str, Any], timeout_s: float) -> Iterator[dict[str, Any]]:
    """With what is tested, and the parts, as they end. Raises ConfigError when the kit did not run at all, DeadlineExceeded."""
    with tempfile.TemporaryFile("w+") as said:
        child = subprocess.Popen(
            [sys.executable, "-m", "micro_core.testing"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        assert child.stdin is not None
        assert child.stdout is not None
        is_late = threading.Event()

        def give_up() -> None:
            is_late.set()
            child.kill()

        limit = threading.Timer(timeout_s, give_up)
        limit.start()
        end: dict[str, Any] | None = None
        count = 0
        try:
            child.stdin.write(json.dumps(request))
            child.stdin.close()
            while line := child.stdout.readline(MAX_LINE_CHARS):
                found = _parsed(line)
                if "part" in found:
                    count += 1
                    yield found
                elif "environment" in found:
                    yield found
                elif "end" in found:
                    end = found
        finally:
            limit.cancel()
            if child.poll() is None and end is None:
                child.kill()
            child.wait()
            child.stdout.close()
        said.seek(0)
        if is_late.is_set():
            raise DeadlineExceeded(
                f"the kit did not end within {timeout_s:.3g} s", hint="--timeout, or a part that hangs"
            )
        if end is None or count == 0:
            reasons = [*(end or {}).get("broken", []), said.read()]
            text = "\n".join(reason.strip()[-2_000:] for reason in reasons if reason.strip())
            raise ConfigError(f"the kit could not be run: {text or 'no part was found'}")


def _parsed(line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


# --------------------------------------------------------------------------------- the report


def _report(entry: Entry, parts: Sequence[Mapping[str, Any]], capabilities: Sequence[str]) -> dict[str, Any]:
    totals = {"passed": 0, "failed": 0, "skipped": 0}
    groups = {group: dict(totals) for group in ("required", "faults", *capabilities)}
    for part in parts:
        for counts in (totals, groups.setdefault(part["group"], dict.fromkeys(totals, 0))):
            counts[part["outcome"]] += 1
    return {
        "name": entry.qualified,
        "distribution": entry.distribution,
        "version": entry.version,
        "capabilities": list(capabilities),
        "result": "failed" if totals["failed"] else "passed",
        "totals": totals,
        "groups": groups,
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _options(settings: Settings, entry: Entry, driver: Driver[Any]) -> dict[str, Any]:
    """The options that were set, for people: secrets are masked."""
    values = settings.plugin_values(*entry.words)
    options: Any = build_options(driver.options, values, entry.name)
    return {key: shown(driver.options, key, getattr(options, key), said) for key, said in values.items()}


def _show_part(part: Mapping[str, Any]) -> None:
    mark, colour = _MARKS[part["outcome"]]
    title = part["part"].removeprefix("test_").replace("_", " ") + (f" [{part['case']}]" if part["case"] else "")
    typer.echo(f"  {paint(mark.ljust(8), colour)} {title}  ({part['duration_s']:.2f} s)")
    if part["outcome"] != "passed":
        for line in (part["reason"].splitlines() or ["no reason was given"])[:8]:
            typer.echo("           " + "".join(letter if letter.isprintable() else "?" for letter in line))


def _show_totals(report: Mapping[str, Any]) -> None:
    typer.echo("")
    for group, counts in report["groups"].items():
        typer.echo(f"{group}: {counted(counts)}")
    typer.echo(f"{report['name']} {report['version']}: {report['result']}")


def _record(settings: Settings, entry: Entry, report: Mapping[str, Any]) -> None:
    place = _place(settings, entry)
    try:
        place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        place.write_text(json.dumps(report))
    except OSError as error:
        note(f"the result could not be kept in {place}: {error.strerror}")


def _place(settings: Settings, entry: Entry) -> Path:
    name = re.sub(r"[^A-Za-z0-9._+-]", "_", f"{entry.distribution}-{entry.version}-{entry.qualified}")
    return settings.state_dir() / "verified" / f"{name}.json"
