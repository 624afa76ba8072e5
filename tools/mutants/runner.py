"""Runs the tests of an area against one mutant, in copies of the tree."""

from __future__ import annotations

import importlib.util
import os
import queue
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

from mutants.mutant import Area, Mutant

ROOT = Path(__file__).parents[2]

TEST_TIMEOUT_S = 240
"""Maximum duration of one test, in seconds."""


class RunError(Exception):
    """The tests fail without a mutant, or did not run, so they show nothing."""


class Runner:
    """Tests mutants, as many at once as there are copies of the tree below `directory`."""

    def __init__(self, directory: Path, *, copies: int) -> None:
        self._copies: queue.SimpleQueue[Path] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._checked: set[tuple[str, ...]] = set()
        """Groups of tests that pass without a mutant."""
        for number in range(copies):
            self._copies.put(_copy_tree(directory / str(number)))

    def test(self, area: Area, mutant: Mutant) -> tuple[str, float]:
        """Run the tests against one mutant. Return the first failed test, empty if all pass, and the duration.

        Raises:
            RunError: A test fails without a mutant, or the tests did not run.
        """
        copy = self._copies.get()
        try:
            seconds = 0.0
            for tests in area.tests:
                self._check_unchanged(copy, tests)
                began_at = time.monotonic()
                failed_test = _failed_test(copy, area, mutant, tests)
                seconds += time.monotonic() - began_at
                if failed_test:
                    return failed_test, seconds
            return "", seconds
        finally:
            self._copies.put(copy)

    def _check_unchanged(self, copy: Path, tests: tuple[str, ...]) -> None:
        with self._lock:
            if tests in self._checked:
                return
            failed_test = _first_failure(copy, tests)
            if failed_test:
                raise RunError(f"{failed_test} fails without a mutant")
            self._checked.add(tests)


def _copy_tree(copy: Path) -> Path:
    for name in ("micro_core", "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "conftest.py", "README.md"):
        shutil.copy(ROOT / name, copy / name)
    return copy


def _failed_test(copy: Path, area: Area, mutant: Mutant, tests: tuple[str, ...]) -> str:
    target = copy / area.folder / mutant.file
    original = target.read_text()
    try:
        _write(target, original.replace(mutant.old, mutant.new))
        return _first_failure(copy, tests)
    finally:
        _write(target, original)


def _write(target: Path, text: str) -> None:
    """Replace a module. Its compiled form is removed, since Python would use it for another text of the same size and second."""
    target.write_text(text)
    Path(importlib.util.cache_from_source(str(target))).unlink(missing_ok=True)


def _first_failure(copy: Path, tests: tuple[str, ...]) -> str:
    """Return the first test that fails, empty if all pass."""
    options = ["-x", "-q", "-p", "no:cacheprovider", "--hypothesis-profile=mutants", f"--timeout={TEST_TIMEOUT_S}"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *tests],
        cwd=copy,
        env={key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return ""
    if "Timeout (>" in done.stdout:
        # This happens on a busy machine, too, so it shows nothing. A mutant must not be an endless loop.
        raise RunError(f"a test did not end within {TEST_TIMEOUT_S} s: {' '.join(tests)}\n{done.stdout[-2000:]}")
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    if done.returncode == 1 and failed is not None:
        return failed.group(1)
    raise RunError(f"the tests did not run: {' '.join(tests)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
