"""Scenarios as TOML files: the shape of the network, the conditions of its links, and a list of steps.

nodes = 5
shape = "ring"                      # line, ring, star, mesh, random
links = { delay_s = 0.02, loss = 0.01 }

[[step]]
do = "serve"                        # serve, stop, kill, start, partition, heal, reset, stall, wait, settle
node = "a"
service = "greeter"

[[step]]
do = "settle"
name = "a greeter starts"
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from micro_core.contract.errors import ConfigError
from micro_core.lab.net import Lab
from micro_core.lab.report import Observer
from micro_core.lab.scenarios import Body
from micro_core.lab.simulated_links import Conditions
from micro_core.rpc.service import Service

SHAPES = {"line": Lab.line, "ring": Lab.ring, "star": Lab.star, "mesh": Lab.mesh, "random": Lab.random_graph}
STEPS: Mapping[str, tuple[str, ...]] = {
    "serve": ("node", "service"),
    "stop": ("node",),
    "kill": ("node",),
    "start": ("node",),
    "partition": ("node", "other"),
    "heal": ("node", "other"),
    "reset": ("node", "other"),
    "stall": ("node", "other", "seconds"),
    "wait": ("seconds",),
    "settle": (),
}
"""The actions of steps, and the keys that each of them requires."""

MAX_STEPS = 10_000


def scripted(table: Mapping[str, Any]) -> tuple[Body, int]:
    """Return the scenario that a parsed TOML file describes, and its number of nodes.

    Raises ConfigError if the description is invalid. The nodes that steps refer to are checked when the step runs.
    """
    unknown = sorted(set(table) - {"shape", "nodes", "links", "step"})
    if unknown:
        raise ConfigError(f"unknown key {unknown[0]!r:.40} in a scenario", hint="use shape, nodes, links and [[step]]")
    shape, count = table.get("shape", "line"), table.get("nodes", 3)
    if shape not in SHAPES:
        raise ConfigError(f"invalid shape {shape!r:.40}: use one of {', '.join(SHAPES)}")
    if type(count) is not int or count < 1:
        raise ConfigError(f"invalid value of nodes: {count!r:.40} is not a positive integer")
    steps = table.get("step", [])
    if not isinstance(steps, list) or len(steps) > MAX_STEPS:
        raise ConfigError(f"invalid value of step: use a list of at most {MAX_STEPS} tables")
    for number, step in enumerate(steps, 1):
        _check(number, step)
    conditions = _conditions(table.get("links", {}))
    if not steps:
        raise ConfigError("the scenario has no [[step]]", hint="docs/lab.md has an example")

    async def body(lab: Lab, watch: Observer, count: int) -> None:
        lab.links.default_conditions = conditions
        await SHAPES[shape](lab, count)
        for number, step in enumerate(steps, 1):
            await _run_step(lab, watch, number, step)

    return body, count


def _conditions(table: object) -> Conditions:
    known = {field.name for field in dataclasses.fields(Conditions)}
    if not isinstance(table, dict) or not set(table) <= known:
        raise ConfigError(f"invalid value of links: use a table with the keys {', '.join(sorted(known))}")
    if not all(type(value) in (int, float) and value >= 0 for value in table.values()):
        raise ConfigError("invalid value of links: all values must be numbers that are not negative")
    return Conditions(**table)


def _check(number: int, step: object) -> None:
    if not isinstance(step, dict) or step.get("do") not in STEPS:
        raise ConfigError(f"step {number} has no valid key 'do': use one of {', '.join(STEPS)}")
    missing = [key for key in STEPS[step["do"]] if key not in step]
    if missing:
        raise ConfigError(f"step {number}: {step['do']} requires {', '.join(missing)}")
    if "seconds" in step and (type(step["seconds"]) not in (int, float) or step["seconds"] < 0):
        raise ConfigError(f"step {number}: seconds must be a number that is not negative")


async def _run_step(lab: Lab, watch: Observer, number: int, step: Mapping[str, Any]) -> None:
    try:
        node, other = (lab.nodes[step[key]] if key in step else None for key in ("node", "other"))
    except KeyError as error:
        raise ConfigError(
            f"step {number}: unknown node {error.args[0]}", hint=f"the nodes are {', '.join(lab.nodes)}"
        ) from None
    match step["do"], node, other:
        case "wait", _, _:
            await lab.advance_time(step["seconds"])
        case "settle", _, _:
            await watch.settle(str(step.get("name", f"step {number}")), step.get("seconds", 120.0))
        case "serve", found, _ if found is not None:
            await found.serve(Service(step["service"]))
        case "stop", found, _ if found is not None and "service" in step:
            for service in [one for one in found.services if one.name == step["service"]]:
                await found.stop_service(service)
        case "stop", found, _ if found is not None:
            await found.stop()
        case "kill", found, _ if found is not None:
            await found.kill()
        case "start", found, _ if found is not None:
            await found.start()
        case "stall", one, another if one is not None and another is not None:
            lab.stall(one, another, step["seconds"])
        case ("partition" | "heal" | "reset") as action, one, another if one is not None and another is not None:
            getattr(lab, action)(one, another)
