"""A value of a setting, with its origin and its rank among the sources."""

from __future__ import annotations

import enum
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from micro_core.contract.errors import ConfigError, OptionError

MAX_FILE_BYTES = 1024 * 1024
"""Maximum size of a settings file, and of a file that `$file:` refers to."""

ENVIRONMENT_REFERENCE = "$env:"
FILE_REFERENCE = "$file:"


class Rank(enum.IntEnum):
    """The precedence of a source. The value of the highest rank is used."""

    FILE = 1
    ENVIRONMENT = 2
    SET = 3
    """`--set`."""
    FLAG = 4
    """A command-line option for one setting, e.g. `--site`, or an argument of a program."""


Report = Callable[[ConfigError], None]
"""Receives the error of an invalid setting. It may raise the error, or collect it so that the other settings are read."""


def raise_error(error: ConfigError) -> None:
    """Raise `error`: the `Report` of callers that stop at the first error.

    Raises:
        ConfigError: Always.
    """
    raise error


@dataclass(frozen=True, slots=True)
class Value:
    """A raw value and its origin: `flag --site`, `flag --set quic.port`, `env MICRO_SITE` or `micro.toml:14`.

    The origin never contains the value, because it is not known at this point which values are secret.
    """

    raw: object = field(repr=False)
    """The value as it was read, before references are replaced."""
    origin: str
    """Where the value was set, for display."""
    rank: Rank = Rank.FLAG
    """The rank of the source."""
    directory: Path = Path()
    """The directory at which relative paths of `$file:` start."""
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ, repr=False)
    """The variables for `$env:`."""

    @property
    def is_reference(self) -> bool:
        """Whether the raw value refers to a variable or a file that contains the value."""
        return isinstance(self.raw, str) and self.raw.startswith((ENVIRONMENT_REFERENCE, FILE_REFERENCE))

    @property
    def is_text(self) -> bool:
        """Whether the source has only strings, so that `8085` may be a number."""
        return isinstance(self.raw, str) and (self.rank is not Rank.FILE or self.is_reference)

    def resolved(self, key: str) -> object:
        """Return the value, read from the variable or file if it is a reference. May read a file, so it may block.

        Args:
            key: Name of the setting in error messages, e.g. `node.token`.

        Raises:
            OptionError: The variable is not set, or the file cannot be read.
        """
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
    """Return the content of a UTF-8 file of at most MAX_FILE_BYTES.

    Raises:
        ConfigError: The file cannot be read, is too large or is not UTF-8. The cause is the OSError, if there is one.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigError(f"cannot read {path}: {reason}") from error
    if len(raw) > MAX_FILE_BYTES:
        raise ConfigError(f"cannot read {path}: the file is larger than {MAX_FILE_BYTES} bytes")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"cannot read {path}: invalid UTF-8 at byte {error.start}") from error
