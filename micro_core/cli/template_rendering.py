"""Files written from templates: those under `templates/`, in which `@word@` stands for a word.

A file's name ends in `.tmpl`, so that no tool takes it for what it becomes; `dot-` at its beginning stands for a dot.
"""

from __future__ import annotations

import importlib.resources
import re
from collections.abc import Iterator, Mapping
from importlib.resources.abc import Traversable
from pathlib import Path, PurePosixPath

_WORD = re.compile(r"@([A-Za-z_]+)@")


def templates(*place: str) -> dict[str, str]:
    """The text of every template below `templates/place`, by the path of the file that it becomes."""
    root = importlib.resources.files("micro_core.cli").joinpath("templates", *place)
    return {path: file.read_text(encoding="utf-8") for path, file in _files(root, PurePosixPath())}


def filled(text: str, words: Mapping[str, str]) -> str:
    """`text` with its words put in. One that nobody knows is a mistake in a template, and a KeyError."""
    return _WORD.sub(lambda match: words[match[1]], text)


def write_files(place: Path, files: Mapping[str, str]) -> None:
    """Write the files of these paths below `place`. Raises OSError."""
    for path, text in files.items():
        target = place / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")


def _files(directory: Traversable, below: PurePosixPath) -> Iterator[tuple[str, Traversable]]:
    for entry in directory.iterdir():
        name = re.sub("^dot-", ".", entry.name)
        if entry.is_dir():
            yield from _files(entry, below / name)
        elif name.endswith(".tmpl"):
            yield str(below / name.removesuffix(".tmpl")), entry
