"""What commands print, and the codes they exit with. Data goes to stdout, everything else to stderr."""

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
PARTIAL = 9
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
    """What was typed cannot be understood: nothing was sent."""


def checked(check: Callable[[str], str], name: str) -> None:
    """Whether a name on the command line can be one. Raises UsageError."""
    try:
        check(name)
    except BadRequest as error:
        raise UsageError(error.detail, hint=error.hint) from error


def exit_code(error: MicroError) -> int:
    """The exit code of a command that ended with `error`."""
    if isinstance(error, UsageError):
        return USAGE
    return CONFIGURATION if error.code >= 900 else _CODES.get(error.code, SERVICE_ERROR)


def show_json(schema: str, value: Mapping[str, Any]) -> None:
    """One JSON object; `schema` (`micro.routes/1`) names its shape."""
    typer.echo(json.dumps({"schema": schema, **value}, ensure_ascii=False, default=_plain))


def show_value(value: object) -> None:
    """A service's answer as one line of JSON; bytes as text where they are text, else as hex."""
    typer.echo(json.dumps(value, ensure_ascii=False, default=_plain))


def show_table(columns: Sequence[str], rows: Sequence[Sequence[object]], empty: str) -> None:
    """Aligned columns with upper-case titles; `empty` instead, on stderr, where there are no rows."""
    if not rows:
        note(empty)
        return
    texts = [[_cell(value) for value in row] for row in rows]
    widths = [max(len(title), *(len(row[place]) for row in texts)) for place, title in enumerate(columns)]
    for line in ([title.upper() for title in columns], *texts):
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def note(text: str) -> None:
    """A remark for people."""
    typer.echo(text, err=True)


def say_error(error: MicroError) -> None:
    """What, where and what to try, on stderr."""
    note(f"{paint('error:', '31')} {_quoted(error.detail)}")
    if error.at:
        note(f"   at: {_quoted(error.at)}")
    if error.hint:
        note(f"  try: {_quoted(error.hint)}")


def fail(error: MicroError, *, as_json: bool = False) -> NoReturn:
    """Say what, where and what to try, and exit with the error's code."""
    if as_json:
        show_json("micro.error/1", {"error": error.to_wire()})
    say_error(error)
    raise typer.Exit(exit_code(error))


def guarded(run: Callable[[], None], *, as_json: bool = False) -> None:
    """Run a command's body: errors become sentences and exit codes, an interrupt code 130.

    Tracebacks are for those who ask for them (--debug, MICRO_DEBUG=1).
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
        # The reader has gone (`micro ... | head`): nothing is left to say, not even when Python flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(OK) from None
    except (typer.Exit, typer.Abort):
        raise
    except Exception as error:  # noqa: BLE001 - it is told, and traced for those who ask
        # The root of a command: whatever comes here is a fault of ours, or of a plugin.
        _trace()
        fail(unexpected(error), as_json=as_json)


def unexpected(error: BaseException) -> MicroError:
    """An error that nobody foresaw, as one that can be told."""
    sentence = f"unexpected {type(error).__name__}: {error}"
    return InternalError(sentence, hint="" if is_debugging() else "micro --debug ..., which shows where it happened")


def is_debugging() -> bool:
    """Whether tracebacks are wanted: --debug, MICRO_DEBUG=1."""
    return os.environ.get("MICRO_DEBUG", "").strip().lower() not in ("", "0", "false", "no", "off")


def _trace() -> None:
    if is_debugging():
        traceback.print_exc()


def _show_warning(message: Warning | str, category: type[Warning], *_place: object, **_more: object) -> None:
    del category
    note(f"{paint('warning:', '33')} {_quoted(str(message))}")


def paint(text: str, code: str) -> str:
    """Colour, on a terminal that wants it (NO_COLOR)."""
    if not sys.stderr.isatty() or os.environ.get("NO_COLOR"):
        return text
    return f"\x1b[{code}m{text}\x1b[0m"


def microseconds(value: int | None) -> str:
    """`1.25 ms`: a time for people."""
    if value is None:
        return "-"
    return f"{value} µs" if value < 1000 else f"{value / 1000:.2f} ms"


def _cell(value: object) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, (list, tuple)):
        return ",".join(str(item) for item in value) or "-"
    return _printable(str(value))


def _printable(text: str) -> str:
    """What a peer said is shown, never obeyed: no control characters on a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _quoted(text: str) -> str:
    """Several lines stay several, and none can be taken for a line of ours."""
    return "\n       ".join(_printable(line) for line in text.splitlines())


def _plain(value: object) -> object:
    if isinstance(value, (bytes, bytearray)):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value.hex()
    if isinstance(value, (set, frozenset, tuple)):
        return list(value)
    return str(value)
