"""Converts docstrings to Markdown: the sections `Args:` and `Raises:` become lists."""

from __future__ import annotations

import inspect
import re

HEADINGS = {"Args:": "Arguments:", "Raises:": "Raises:", "Returns:": "Returns:", "Yields:": "Yields:"}
"""The sections of the Google style, with the text that introduces the list."""

ENTRY = re.compile(r"    (\*{0,2}\w+): (.*)")


def markdown(docstring: str | None) -> list[str]:
    """Return the lines of a docstring as Markdown."""
    lines: list[str] = []
    is_in_section = False
    for line in inspect.cleandoc(docstring or "").splitlines():
        if line in HEADINGS:
            is_in_section = True
            lines += [HEADINGS[line], ""]
        elif not is_in_section or (line and not line.startswith("    ")):
            is_in_section = False
            lines.append(line)
        elif entry := ENTRY.fullmatch(line):
            lines.append(f"- `{entry[1]}`: {entry[2]}")
        elif line:
            lines.append(f"  {line.strip()}")
        else:
            lines.append("")
    return lines
