"""On which line of a TOML document each key stands: `tomllib` does not say (TOML 1.0.0).

Pure. Not a parser: the text must be valid already. Keys inside inline tables are not found.
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
# Ends of multi-line strings; up to two quotes may stand before the closing three.
_ENDS = {'"""': re.compile(r'(?:[^"\\]|\\.|"(?!""))*"{3,5}'), "'''": re.compile(r"(?:[^']|'(?!''))*'{3,5}")}

Path = tuple[str, ...]


def lines_of_keys(text: str) -> dict[Path, int]:
    """The first line (from 1) of each key and table, by its whole path: `("plugins", "quic", "port")`."""
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
    """What of a value is still open at the end of a line: brackets, or a string of several lines."""

    def __init__(self) -> None:
        self._depth = 0
        self._quotes = ""

    @property
    def is_open(self) -> bool:
        return self._depth > 0 or bool(self._quotes)

    def read(self, text: str) -> None:
        place = 0
        while place <= len(text):
            if self._quotes:
                end = _ENDS[self._quotes].match(text, place)
                if end is None:
                    return
                self._quotes = ""
                place = end.end()
            token = _TOKEN.search(text, place)
            if token is None or token[0].startswith("#"):
                return
            place = token.end()
            if token[0] in _ENDS:
                self._quotes = token[0]
            elif token[0] in "[{":
                self._depth += 1
            elif token[0] in "]}":
                self._depth -= 1


def _path(key: str) -> Path:
    """The parts of a dotted key, unquoted by who knows best."""
    try:
        value: object = tomllib.loads(f"{key} = 0")
    except tomllib.TOMLDecodeError:
        return (key,)
    path: list[str] = []
    while isinstance(value, dict):
        ((part, value),) = value.items()
        path.append(part)
    return tuple(path)
