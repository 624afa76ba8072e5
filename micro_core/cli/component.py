"""The body of `micro registry`, `broker`, `tunnel`, `router` and `proxy`: runs one component of a node."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from micro_core.cli.foreground import print_line, report_line, until_stopped
from micro_core.cli.output import run_guarded
from micro_core.config import load_settings
from micro_core.lifecycle.logs import set_up_logging
from micro_core.plugins import blocked_names


def run_component(
    name: str,
    flags: Mapping[str, object],
    *,
    address: str = "",
    ipc: str = "",
    config: str | None,
    sets: Sequence[str],
    block: Sequence[str],
) -> None:
    """Run a component until SIGINT or SIGTERM. Raises typer.Exit when it fails."""

    def body() -> None:
        blocked = blocked_names(block)
        settings = load_settings({**flags, "node.block": tuple(blocked) or None}, sets=sets, config=config)
        set_up_logging(settings.node.log)

        async def run() -> None:
            from micro_core.standalone.factory import make_component

            component = make_component(name, settings, address=address, ipc_address=ipc, report=report_line)

            def introduce() -> None:
                for line in component.introduction:
                    print_line(line)
                print_line(f"ready {component.address}")

            await until_stopped(component.start, component.stop, introduce)

        asyncio.run(run())

    run_guarded(body)
