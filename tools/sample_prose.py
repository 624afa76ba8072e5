"""Print a random sample of the lines of comments, docstrings and documentation, to be read for style.

    python tools/sample_prose.py [--seed N] [--count 200] [PATH ...]

Without a path, the sample covers every text file of the repository. The seed is printed, so that a sample can be repeated.
"""

from __future__ import annotations

import argparse
import ast
import io
import random
import re
import secrets
import sys
import tokenize
from collections.abc import Iterator, Sequence
from pathlib import Path

from check_prose import ROOT, files

MIN_TOKENS = 4
"""Shorter lines are mostly headings, table cells and ends of paragraphs."""


def prose_lines(path: Path, source: str) -> Iterator[tuple[int, str]]:
    """Yield (line number, text) for each line of comment, docstring or documentation that reads as prose."""
    lines = _python_lines(source) if path.suffix == ".py" else _document_lines(source)
    for number, text in lines:
        stripped = text.strip().strip('#"').strip()
        if len(re.findall(r"[^\W\d_]+", stripped)) >= MIN_TOKENS:
            yield number, stripped


def _python_lines(source: str) -> Iterator[tuple[int, str]]:
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and not token.string.startswith(("# noqa", "# type:")):
            yield token.start[0], token.string
    # A string as a statement is a docstring, or the description of the name above it.
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield from ((number, lines[number - 1]) for number in range(node.lineno, (node.end_lineno or 0) + 1))


def _document_lines(source: str) -> Iterator[tuple[int, str]]:
    in_block = False
    for number, line in enumerate(source.splitlines(), start=1):
        if line.lstrip().startswith("```"):
            in_block = not in_block
        elif not in_block:
            yield number, line


def main(arguments: Sequence[str]) -> int:
    """Print the sample; return the exit code."""
    parser = argparse.ArgumentParser(description="Print a random sample of comment, docstring and documentation lines.")
    parser.add_argument("--seed", type=int, default=None, help="seed of the random choice (default: a new one)")
    parser.add_argument("--count", type=int, default=200, help="number of lines (default: 200)")
    parser.add_argument("paths", nargs="*", type=Path, help="files or directories (default: the repository)")
    options = parser.parse_args(arguments)
    seed = secrets.randbelow(1_000_000) if options.seed is None else options.seed
    candidates = [
        (path.relative_to(ROOT) if path.is_relative_to(ROOT) else path, number, text)
        for path in files(options.paths)
        if path.suffix in {".py", ".md"}
        for number, text in prose_lines(path, path.read_text())
    ]
    chosen = random.Random(seed).sample(candidates, min(options.count, len(candidates)))
    print(f"seed {seed}, {len(chosen)} of {len(candidates)} lines")
    for path, number, text in sorted(chosen):
        print(f"{path}:{number}: {text}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
