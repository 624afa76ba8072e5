"""The prose check: finds banned phrases in comments, docstrings, strings, documentation and names."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import check_prose  # noqa: E402 - the directory of the tool is not a package

RULES = check_prose.load_rules()


def phrases(tmp_path: Path, name: str, source: str) -> list[str]:
    path = tmp_path / name
    path.write_text(source)
    return [finding.phrase for finding in check_prose.check(path, source, RULES, relative_to=tmp_path)]


@pytest.mark.parametrize(
    "sentence",
    [
        "A router tells its neighbours what is told.",
        "Whoever comes in speaks for the node.",
        "One key an instance.",
        "Nobody could ask a process that shows nothing.",
        "What a stranger left makes way.",
        "The hot path of the whole house.",
        "The route that stands is used.",
        "A service that is held back is let out later.",
        "Who receives the frames of one stream.",
        "What is told to a neighbour.",
        "A file that is no record never expires.",
        "Done once a call at every hop.",
        "The words under which its options are given.",
        "Raises OptionError for the value as it was said.",
        "How long one resolver may take.",
    ],
)
def test_banned_phrase_is_found_in_documentation_comments_docstrings_and_strings(tmp_path: Path, sentence: str) -> None:
    assert phrases(tmp_path, "page.md", sentence + "\n")
    assert phrases(tmp_path, "comment.py", f"x = 1  # {sentence}\n")
    assert phrases(tmp_path, "docstring.py", f'def f():\n    """{sentence}"""\n')
    assert phrases(tmp_path, "string.py", f'error = ValueError(f"{sentence} {{x}}")\n')


@pytest.mark.parametrize(
    "sentence",
    [
        "The first route, the last item and no other node.",
        "The standalone router understands outstanding calls.",
        "`tell` and [page](told.md) are not prose.",
        "Return None if there is none left.",
        "Once per call, the state is read.",
        "If there is no route, the origin is asked; it is no longer than 8 bytes.",
        "What happens if the link fails?",
        "How long does a stale route stay?",
        "The record shows how long calls wait.",
        "An address without a scheme stands for every driver.",
        "Once a session is open, data is sent.",
    ],
)
def test_plain_english_is_accepted(tmp_path: Path, sentence: str) -> None:
    assert phrases(tmp_path, "page.md", sentence + "\n") == []


def test_code_blocks_in_documentation_are_skipped(tmp_path: Path) -> None:
    assert phrases(tmp_path, "page.md", "```python\ntold = 1\n```\n") == []


def test_banned_name_is_found_in_code_only(tmp_path: Path) -> None:
    assert phrases(tmp_path, "names.py", "FIRST_RETRY_S = 1\n") == ["FIRST_RETRY_S"]
    assert phrases(tmp_path, "names.md", "FIRST_RETRY_S\n") == []


def test_name_of_a_test_is_checked_as_a_sentence(tmp_path: Path) -> None:
    assert phrases(tmp_path, "test_x.py", "def test_stopped_node_is_told() -> None: ...\n") == ["told"]
    assert phrases(tmp_path, "test_y.py", "def test_stopped_node_is_reported() -> None: ...\n") == []


@pytest.mark.parametrize(
    "name",
    ["_door_address", "heard", "MOST_US", "RETRY_LAST_S", "plugin_words", "is_aside", "paths_told", "RETRY_MAX_S"],
)
def test_old_name_is_banned(tmp_path: Path, name: str) -> None:
    assert phrases(tmp_path, "names.py", f"{name} = 1\n") == [name]


@pytest.mark.parametrize(
    "name",
    ["last_received_at", "set_aside", "both_ways", "understands", "asyncio.FIRST_COMPLETED", "first", "MAX_RETRY_S"],
)
def test_other_name_is_accepted(tmp_path: Path, name: str) -> None:
    assert phrases(tmp_path, "names.py", f"x = {name}\n") == []


def test_finding_shows_file_line_and_suggestion(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    source = "Fine.\nWhoever calls.\n"
    (finding,) = check_prose.check(path, source, RULES, relative_to=tmp_path)
    assert str(finding).startswith("page.md:2: 'Whoever' -> name the subject")


def test_exit_code_is_1_for_a_finding_and_0_without(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad, good = tmp_path / "bad.md", tmp_path / "good.md"
    bad.write_text("Nobody calls.\n")
    good.write_text("No client calls.\n")
    assert check_prose.main([str(good)]) == 0
    assert check_prose.main([str(bad)]) == 1
    assert "1 banned phrases found" in capsys.readouterr().err
