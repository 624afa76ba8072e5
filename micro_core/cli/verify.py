"""The body of `micro plugin verify`: runs the conformance kit of a role in a child process, and stores the result."""

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

from micro_core.cli.output import CHECK_FAILED, UsageError, note, paint, printable, run_guarded, show_json
from micro_core.config import Settings, build_options, display_value, load_settings
from micro_core.contract.driver import Driver
from micro_core.contract.errors import ConfigError, DeadlineExceeded, PluginMissing
from micro_core.plugins import Catalog, Entry

NEEDED_MODULES = ("pytest", "pytest_asyncio")
MAX_LINE_CHARS = 100_000
"""Limit of a line from the child process, which reports each check as one line."""

MAX_REASON_LINES = 8

_MARKS = {"passed": ("ok", "32"), "failed": ("FAILED", "31"), "skipped": ("skipped", "33")}


def verify_plugin(
    name: str, *, sets: Sequence[str], config: str | None, capabilities: str | None, timeout_s: float, as_json: bool
) -> None:
    """Run the kit, print the report and store it.

    Raises typer.Exit(9) if a check failed, and typer.Exit with another code if the kit could not be run.
    """

    def body() -> None:
        catalog, settings = Catalog.discover(), load_settings(sets=sets, config=config)
        entry = catalog.find(name)
        if entry.role is None:
            raise UsageError(
                f"{entry.qualified} is not a driver: there is no conformance kit for cross-cutting plugins"
            )
        missing = [module for module in NEEDED_MODULES if importlib.util.find_spec(module) is None]
        if missing:
            needed = " and ".join(module.replace("_", "-") for module in missing)
            raise PluginMissing(f"the conformance kits need {needed}", hint="pip install 'micro-network[testing]'")
        # The child process does the same. Doing it here first reports errors in the usual form.
        driver = catalog.load(entry)
        build_options(driver.options, settings.plugin_values(*entry.option_tables), entry.name)
        selected = None
        if capabilities is not None:
            selected = [item.strip() for item in capabilities.split(",") if item.strip()]
        request = {"name": entry.qualified, "sets": list(sets), "config": config, "capabilities": selected}
        checks, environment = [], ""
        if not as_json:
            typer.echo(f"{entry.qualified}  {entry.distribution} {entry.version}")
        for message in _run(request, timeout_s):
            if "environment" in message:
                environment = str(message["environment"])
                continue
            checks.append(message)
            if not as_json:
                _show_check(message)
        report = _report(entry, checks, sorted(driver.capabilities) if selected is None else selected)
        # A kit class of the plugin creates the driver with options of its own, so those of the settings are not used.
        report |= {"environment": environment, "options": {} if environment else _options(settings, entry, driver)}
        _store(settings, entry, report)
        if as_json:
            show_json("micro.verification/1", {**report, "checks": checks})
        else:
            _show_totals(report)
        if report["result"] == "failed":
            raise typer.Exit(CHECK_FAILED)

    run_guarded(body, as_json=as_json)


def format_counts(counts: Mapping[str, int]) -> str:
    """Return e.g. `12 passed, 0 failed, 3 skipped`."""
    return ", ".join(f"{counts[outcome]} {outcome}" for outcome in _MARKS)


def last_report(settings: Settings, entry: Entry) -> dict[str, Any] | None:
    """Return the last report for this version of the plugin, without its checks. None without a stored report."""
    try:
        report = json.loads(_report_path(settings, entry).read_text())
    except (OSError, ValueError):
        return None
    keys = {"result", "totals", "at", "environment", "options"}
    return report if isinstance(report, dict) and keys <= report.keys() else None


# ---------------------------------------------------------------------------------- the run


def _run(request: Mapping[str, Any], timeout_s: float) -> Iterator[dict[str, Any]]:
    """Run the kit and yield its messages: first the environment, then each check when it ends.

    Raises ConfigError if the kit could not be run, DeadlineExceeded if it did not end in time.
    """
    with tempfile.TemporaryFile("w+") as stderr:
        child = subprocess.Popen(
            [sys.executable, "-m", "micro_core.testing"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        assert child.stdin is not None
        assert child.stdout is not None
        is_late = threading.Event()

        def kill_child() -> None:
            is_late.set()
            child.kill()

        timer = threading.Timer(timeout_s, kill_child)
        timer.start()
        end: dict[str, Any] | None = None
        count = 0
        try:
            child.stdin.write(json.dumps(request))
            child.stdin.close()
            while line := child.stdout.readline(MAX_LINE_CHARS):
                message = _parsed(line)
                if "check" in message:
                    count += 1
                    yield message
                elif "environment" in message:
                    yield message
                elif "end" in message:
                    end = message
        finally:
            timer.cancel()
            if child.poll() is None and end is None:
                child.kill()
            child.wait()
            child.stdout.close()
        stderr.seek(0)
        if is_late.is_set():
            raise DeadlineExceeded(
                f"the conformance kit did not end within {timeout_s:.3g} s",
                hint="raise --timeout, or look for a check that hangs",
            )
        if end is None or count == 0:
            reasons = [*(end or {}).get("broken", []), stderr.read()]
            text = "\n".join(reason.strip()[-2_000:] for reason in reasons if reason.strip())
            raise ConfigError(f"the conformance kit could not be run: {text or 'it contains no checks'}")


def _parsed(line: str) -> dict[str, Any]:
    try:
        message = json.loads(line)
    except ValueError:
        return {}
    return message if isinstance(message, dict) else {}


# --------------------------------------------------------------------------------- the report


def _report(entry: Entry, checks: Sequence[Mapping[str, Any]], capabilities: Sequence[str]) -> dict[str, Any]:
    totals = {"passed": 0, "failed": 0, "skipped": 0}
    groups = {group: dict(totals) for group in ("required", "faults", *capabilities)}
    for check in checks:
        for counts in (totals, groups.setdefault(check["group"], dict.fromkeys(totals, 0))):
            counts[check["outcome"]] += 1
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
    """Return the options that the settings give, with secrets masked."""
    values = settings.plugin_values(*entry.option_tables)
    options: Any = build_options(driver.options, values, entry.name)
    return {key: display_value(driver.options, key, getattr(options, key), value) for key, value in values.items()}


def _show_check(check: Mapping[str, Any]) -> None:
    mark, colour = _MARKS[check["outcome"]]
    title = check["check"].removeprefix("test_").replace("_", " ") + (f" [{check['case']}]" if check["case"] else "")
    typer.echo(f"  {paint(mark.ljust(8), colour)} {title}  ({check['duration_s']:.2f} s)")
    if check["outcome"] != "passed":
        for line in (check["reason"].splitlines() or ["no reason was given"])[:MAX_REASON_LINES]:
            typer.echo("           " + printable(line))


def _show_totals(report: Mapping[str, Any]) -> None:
    typer.echo("")
    for group, counts in report["groups"].items():
        typer.echo(f"{group}: {format_counts(counts)}")
    typer.echo(f"{report['name']} {report['version']}: {report['result']}")


def _store(settings: Settings, entry: Entry, report: Mapping[str, Any]) -> None:
    path = _report_path(settings, entry)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.write_text(json.dumps(report))
    except OSError as error:
        note(f"cannot store the result in {path}: {error.strerror}")


def _report_path(settings: Settings, entry: Entry) -> Path:
    name = re.sub(r"[^A-Za-z0-9._+-]", "_", f"{entry.distribution}-{entry.version}-{entry.qualified}")
    return settings.state_dir() / "verified" / f"{name}.json"
