"""One value of a setting: what was said, where, and how much that place counts."""

from __future__ import annotations

import enum
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from micro_core.contract.errors import ConfigError, OptionError

MAX_FILE_BYTES = 1024 * 1024
"""Longest file of settings, and longest file that `$file:` reads."""

ENVIRONMENT_REFERENCE = "$env:"
FILE_REFERENCE = "$file:"


class Rank(enum.IntEnum):
    """Who is believed: the highest."""

    FILE = 1
    ENVIRONMENT = 2
    SET = 3
    """--set"""
    FLAG = 4
    """An option of its own, or an argument of a program."""


Report = Callable[[ConfigError], None]
"""What to do with a setting that is wrong: raise it, or keep it and read on."""


def raise_it(error: ConfigError) -> None:
    """The `Report` of everybody but those who want to know all that is wrong."""
    raise error


@dataclass(frozen=True, slots=True)
class Value:
    """A raw value and where it was said: `flag --site`, `flag --set quic.port`, `env MICRO_SITE`, `micro.toml:14`.

    An origin never has the value in it: which values are secret is known only later.
    """

    raw: object = field(repr=False)
    origin: str
    rank: Rank = Rank.FLAG
    directory: Path = Path()
    """Where relative paths of `$file:` start."""
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ, repr=False)
    """Where `$env:` looks."""

    @property
    def is_reference(self) -> bool:
        """Whether it only says where the value is."""
        return isinstance(self.raw, str) and self.raw.startswith((ENVIRONMENT_REFERENCE, FILE_REFERENCE))

    @property
    def is_text(self) -> bool:
        """Whether it comes from where there are only texts, so that `8085` may mean a number."""
        return isinstance(self.raw, str) and (self.rank is not Rank.FILE or self.is_reference)

    def resolved(self, key: str) -> object:
        """The value itself, read from where a reference points. Raises OptionError that names `key`."""
        if not isinstance(self.raw, str):
            return self.raw
        if self.raw.startswith(ENVIRONMENT_REFERENCE):
            name = self.raw.removeprefix(ENVIRONMENT_REFERENCE)
            if name not in self.environ:
                raise OptionError(f"{key}: the variable {name} is not set", at=self.origin, hint=f"export {name}=...")
            return self.environ[name]
        if self.raw.startswith(FILE_REFERENCE):
            path = self.directory / Path(self.raw.removeprefix(FILE_REFERENCE)).expanduser()
            try:
                return read_text(path).strip()
            except ConfigError as error:
                raise OptionError(f"{key}: {error.detail}", at=self.origin, hint=error.hint) from error
        return self.raw


def read_text(path: Path) -> str:
    """A small UTF-8 file. Raises ConfigError for one that cannot be read or is over MAX_FILE_BYTES."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigError(f"cannot read {path}: {reason}") from error
    if len(raw) > MAX_FILE_BYTES:
        raise ConfigError(f"{path} is larger than {MAX_FILE_BYTES} bytes")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8: byte {error.start}") from error
