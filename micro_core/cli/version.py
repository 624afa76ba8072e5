"""The body of `micro version`."""

from __future__ import annotations

import typer

from micro_core.cli.output import run_guarded, show_json
from micro_core.contract.driver import CONTRACT_VERSION
from micro_core.plugins import CORE_DISTRIBUTION


def show_version(as_json: bool) -> None:
    """Print the versions of the distribution, of the plugin contract and of the wire protocol."""

    def body() -> None:
        import importlib.metadata

        from micro_core.wire.header import WIRE_VERSIONS

        version = importlib.metadata.version(CORE_DISTRIBUTION)
        contract = ".".join(map(str, CONTRACT_VERSION))
        if as_json:
            show_json("micro.version/1", {"version": version, "contract": contract, "wire": list(WIRE_VERSIONS)})
        else:
            typer.echo(f"micro {version} (contract {contract}, wire {', '.join(map(str, WIRE_VERSIONS))})")

    run_guarded(body, as_json=as_json)
