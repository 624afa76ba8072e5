"""Run checks, given as `path::Class::check`, and print a line of JSON for each. Started by test_broken_drivers.py."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import tempfile
from pathlib import Path

import pytest

from micro_core.testing.report import CheckReporter, CheckResult

with tempfile.TemporaryDirectory() as directory, os.fdopen(os.dup(1), "w") as out:
    os.dup2(2, 1)

    def report(result: CheckResult) -> None:
        out.write(json.dumps(dataclasses.asdict(result)) + "\n")

    settings = Path(directory, "pytest.ini")
    settings.write_text("[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\ntimeout = 60\n")
    arguments = ["-q", "-c", str(settings), "-p", "no:cacheprovider", "--import-mode=importlib"]
    pytest.main([*sys.argv[1:], *arguments], plugins=[CheckReporter(report)])
