"""Renders the files under `templates/`, in which `@name@` is replaced by the value of a variable.

The name of a template ends in `.tmpl`, so that no tool treats it as Python or TOML. A leading `dot-` in the name of a
file or directory becomes a dot.
"""

from __future__ import annotations

import importlib.resources
import re
from collections.abc import Iterator, Mapping
from importlib.resources.abc import Traversable
from pathlib import Path, PurePosixPath

_VARIABLE = re.compile(r"@([A-Za-z_]+)@")


def load_templates(*directory: str) -> dict[str, str]:
    """Return the text of every template below `templates/DIRECTORY`, by the path of the file to write."""
    root = importlib.resources.files("micro_core.cli").joinpath("templates", *directory)
    return {path: file.read_text(encoding="utf-8") for path, file in _files(root, PurePosixPath())}


def render(text: str, variables: Mapping[str, str]) -> str:
    """Return `text` with its variables replaced. Raises KeyError if the template uses an undefined variable."""
    return _VARIABLE.sub(lambda match: variables[match[1]], text)


def write_files(directory: Path, files: Mapping[str, str]) -> None:
    """Write files, given by path and text, below `directory`. Raises OSError."""
    for path, text in files.items():
        target = directory / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")


def _files(directory: Traversable, parent: PurePosixPath) -> Iterator[tuple[str, Traversable]]:
    for entry in directory.iterdir():
        name = re.sub("^dot-", ".", entry.name)
        if entry.is_dir():
            yield from _files(entry, parent / name)
        elif name.endswith(".tmpl"):
            yield str(parent / name.removesuffix(".tmpl")), entry
