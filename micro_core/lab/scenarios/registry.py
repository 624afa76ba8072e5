"""The built-in scenarios by name, and what several of them use."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from micro_core.lab.lab_node import LabNode
from micro_core.lab.net import Lab
from micro_core.lab.process import CpuModel
from micro_core.lab.report import Observer
from micro_core.rpc.service import Service

Body = Callable[[Lab, Observer, int], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Scenario:
    """A built-in scenario. `count` is its default number of nodes."""

    name: str
    summary: str
    count: int
    body: Body
    cpu: CpuModel | None = None
    """The processor time that the work of its nodes takes. None means that it takes no time."""


SCENARIOS: dict[str, Scenario] = {}


def scenario(name: str, count: int, *, cpu: CpuModel | None = None) -> Callable[[Body], Body]:
    """Add a scenario under this name. The first line of its docstring is its summary."""

    def add(body: Body) -> Body:
        summary = (body.__doc__ or "").partition("\n")[0]
        SCENARIOS[name] = Scenario(name, summary, count, body, cpu)
        return body

    return add


async def serve_each(nodes: Sequence[LabNode], services: int = 1) -> None:
    """Start `services` services with different names on the site of each node."""
    for node in nodes:
        for number in range(services):
            await node.serve(Service(f"svc.{node.name}.{number}"))
