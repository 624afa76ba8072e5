"""`micro metrics show`: what a node or a service shows Prometheus, for a person."""

from __future__ import annotations

import urllib.error
import urllib.request
from http.client import HTTPException
from typing import Annotated

import typer

from micro_prometheus_hooks.options import DEFAULT_LISTEN

MAX_BYTES = 16 * 1024 * 1024
TIMEOUT_S = 5.0
UNREACHABLE = 6
"""The exit code that every command of micro has for it."""


def make_app() -> typer.Typer:
    """The group `metrics`."""
    app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="See what Prometheus sees.")

    # With a second command the first keeps its word; typer drops the word of an only one.
    @app.callback()
    def group() -> None: ...

    @app.command()
    def show(
        address: Annotated[str, typer.Argument(help="host:port of a node's or a service's metrics.")] = DEFAULT_LISTEN,
        match: Annotated[str, typer.Option(help="Only metrics with this in their name.")] = "",
        process: Annotated[bool, typer.Option(help="Also those of the process and of Python.")] = False,
    ) -> None:
        """Print the metrics of a process, one a line."""
        host = address.removeprefix("http://").partition("/")[0]
        try:
            # No proxy: what is asked is this machine or site.
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with opener.open(f"http://{host}/metrics", timeout=TIMEOUT_S) as answer:
                text = answer.read(MAX_BYTES).decode(errors="replace")
        except (OSError, ValueError, HTTPException) as error:
            typer.echo(f"error: no metrics at {host}: {error}", err=True)
            typer.echo("  try: MICRO_PLUGINS=prometheus, where it runs", err=True)
            raise typer.Exit(UNREACHABLE) from None
        for line in text.splitlines():
            is_ours = process or line.startswith("micro_")
            if not line.startswith("#") and is_ours and match in line.partition("{")[0].partition(" ")[0]:
                typer.echo("".join(letter if letter.isprintable() else "?" for letter in line))

    return app
