"""Some seeds of the soak test, and a state machine driven by hypothesis."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from micro_core.lab import loop
from micro_core.lab.lab_node import LabNode
from micro_core.lab.net import Lab
from micro_core.lab.options import LabOptions
from micro_core.rpc.service import Service

_spec = importlib.util.spec_from_file_location("soak", Path(__file__).with_name("soak.py"))
assert _spec is not None
assert _spec.loader is not None
soak = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(soak)


@pytest.mark.parametrize("seed", range(40))
def test_network_keeps_its_invariants_and_converges_after_random_faults(seed: int) -> None:
    loop.run(soak.soak(seed))


def test_soak_run_is_reproducible_by_its_seed() -> None:
    assert loop.run(soak.soak(7)) == loop.run(soak.soak(7))


@pytest.mark.timeout(240)
@pytest.mark.parametrize("seed", [0, 2, 3])
def test_found_network_keeps_its_invariants_and_heals_after_random_faults(seed: int) -> None:
    loop.run(soak.found.soak_found(seed))


@pytest.mark.timeout(240)
def test_soak_run_of_a_found_network_is_reproducible_by_its_seed() -> None:
    assert loop.run(soak.found.soak_found(2)) == loop.run(soak.found.soak_found(2))


class NetworkMachine(RuleBasedStateMachine):
    """Nodes and services start and stop, links are cut and repaired. The invariants are checked after every rule."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner(loop_factory=loop.VirtualLoop)
        self.cut: list[tuple[LabNode, LabNode]] = []
        self.run(self._start())

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(work)

    async def _start(self) -> None:
        self.lab = Lab(0, options=LabOptions(keep_log=False))
        self.nodes = await self.lab.ring(4)

    @rule(node=st.integers(0, 3), name=st.sampled_from("xy"))
    def serve(self, node: int, name: str) -> None:
        if self.nodes[node].is_alive:
            self.run(self.nodes[node].serve(Service(f"svc.{name}")))

    @rule(node=st.integers(0, 3))
    def stop_service(self, node: int) -> None:
        lab_node = self.nodes[node]
        if lab_node.is_alive and lab_node.services:
            self.run(lab_node.stop_service(lab_node.services[0]))

    @rule(node=st.integers(0, 3), is_graceful=st.booleans())
    def stop(self, node: int, is_graceful: bool) -> None:
        lab_node = self.nodes[node]
        if lab_node.is_alive:
            self.run(lab_node.stop() if is_graceful else lab_node.kill())

    @rule(node=st.integers(0, 3))
    def restart(self, node: int) -> None:
        if not self.nodes[node].is_alive:
            self.run(self.nodes[node].start())

    @rule(one=st.integers(0, 3), other=st.integers(0, 3))
    def partition(self, one: int, other: int) -> None:
        if one != other:
            self.lab.partition(self.nodes[one], self.nodes[other])
            self.cut.append((self.nodes[one], self.nodes[other]))

    @rule()
    def heal(self) -> None:
        if self.cut:
            self.lab.heal(*self.cut.pop())

    @rule(seconds=st.sampled_from([0.01, 0.4, 3.5, 20.0]))
    def wait(self, seconds: float) -> None:
        self.run(self.lab.advance_time(seconds))

    @invariant()
    def no_invariant_is_violated(self) -> None:
        self.lab.check()

    def teardown(self) -> None:
        while self.cut:
            self.lab.heal(*self.cut.pop())
        for node in range(4):
            self.restart(node)
        self.run(self.lab.converged(soak.BOUND_S))
        self.run(self.lab.close())
        self.runner.close()


NetworkMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
TestNetworkMachine = NetworkMachine.TestCase
