"""The sample of prose lines: repeatable, and limited to comments, docstrings and documentation."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import sample_prose


def test_lines_of_comments_and_docstrings_are_sampled_and_code_is_not(tmp_path: Path) -> None:
    source = '"""Module docstring with five words."""\nx = "a string in the code"  # comment with five words here\n'
    lines = list(sample_prose.prose_lines(tmp_path / "a.py", source))
    assert sorted(lines) == [(1, "Module docstring with five words."), (2, "comment with five words here")]


def test_code_blocks_and_short_lines_of_documentation_are_skipped(tmp_path: Path) -> None:
    source = "# Heading\n\nA line with five words.\n```\na line in a block\n```\n"
    assert list(sample_prose.prose_lines(tmp_path / "a.md", source)) == [(3, "A line with five words.")]


def test_sample_is_repeated_by_its_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text("".join(f"This is line number {number} of the page.\n" for number in range(100)))
    assert sample_prose.main(["--seed", "7", "--count", "3", str(page)]) == 0
    first = capsys.readouterr().out
    assert first.startswith("seed 7, 3 of 100 lines\n")
    assert len(first.splitlines()) == 4
    assert sample_prose.main(["--seed", "7", "--count", "3", str(page)]) == 0
    assert capsys.readouterr().out == first
