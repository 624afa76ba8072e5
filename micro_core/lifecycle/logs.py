"""Log lines as key=value: a constant message, then its fields. Nodes and services use the same format."""

from __future__ import annotations

import json
import logging

_STANDARD = set(vars(logging.LogRecord("", 0, "", 0, "", (), None))) | {"message", "asctime", "taskName"}


class KeyValueFormatter(logging.Formatter):
    """`2026-01-02T03:04:05.678 warning micro.node link replaced peer=b7f3`.

    A value with special characters is quoted as JSON, so that text from a peer cannot start a new line or field.
    """

    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03d"

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record, followed by its traceback if it has one."""
        fields = "".join(f" {key}={_quoted(str(value))}" for key, value in vars(record).items() if key not in _STANDARD)
        message = _one_line(record.getMessage())
        line = f"{self.formatTime(record)} {record.levelname.lower()} {record.name} {message}{fields}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def set_up_logging(level: str) -> None:
    """Write log lines of `level` (e.g. `warning`) and above to stderr, unless the program has configured logging already."""
    handler = logging.StreamHandler()
    handler.setFormatter(KeyValueFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler])


def _quoted(text: str) -> str:
    is_plain = text and text.isascii() and text.isprintable() and not set(text) & {" ", '"', "=", "\\"}
    return text if is_plain else json.dumps(text)


def _one_line(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)
