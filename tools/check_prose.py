"""Check comments, docstrings, documentation and user-visible strings against `banned_phrases.toml`.

    python tools/check_prose.py [PATH ...]

Without a path, every text file of the repository is checked. Works offline. Exits with 1 if a banned phrase is found.
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RULES = Path(__file__).with_name("banned_phrases.toml")
SUFFIXES = (".py", ".md", ".tmpl", ".toml", ".yaml", ".yml", ".service")
ALLOW_MARK = "prose: allow"


@dataclass(frozen=True, slots=True)
class Rule:
    """A banned phrase, its replacement, and the paths in which it is allowed."""

    pattern: re.Pattern[str]
    suggestion: str
    allowed_in: tuple[str, ...] = ()
    applies_to: str = "prose"
    """`prose`: comments, docstrings, strings and documentation. `names`: identifiers in Python files."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A banned phrase in a file."""

    path: Path
    line: int
    phrase: str
    suggestion: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.phrase!r} -> {self.suggestion}"


@dataclass(frozen=True, slots=True)
class Rules:
    """The content of the rule file."""

    rules: tuple[Rule, ...]
    excluded: tuple[str, ...] = field(default=())
    """Paths, relative to the repository, that are not checked."""


def load_rules(path: Path = RULES) -> Rules:
    """Read the rule file."""
    content = tomllib.loads(path.read_text())
    rules = [
        Rule(
            re.compile(entry["pattern"], re.IGNORECASE if kind == "prose" else 0),
            entry["use"],
            tuple(entry.get("allowed_in", ())),
            kind,
        )
        for kind in ("prose", "names")
        for entry in content[kind]
    ]
    return Rules(tuple(rules), tuple(content.get("excluded", ())))


def texts(path: Path, source: str) -> Iterator[tuple[int, str, str]]:
    """Yield (line number, kind, text) for all checked texts of a file; `kind` is `prose` or `names`."""
    if path.suffix != ".py":
        yield from ((number, "prose", line) for number, line in _without_code_blocks(path, source))
        return
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], "prose", token.string
        elif token.type == tokenize.NAME and token.string.startswith("test_"):
            # The name of a test is a sentence.
            yield token.start[0], "prose", token.string.replace("_", " ")
        elif token.type == tokenize.NAME:
            yield token.start[0], "names", token.string
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            for offset, line in enumerate(node.value.splitlines()):
                yield node.lineno + offset, "prose", line


def _without_code_blocks(path: Path, source: str) -> Iterator[tuple[int, str]]:
    in_block = False
    for number, line in enumerate(source.splitlines(), start=1):
        if path.suffix == ".md" and line.lstrip().startswith("```"):
            in_block = not in_block
        elif not in_block:
            # Links and inline code quote names, which are not prose.
            yield number, re.sub(r"\]\([^)]*\)|`[^`]*`", " ", line) if path.suffix == ".md" else line


def check(path: Path, source: str, rules: Rules, *, relative_to: Path = ROOT) -> list[Finding]:
    """Return the banned phrases in one file."""
    name = path.relative_to(relative_to).as_posix() if path.is_relative_to(relative_to) else path.as_posix()
    if any(name == excluded or name.startswith(excluded.rstrip("/") + "/") for excluded in rules.excluded):
        return []
    lines = source.splitlines()
    active = [rule for rule in rules.rules if not any(name.startswith(allowed) for allowed in rule.allowed_in)]
    found: dict[tuple[int, str], Finding] = {}
    for number, kind, text in texts(path, source):
        if number <= len(lines) and ALLOW_MARK in lines[number - 1]:
            continue
        for rule in active:
            match = rule.pattern.search(text) if rule.applies_to == kind else None
            if match is not None:
                found.setdefault((number, match[0]), Finding(Path(name), number, match[0], rule.suggestion))
    return sorted(found.values(), key=lambda finding: finding.line)


def files(paths: Sequence[Path]) -> list[Path]:
    """Return the text files below `paths`; without paths, the tracked files of the repository."""
    if not paths:
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        return [
            ROOT / name for name in listed.stdout.split("\0") if name.endswith(SUFFIXES) and (ROOT / name).is_file()
        ]
    found: list[Path] = []
    for path in paths:
        found += sorted(inner for inner in path.rglob("*") if inner.is_file()) if path.is_dir() else [path]
    return [path.resolve() for path in found if path.name.endswith(SUFFIXES) and "__pycache__" not in path.parts]


def main(arguments: Sequence[str]) -> int:
    """Check the given paths; print all findings; return the exit code."""
    rules = load_rules()
    findings = [
        finding
        for path in files([Path(argument) for argument in arguments])
        for finding in check(path, path.read_text(), rules)
    ]
    for finding in findings:
        print(finding)
    if findings:
        print(f"{len(findings)} banned phrases found", file=sys.stderr)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
