"""The body of `micro run`: runs a node in the foreground."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from micro_core.cli.foreground import print_line, report_line, until_stopped
from micro_core.cli.output import run_guarded
from micro_core.config import NodeSettings, Settings, load_settings
from micro_core.contract.errors import ConfigError
from micro_core.contract.names import NETWORK_SERVICE
from micro_core.lifecycle.logs import set_up_logging
from micro_core.plugins import blocked_names

if TYPE_CHECKING:
    from micro_core.node.node import Node


def run_node(flags: Mapping[str, object], *, config: str | None, sets: Sequence[str], block: Sequence[str]) -> None:
    """Run a node until SIGINT or SIGTERM. A second signal stops it without waiting for calls in progress.

    Raises typer.Exit when the node cannot be started.
    """

    def body() -> None:
        blocked = blocked_names(block)
        settings = load_settings({**flags, "node.block": tuple(blocked) or None}, sets=sets, config=config)
        set_up_logging(settings.node.log)
        asyncio.run(_run(settings))

    run_guarded(body)


def is_setting_given(key: str, config: str | None, sets: Sequence[str]) -> bool:
    """Return whether the environment, a settings file or `--set` gives a value for `key`.

    Invalid settings count as given: the command reads the same settings next and reports the error.
    """
    try:
        return load_settings(config=config, sets=sets).origin(key) != "default"
    except ConfigError:
        return True


async def _run(settings: Settings) -> None:
    from micro_core.node.assembly import assemble

    node = assemble(settings)
    early: list[str] = []
    report = early.append

    def introduce() -> None:
        nonlocal report
        _introduce(node)
        report = report_line
        for line in early:
            print_line(line)

    # A link may be established before the introduction of this node is printed. Its report is printed afterwards.
    node.network.set_report_handler(lambda line: report(line))
    await until_stopped(node.start, node.stop, introduce)


def _introduce(node: Node) -> None:
    facts = node.facts()
    print_line(f"node {facts['name']} ({facts['id'][:8]}) of network {facts['network']}, site {facts['site']}")
    print_line(f"  drivers   {', '.join(facts['drivers'])}")
    print_line(f"  calls     {facts['address']}")
    if facts["tunnel"]:
        print_line(f"  links     {', '.join(facts['tunnel'])}")
    elif any(driver.startswith("tunnel:") for driver in facts["drivers"]):
        print_line("  links     outgoing only")
    else:
        print_line("  links     none: this machine only; to join other nodes: --plugins quic --node ADDR")
    # Another terminal does not have the site that was set for this process.
    site = f"MICRO_SITE={facts['site']} " if facts["site"] != NodeSettings().site else ""
    call = f"{site}MICRO_PROXY={NETWORK_SERVICE} micro call SERVICE ENDPOINT JSON"
    print_line(f"  try       {site}micro network services; {call}")
    print_line(f"ready {facts['address']}")
