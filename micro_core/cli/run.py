"""`micro run`: a node in the foreground."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from micro_core.cli.foreground import say, until_stopped
from micro_core.cli.output import guarded
from micro_core.config import NodeSettings, Settings, load_settings
from micro_core.contract.names import NETWORK_SERVICE
from micro_core.lifecycle.logs import set_up_logging
from micro_core.plugins import blocked_words

if TYPE_CHECKING:
    from micro_core.node.node import Node


def run_node(flags: Mapping[str, object], *, config: str | None, sets: Sequence[str], block: Sequence[str]) -> None:
    """Run until SIGINT or SIGTERM; a second signal does not wait for calls in flight."""

    def body() -> None:
        blocked = blocked_words(block)
        settings = load_settings({**flags, "node.block": tuple(blocked) or None}, sets=sets, config=config)
        set_up_logging(settings.node.log)
        asyncio.run(_run(settings))

    guarded(body)


async def _run(settings: Settings) -> None:
    from micro_core.node.assembly import assemble

    node = assemble(settings)
    early: list[str] = []
    tell = early.append

    def introduce() -> None:
        nonlocal tell
        _introduce(node)
        tell = say
        for sentence in early:
            say(sentence)

    # Who is dialled may answer before this node has said who it is.
    node.network.set_report_handler(lambda sentence: tell(sentence))
    await until_stopped(node.start, node.stop, introduce)


def _introduce(node: Node) -> None:
    facts = node.facts()
    say(f"node {facts['name']} ({facts['id'][:8]}) of network {facts['network']}, site {facts['site']}")
    say(f"  made of   {', '.join(facts['drivers'])}")
    say(f"  calls at  {facts['address']}")
    if facts["tunnel"]:
        say(f"  links at  {', '.join(facts['tunnel'])}")
    elif any(driver.startswith("tunnel:") for driver in facts["drivers"]):
        say("  links     dials out only")
    else:
        say("  links     none: this machine only. To join others: --plugins quic --node ADDR")
    # Whoever types it in another terminal has not set what this one was told.
    site = f"MICRO_SITE={facts['site']} " if facts["site"] != NodeSettings().site else ""
    say(
        f"  next      {site}micro network services; {site}MICRO_PROXY={NETWORK_SERVICE} micro call SERVICE ENDPOINT JSON"
    )
    say(f"ready {facts['address']}")
