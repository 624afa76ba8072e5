"""Scenarios without Python: a TOML file with a shape, wires and steps.

nodes = 5
shape = "ring"                      # line, ring, star, mesh, random
wires = { delay_s = 0.02, loss = 0.01 }

[[step]]
do = "serve"                        # serve, stop, kill, start, partition, heal, reset, stall, wait, settle
node = "a"
service = "greeter"

[[step]]
do = "settle"
what = "a greeter comes"
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
"""What can be done, and what must be said with it."""

MOST_STEPS = 10_000


def scripted(table: Mapping[str, Any]) -> tuple[Body, int]:
    """The scenario that a TOML file says, checked before it begins. Raises ConfigError."""
    unknown = sorted(set(table) - {"shape", "nodes", "wires", "step"})
    if unknown:
        raise ConfigError(
            f"{unknown[0]:.40}: not a word of scenarios", hint="there are shape, nodes, wires and [[step]]"
        )
    shape, count = table.get("shape", "line"), table.get("nodes", 3)
    if shape not in SHAPES:
        raise ConfigError(f"shape: {shape!r:.40} is none of {', '.join(SHAPES)}")
    if type(count) is not int or count < 1:
        raise ConfigError("nodes: not a number of nodes")
    steps = table.get("step", [])
    if not isinstance(steps, list) or len(steps) > MOST_STEPS:
        raise ConfigError(f"step: not a list of at most {MOST_STEPS}")
    for number, step in enumerate(steps, 1):
        _check(number, step)
    conditions = _conditions(table.get("wires", {}))
    if not steps:
        raise ConfigError("a scenario without a [[step]]", hint="docs/lab.md shows one")

    async def body(lab: Lab, watch: Observer, count: int) -> None:
        lab.wires.usual = conditions
        await SHAPES[shape](lab, count)
        for number, step in enumerate(steps, 1):
            await _do(lab, watch, number, step)

    return body, count


def _conditions(table: object) -> Conditions:
    known = {field.name for field in dataclasses.fields(Conditions)}
    if not isinstance(table, dict) or not set(table) <= known:
        raise ConfigError(f"wires: a table of {', '.join(sorted(known))}")
    if not all(type(value) in (int, float) and value >= 0 for value in table.values()):
        raise ConfigError("wires: numbers, none below 0")
    return Conditions(**table)


def _check(number: int, step: object) -> None:
    if not isinstance(step, dict) or step.get("do") not in STEPS:
        raise ConfigError(f"step {number}: do is none of {', '.join(STEPS)}")
    missing = [word for word in STEPS[step["do"]] if word not in step]
    if missing:
        raise ConfigError(f"step {number}: {step['do']} needs {', '.join(missing)}")
    if "seconds" in step and (type(step["seconds"]) not in (int, float) or step["seconds"] < 0):
        raise ConfigError(f"step {number}: seconds is not a time")


async def _do(lab: Lab, watch: Observer, number: int, step: Mapping[str, Any]) -> None:
    try:
        node, other = (lab.nodes[step[word]] if word in step else None for word in ("node", "other"))
    except KeyError as error:
        raise ConfigError(f"step {number}: there is no node {error.args[0]}", hint=", ".join(lab.nodes)) from None
    match step["do"], node, other:
        case "wait", _, _:
            await lab.pass_time(step["seconds"])
        case "settle", _, _:
            await watch.settle(str(step.get("what", f"step {number}")), step.get("seconds", 120.0))
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
        case ("partition" | "heal" | "reset") as word, one, another if one is not None and another is not None:
            getattr(lab, word)(one, another)
