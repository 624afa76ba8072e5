"""Wheels of the packages in this repository."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def build_wheels(directory: Path, *sources: Path) -> None:
    """Build a wheel of each source directory into `directory`.

    One process builds at a time: builds use the folder `build` of the source directory.
    """
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "wheel"]
    command += ["--no-deps", "--no-build-isolation", "-w", str(directory), *map(str, sources)]
    with (ROOT / "pyproject.toml").open() as locked:
        fcntl.flock(locked, fcntl.LOCK_EX)
        done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
