"""The entry point of the `micro` command: assembles the commands of `micro_core.cli.commands`.

To add a command, write its signature and options in `commands/GROUP.py` and its body in `GROUP.py` beside this module.
The signature imports the body inside the function, so that `micro --help` and shell completion import nothing but
typer. Bodies run inside `output.run_guarded`, which turns errors into messages and exit codes.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from micro_core.cli.commands import (
    call,
    component,
    config,
    lab,
    network,
    new,
    plugin,
    run,
    services,
    trace,
    up,
    version,
)
from micro_core.cli.lazy_typer import command_name, strip_unused_commands

app = typer.Typer(
    name="micro",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="A services network: run nodes, inspect the network, and call services by name.",
    epilog=(
        "Exit codes: 0 success, 1 error returned by the service, 2 usage, 3 configuration or plugin, 4 not found, "
        "5 deadline exceeded, 6 unreachable, 7 permission denied, 8 overloaded, 9 a check failed, 130 interrupted."
    ),
)


@app.callback()
def options(
    peer: Annotated[
        bool,
        typer.Option("--peer", help="[ADDR] Join a network: short for `micro run --plugins quic --node ADDR`."),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error (MICRO_DEBUG=1).")] = False,
) -> None:
    """Handle the options that precede a command. `--peer` is only listed here: `expand_peer` replaces it earlier."""
    del peer
    if debug:
        os.environ["MICRO_DEBUG"] = "1"


# The order of `micro --help`.
for group in (run, component, up, call, services, trace, version, network, lab, plugin, config, new):
    group.register(app)


def main() -> None:
    """Run the command line of this process: the entry point of the script `micro`.

    An error is printed as one line. Its traceback is shown only with `--debug`.
    """
    try:
        arguments = run.expand_peer(sys.argv[1:])
        _add_plugin_command(arguments)
        # A shell that asks for completions passes the command line in an environment variable, not as arguments.
        is_completing = "_MICRO_COMPLETE" in os.environ
        (app if is_completing else strip_unused_commands(app, arguments))(args=arguments, prog_name="micro")
    except Exception as error:
        # The import of `micro_core.cli.output` may be what failed, so the error is printed without it.
        print(f"error: unexpected {type(error).__name__}: {error}", file=sys.stderr)
        if os.environ.get("MICRO_DEBUG", "") in ("", "0"):
            print(" hint: micro --debug ..., which shows the traceback", file=sys.stderr)
        else:
            raise
        sys.exit(1)


def _add_plugin_command(arguments: list[str]) -> None:
    """Add the command that a plugin contributes, if the first argument is not a built-in command."""
    builtin = {command_name(command) for command in app.registered_commands}
    builtin |= {str(group.name) for group in app.registered_groups}
    if arguments and arguments[0] not in builtin and not arguments[0].startswith("-"):
        from micro_core.cli.output import run_guarded
        from micro_core.cli.plugin_commands import add_command

        try:
            run_guarded(lambda: add_command(app, arguments[0]))
        except typer.Exit as exit_request:
            sys.exit(exit_request.exit_code)
