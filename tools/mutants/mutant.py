"""What a mutant is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """A replacement that breaks one rule. `file` is relative to the folder of the area."""

    rule: str
    file: str
    old: str
    new: str


@dataclass(frozen=True)
class Area:
    """The mutants of one folder, and the tests that must detect them."""

    name: str
    folder: str
    tests: tuple[tuple[str, ...], ...]
    """Groups of tests. A group runs only if those before it do not detect a mutant: fast ones come first."""
    mutants: tuple[Mutant, ...]
