"""What commands print, and the exit codes. Data goes to standard output, everything else to standard error."""

from __future__ import annotations

import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import typer

from micro_core.contract.errors import BadRequest, InternalError, MicroError

OK = 0
SERVICE_ERROR = 1
USAGE = 2
CONFIGURATION = 3
NOT_FOUND = 4
DEADLINE = 5
UNREACHABLE = 6
DENIED = 7
OVERLOADED = 8
CHECK_FAILED = 9
INTERRUPTED = 130
TERMINATED = 143

_CODES = {
    401: DENIED,
    403: DENIED,
    404: NOT_FOUND,
    408: DEADLINE,
    429: OVERLOADED,
    502: UNREACHABLE,
    503: OVERLOADED,
    508: UNREACHABLE,
}


class UsageError(BadRequest):
    """The command line is invalid. Nothing has been sent."""


def check_argument(check: Callable[[str], str], name: str) -> None:
    """Validate a name given on the command line with `check`. Raises UsageError if `check` raises BadRequest."""
    try:
        check(name)
    except BadRequest as error:
        raise UsageError(error.detail, hint=error.hint) from error


def exit_code(error: MicroError) -> int:
    """Return the exit code of a command that failed with `error`."""
    if isinstance(error, UsageError):
        return USAGE
    return CONFIGURATION if error.code >= 900 else _CODES.get(error.code, SERVICE_ERROR)


def show_json(schema: str, value: Mapping[str, Any]) -> None:
    """Print one JSON object. `schema` names its shape and version, e.g. `micro.routes/1`."""
    typer.echo(json.dumps({"schema": schema, **value}, ensure_ascii=False, default=_to_json))


def show_value(value: object) -> None:
    """Print the response of a service as one line of JSON. Bytes are printed as text if they are UTF-8, else as hex."""
    typer.echo(json.dumps(value, ensure_ascii=False, default=_to_json))


def show_table(columns: Sequence[str], rows: Sequence[Sequence[object]], empty: str) -> None:
    """Print aligned columns with upper-case titles. Without rows, print `empty` to standard error instead."""
    if not rows:
        note(empty)
        return
    texts = [[_cell(value) for value in row] for row in rows]
    widths = [max(len(title), *(len(row[index]) for row in texts)) for index, title in enumerate(columns)]
    for line in ([title.upper() for title in columns], *texts):
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def note(text: str) -> None:
    """Print a message for the user to standard error."""
    typer.echo(text, err=True)


def show_error(error: MicroError) -> None:
    """Print what failed, where, and what to try, to standard error."""
    note(f"{paint('error:', '31')} {_sanitized(error.detail)}")
    if error.at:
        note(f"   at: {_sanitized(error.at)}")
    if error.hint:
        note(f" hint: {_sanitized(error.hint)}")


def fail(error: MicroError, *, as_json: bool = False) -> NoReturn:
    """Print the error and exit with its exit code. Raises typer.Exit."""
    if as_json:
        show_json("micro.error/1", {"error": error.to_wire()})
    show_error(error)
    raise typer.Exit(exit_code(error))


def run_guarded(run: Callable[[], None], *, as_json: bool = False) -> None:
    """Run the body of a command and turn each exception into a message and an exit code.

    An interrupt exits with 130, a closed pipe with 0. Tracebacks are printed only with --debug or MICRO_DEBUG=1.

    Raises typer.Exit with the exit code when the body fails.
    """
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            run()
    except MicroError as error:
        _trace()
        fail(error, as_json=as_json)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        # The reader has closed the pipe (`micro ... | head`).
        discard_output()
        raise typer.Exit(OK) from None
    except (typer.Exit, typer.Abort):
        raise
    except Exception as error:  # noqa: BLE001 - printed, with a traceback if requested
        # An exception of any other type is a bug in micro or in a plugin.
        _trace()
        fail(unexpected_error(error), as_json=as_json)


def discard_output() -> None:
    """Redirect standard output to /dev/null: after a closed pipe every write fails, including the flush of Python at exit."""
    descriptor = os.open(os.devnull, os.O_WRONLY)
    os.dup2(descriptor, sys.stdout.fileno())
    os.close(descriptor)


def unexpected_error(error: BaseException) -> MicroError:
    """Return the MicroError that reports an exception of any other type."""
    detail = f"unexpected {type(error).__name__}: {error}"
    return InternalError(detail, hint="" if is_debugging() else "micro --debug ..., which shows the traceback")


def is_debugging() -> bool:
    """Return whether tracebacks are requested, by --debug or MICRO_DEBUG=1."""
    return os.environ.get("MICRO_DEBUG", "").strip().lower() not in ("", "0", "false", "no", "off")


def _trace() -> None:
    if is_debugging():
        traceback.print_exc()


def _show_warning(message: Warning | str, category: type[Warning], *_args: object, **_kwargs: object) -> None:
    del category
    note(f"{paint('warning:', '33')} {_sanitized(str(message))}")


def paint(text: str, code: str) -> str:
    """Return `text` in the ANSI colour `code`, if standard error is a terminal and NO_COLOR is not set."""
    if not sys.stderr.isatty() or os.environ.get("NO_COLOR"):
        return text
    return f"\x1b[{code}m{text}\x1b[0m"


def microseconds(value: int | None) -> str:
    """Return a duration in a readable unit, e.g. `250 µs` or `1.25 ms`."""
    if value is None:
        return "-"
    return f"{value} µs" if value < 1000 else f"{value / 1000:.2f} ms"


def _cell(value: object) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, (list, tuple)):
        return ",".join(str(item) for item in value) or "-"
    return printable(str(value))


def printable(text: str) -> str:
    """Return `text` with each control character replaced by `?`, so that a peer cannot control the terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _sanitized(text: str) -> str:
    """Return `text` with its further lines indented, so that none of them looks like a line printed by micro."""
    return "\n       ".join(printable(line) for line in text.splitlines())


def _to_json(value: object) -> object:
    if isinstance(value, (bytes, bytearray)):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value.hex()
    if isinstance(value, (set, frozenset, tuple)):
        return list(value)
    return str(value)
