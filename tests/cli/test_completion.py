"""Completions that a shell requests when the user presses Tab."""

from __future__ import annotations

from typing import Any

import pytest


def completions(process: Any, line: str) -> list[str]:
    """Return the completions that bash receives for an incomplete command line."""
    arguments = line.split(" ")
    done = process(
        python=("-c", "from micro_core.cli.main import main; main()"),
        _MICRO_COMPLETE="complete_bash",
        COMP_WORDS=line,
        COMP_CWORD=str(len(arguments) - 1),
    )
    assert done.returncode == 0, done.stderr
    return [item for item in done.stdout.split("\n") if item]


@pytest.mark.parametrize(
    ("line", "expected"),
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
def test_commands_plugins_and_settings_are_completed(process: Any, line: str, expected: set[str]) -> None:
    found = completions(process, line)
    assert expected <= set(found)
    last = line.rpartition(" ")[2]
    assert all(item.startswith(last) for item in found)


def test_unknown_plugin_has_no_completions(process: Any) -> None:
    assert completions(process, "micro run --set nothing.x") == []
    assert completions(process, "micro plugin info nothing") == []


def test_broken_plugin_is_completed_without_importing_it(process: Any, install: Any) -> None:
    site = install("acme-bad", "micro.tunnel", "bad", "raise RuntimeError('imported')")
    for line, wanted in (("micro plugin info ba", ["bad"]), ("micro run --set bad.x", [])):
        arguments = line.split(" ")
        done = process(
            python=("-c", "from micro_core.cli.main import main; main()"),
            site=site,
            _MICRO_COMPLETE="complete_bash",
            COMP_WORDS=line,
            COMP_CWORD=str(len(arguments) - 1),
        )
        assert (done.returncode, done.stdout.split(), done.stderr) == (0, wanted, "")
