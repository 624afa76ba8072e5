"""The body of `micro new service`: writes a service with one endpoint, and its test."""

from __future__ import annotations

from pathlib import Path

import typer

from micro_core.cli.output import check_argument, run_guarded
from micro_core.cli.template_rendering import load_templates, render, write_files
from micro_core.contract.errors import ConfigError, Conflict
from micro_core.contract.names import check_service_name


def write_service(name: str, directory: str) -> None:
    """Write both files and print how to run them. Existing files are never overwritten.

    Raises typer.Exit if the name is invalid, a file exists already, or the directory is not writable.
    """

    def body() -> None:
        check_argument(check_service_name, name)
        last_component = name.rpartition(".")[2].replace("/", "-").replace(":", "-")
        target = Path(directory or last_component)
        files = {path: render(text, {"name": name}) for path, text in load_templates("service").items()}
        existing = sorted(path for path in files if (target / path).exists())
        if existing:
            raise Conflict(f"{target / existing[0]} already exists", hint="choose another --directory")
        try:
            write_files(target, files)
        except OSError as error:
            raise ConfigError(
                f"cannot write to {target}: {error.strerror}", hint="choose another --directory"
            ) from error
        path = target / "service.py"
        typer.echo(f"created {path} and its test\n\nnext:\n  python {path}")
        typer.echo(f"  micro call {name} Say.Hello name=John\n  pytest {target}")

    run_guarded(body)
