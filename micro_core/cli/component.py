"""`micro registry`, `broker`, `tunnel`, `router`, `proxy`: one part of a node in the foreground."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from micro_core.cli.foreground import say, until_stopped
from micro_core.cli.output import guarded
from micro_core.config import load_settings
from micro_core.lifecycle.logs import set_up_logging
from micro_core.plugins import blocked_words


def run_component(
    name: str,
    flags: Mapping[str, object],
    *,
    address: str = "",
    door: str = "",
    config: str | None,
    sets: Sequence[str],
    block: Sequence[str],
) -> None:
    """Run until SIGINT or SIGTERM."""

    def body() -> None:
        blocked = blocked_words(block)
        settings = load_settings({**flags, "node.block": tuple(blocked) or None}, sets=sets, config=config)
        set_up_logging(settings.node.log)

        async def run() -> None:
            from micro_core.standalone.component import make_component

            component = make_component(name, settings, address=address, door=door, say=say)

            def introduce() -> None:
                for line in component.introduction():
                    say(line)
                say(f"ready {component.address}")

            await until_stopped(component.start, component.stop, introduce)

        asyncio.run(run())

    guarded(body)
