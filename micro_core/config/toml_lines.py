"""Finds the lines of the keys of a TOML 1.0.0 document, which `tomllib` does not report.

Pure. This is not a parser: the document must be valid. Keys inside inline tables are not found.
"""

from __future__ import annotations

import re
import tomllib

_PART = r"""(?:"(?:[^"\\]|\\.)*"|'[^']*'|[A-Za-z0-9_-]+)"""
_KEY = re.compile(rf"\s*({_PART}(?:\s*\.\s*{_PART})*)\s*=")
_HEADER = re.compile(rf"\s*\[\[?\s*({_PART}(?:\s*\.\s*{_PART})*)\s*\]")
_TOKEN = re.compile(
    r'"""|' + r"'''|" + r'"(?:[^"\\]|\\.)*"' + r"|'[^']*'" + r"|#.*|[\[\]{}]",
)
# Ends of multi-line strings. The string may end with up to two quotes before the closing three.
_ENDS = {'"""': re.compile(r'(?:[^"\\]|\\.|"(?!""))*"{3,5}'), "'''": re.compile(r"(?:[^']|'(?!''))*'{3,5}")}

Path = tuple[str, ...]


def lines_of_keys(text: str) -> dict[Path, int]:
    """Return the first line (from 1) of each key and table, by its complete path, e.g. `("plugins", "quic", "port")`."""
    found: dict[Path, int] = {}
    table: Path = ()
    state = _Value()
    for number, line in enumerate(text.split("\n"), 1):
        rest = line
        if not state.is_open:
            header = _HEADER.match(line)
            key = _KEY.match(line)
            if header:
                table = _path(header[1])
                found.setdefault(table, number)
            if header or not key:
                continue
            found.setdefault(table + _path(key[1]), number)
            rest = line[key.end() :]
        state.read(rest)
    return found


class _Value:
    """The state of a value at the end of a line: open brackets, or an open multi-line string."""

    def __init__(self) -> None:
        self._depth = 0
        self._quotes = ""

    @property
    def is_open(self) -> bool:
        return self._depth > 0 or bool(self._quotes)

    def read(self, text: str) -> None:
        position = 0
        while position <= len(text):
            if self._quotes:
                end = _ENDS[self._quotes].match(text, position)
                if end is None:
                    return
                self._quotes = ""
                position = end.end()
            token = _TOKEN.search(text, position)
            if token is None or token[0].startswith("#"):
                return
            position = token.end()
            if token[0] in _ENDS:
                self._quotes = token[0]
            elif token[0] in "[{":
                self._depth += 1
            elif token[0] in "]}":
                self._depth -= 1


def _path(key: str) -> Path:
    """Return the components of a dotted key, which `tomllib` unquotes."""
    try:
        value: object = tomllib.loads(f"{key} = 0")
    except tomllib.TOMLDecodeError:
        return (key,)
    path: list[str] = []
    while isinstance(value, dict):
        ((component, value),) = value.items()
        path.append(component)
    return tuple(path)
