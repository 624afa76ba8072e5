"""`micro new service`: a service with one endpoint, ready to run, and its test."""

from __future__ import annotations

from pathlib import Path

import typer

from micro_core.cli.output import checked, guarded
from micro_core.cli.template_rendering import filled, templates, write_files
from micro_core.contract.errors import ConfigError, Conflict
from micro_core.contract.names import check_service_name


def write_service(name: str, directory: str) -> None:
    """Write both files. Raises UsageError for what is no service's name, Conflict where one of them stands already."""

    def body() -> None:
        checked(check_service_name, name)
        last = name.rpartition(".")[2].replace("/", "-").replace(":", "-")
        place = Path(directory or last)
        files = {path: filled(text, {"name": name}) for path, text in templates("service").items()}
        standing = sorted(path for path in files if (place / path).exists())
        if standing:
            raise Conflict(f"{place / standing[0]} exists already", hint="choose another --directory")
        try:
            write_files(place, files)
        except OSError as error:
            raise ConfigError(
                f"cannot write into {place}: {error.strerror}", hint="choose another --directory"
            ) from error
        path = place / "service.py"
        typer.echo(f"wrote {path}, and its test\n\nnext:\n  python {path}")
        typer.echo(f"  micro call {name} Say.Hello name=John\n  pytest {place}")

    guarded(body)
