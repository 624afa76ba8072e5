"""`micro run`: a node in the foreground."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import typer

from micro_core.cli.output import guarded
from micro_core.config import Settings, load_settings
from micro_core.plugins import blocked_words

if TYPE_CHECKING:
    from micro_core.node.node import Node

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def run_node(flags: Mapping[str, object], *, config: str | None, sets: Sequence[str], block: Sequence[str]) -> None:
    """Run until SIGINT or SIGTERM; a second signal does not wait for calls in flight."""

    def body() -> None:
        blocked = blocked_words(block)
        settings = load_settings({**flags, "node.block": tuple(blocked) or None}, sets=sets, config=config)
        _set_up_logging(settings)
        asyncio.run(_run(settings))

    guarded(body)


async def _run(settings: Settings) -> None:
    from micro_core.node.assembly import assemble

    node = assemble(settings)
    node.network.on_event(_say)
    stop, hurry = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, lambda: (hurry if stop.is_set() else stop).set())
    await node.start()
    _introduce(node)
    _calm_the_collector()
    await stop.wait()
    _say("draining; again to hurry")
    stopping = loop.create_task(node.stop())
    hurrying = loop.create_task(hurry.wait())
    await asyncio.wait({stopping, hurrying}, return_when=asyncio.FIRST_COMPLETED)
    if not stopping.done():
        stopping.cancel()
    hurrying.cancel()
    await asyncio.gather(stopping, hurrying, return_exceptions=True)
    _say("stopped")


def _calm_the_collector() -> None:
    """What stands now stands for good, and calls leave no cycles behind: looking for some seldom is enough."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def _introduce(node: Node) -> None:
    facts = node.facts()
    _say(f"node {facts['name']} ({facts['id'][:8]}) of network {facts['network']}, site {facts['site']}")
    _say(f"  made of   {', '.join(facts['drivers'])}")
    _say(f"  calls at  {facts['address']}")
    if facts["tunnel"]:
        _say(f"  links at  {', '.join(facts['tunnel'])}")
    elif any(driver.startswith("tunnel:") for driver in facts["drivers"]):
        _say("  links     dials out only")
    else:
        _say("  links     none: this machine only. To join others: --plugins quic --node ADDR")
    _say("  next      micro network services; MICRO_PROXY=go.micro.network micro call SERVICE ENDPOINT JSON")
    _say(f"ready {facts['address']}")


def _say(sentence: str) -> None:
    # One write a line: lines of several processes on one terminal stay whole.
    typer.echo(sentence + "\n", nl=False)


def _set_up_logging(settings: Settings) -> None:
    from micro_core.cli.logs import KeyValueFormatter

    handler = logging.StreamHandler()
    handler.setFormatter(KeyValueFormatter())
    logging.basicConfig(level=LEVELS.get(settings.node.log, logging.WARNING), handlers=[handler])
