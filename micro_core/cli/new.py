"""`micro new service`: a service with one endpoint, ready to run."""

from __future__ import annotations

from pathlib import Path

import typer

from micro_core.cli.output import guarded
from micro_core.spec.errors import Conflict
from micro_core.spec.names import check_service_name

SERVICE = '''"""The service {name}. Run it with `python {file}`."""

from dataclasses import dataclass

from micro_core import Service


@dataclass
class HelloRequest:
    name: str


@dataclass
class HelloReply:
    msg: str


service = Service("{name}")


@service.handler
class Say:
    async def hello(self, request: HelloRequest) -> HelloReply:
        """Say hello to somebody, by name."""
        return HelloReply(msg="Hello " + request.name)


if __name__ == "__main__":
    service.run()
'''


def write_service(name: str, directory: str) -> None:
    def body() -> None:
        check_service_name(name)
        last = name.rpartition(".")[2].replace("/", "-").replace(":", "-")
        place = Path(directory or last)
        path = place / "service.py"
        if path.exists():
            raise Conflict(f"{path} exists already", hint="choose another --directory")
        place.mkdir(parents=True, exist_ok=True)
        path.write_text(SERVICE.format(name=name, file=path.name))
        typer.echo(f"wrote {path}\n\nnext:\n  python {path}")
        typer.echo(f"  micro call {name} Say.Hello name=John")

    guarded(body)
