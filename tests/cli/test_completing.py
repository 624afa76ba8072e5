"""What a shell is offered when somebody presses Tab."""

from __future__ import annotations

from typing import Any

import pytest


def offered(process: Any, line: str) -> list[str]:
    """As bash asks: the words so far, the last one unfinished."""
    words = line.split(" ")
    done = process(
        python=("-c", "from micro_core.cli.main import main; main()"),
        _MICRO_COMPLETE="complete_bash",
        COMP_WORDS=line,
        COMP_CWORD=str(len(words) - 1),
    )
    assert done.returncode == 0, done.stderr
    return [word for word in done.stdout.split("\n") if word]


@pytest.mark.parametrize(
    ("line", "some"),
    [
        ("micro ne", {"network", "new"}),
        ("micro network r", {"routes"}),
        ("micro plugin info tc", {"tcp"}),
        ("micro run --plugins tc", {"tcp"}),
        ("micro run --plugins unix,tc", {"unix,tcp"}),
        ("micro run --set no", {"node."}),
        ("micro run --set node.si", {"node.site="}),
        ("micro run --set tcp.ho", {"tcp.host="}),
    ],
)
def test_words_plugins_and_settings_are_offered(process: Any, line: str, some: set[str]) -> None:
    found = offered(process, line)
    assert some <= set(found)
    last = line.rpartition(" ")[2]
    assert all(word.startswith(last) for word in found)


def test_what_is_not_there_is_not_offered_and_does_no_harm(process: Any) -> None:
    assert offered(process, "micro run --set nothing.x") == []
    assert offered(process, "micro plugin info nothing") == []


def test_a_broken_plugin_is_offered_by_name_and_not_imported_for_it(process: Any, install: Any) -> None:
    site = install("acme-bad", "micro.tunnel", "bad", "raise RuntimeError('imported')")
    for line, wanted in (("micro plugin info ba", ["bad"]), ("micro run --set bad.x", [])):
        words = line.split(" ")
        done = process(
            python=("-c", "from micro_core.cli.main import main; main()"),
            site=site,
            _MICRO_COMPLETE="complete_bash",
            COMP_WORDS=line,
            COMP_CWORD=str(len(words) - 1),
        )
        assert (done.returncode, done.stdout.split(), done.stderr) == (0, wanted, "")
