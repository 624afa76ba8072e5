"""Tests of docs/plugins/conformance.md: its example passes its own test, and its tables are complete."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

from micro_core.testing import CAPABILITIES, Faults
from micro_core.testing.verify import KITS

PAGE = (Path(__file__).parents[2] / "docs/plugins/conformance.md").read_text()
FILES = dict(re.findall(r"<!-- file: (\S+) -->\n```python\n(.*?)```", PAGE, re.DOTALL))


def run(directory: Path) -> subprocess.CompletedProcess[str]:
    (directory / "pytest.ini").write_text("[pytest]\nasyncio_default_fixture_loop_scope = function\n")
    for name, text in FILES.items():
        (directory / name).write_text(text)
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-rs", "-p", "no:cacheprovider", "test_conformance.py"],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_example_driver_passes_the_kit_in_strict_mode(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert done.returncode == 0, done.stdout
    assert re.findall(r"SKIPPED.*?: (.*)", done.stdout) == [
        "the driver does not declare 'weights' (the source stores weights)"
    ]


def test_example_failure_is_the_output_of_pytest(tmp_path: Path) -> None:
    correct = FILES["micro_file_resolver.py"]
    broken = correct.replace("candidate.priority)", "-candidate.priority)")
    assert broken != correct
    run(tmp_path)
    (tmp_path / "micro_file_resolver.py").write_text(broken)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "test_conformance.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    (shown,) = re.findall(r"```\nFAILED (\S+)\nAssertionError: (.*)\n```", PAGE)
    assert f"FAILED {shown[0]}" in done.stdout
    assert shown[1] in done.stdout


def test_page_lists_every_capability_and_fault_method() -> None:
    for role, names in CAPABILITIES.items():
        for name in names:
            assert f"| {role.value} | `{name}` |" in PAGE
    methods = [name for name in vars(Faults) if not name.startswith("_") and name != "supports"]
    assert [name for name in methods if f"`{name}`" not in PAGE] == []


def test_page_lists_every_class_attribute_of_the_kits() -> None:
    names = {
        name
        for kit in KITS.values()
        for base in kit.__mro__
        if base.__module__.startswith("micro_core.testing")
        for name in inspect.get_annotations(base)
    } - {"role"}
    assert sorted(name for name in names if f"`{name}`" not in PAGE) == []
