"""`micro metrics show`: print the metrics that a node or a service exports to Prometheus."""

from __future__ import annotations

import urllib.error
import urllib.request
from http.client import HTTPException
from typing import Annotated

import typer

from micro_prometheus_hooks.options import DEFAULT_LISTEN

MAX_BYTES = 16 * 1024 * 1024
"""Maximum size of a response."""

TIMEOUT_S = 5.0
"""Time limit of a request in seconds."""

UNREACHABLE = 6
"""Exit code of all micro commands for an unreachable address."""


def make_app() -> typer.Typer:
    """Return the typer app of the command group `metrics`."""
    app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Show Prometheus metrics.")

    # Without a callback, typer would drop the name of the only command.
    @app.callback()
    def group() -> None: ...

    @app.command()
    def show(
        address: Annotated[
            str, typer.Argument(help="Address of the metrics of a node or service, e.g. 127.0.0.1:9464.")
        ] = DEFAULT_LISTEN,
        match: Annotated[str, typer.Option(help="Show only metrics whose name contains this text.")] = "",
        process: Annotated[bool, typer.Option(help="Also show metrics of the process and of Python.")] = False,
    ) -> None:
        """Print the metrics of a process, one per line."""
        host = address.removeprefix("http://").partition("/")[0]
        try:
            # The address is on this machine or site, so ignore HTTP proxies.
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with opener.open(f"http://{host}/metrics", timeout=TIMEOUT_S) as answer:
                text = answer.read(MAX_BYTES).decode(errors="replace")
        except (OSError, ValueError, HTTPException) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            why = getattr(reason, "strerror", None) or reason
            typer.echo(f"error: cannot read metrics from {host}: {why}", err=True)
            typer.echo(" hint: start that process with MICRO_PLUGINS=prometheus", err=True)
            raise typer.Exit(UNREACHABLE) from None
        for line in text.splitlines():
            is_selected = process or line.startswith("micro_")
            if not line.startswith("#") and is_selected and match in line.partition("{")[0].partition(" ")[0]:
                typer.echo("".join(character if character.isprintable() else "?" for character in line))

    return app
