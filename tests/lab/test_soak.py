"""A few dozen seeds of the soak, and a state machine that hypothesis drives and shrinks."""

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
from micro_core.lab.net import Lab, LabOptions
from micro_core.rpc.service import Service

_spec = importlib.util.spec_from_file_location("soak", Path(__file__).with_name("soak.py"))
assert _spec is not None
assert _spec.loader is not None
soak = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(soak)


@pytest.mark.parametrize("seed", range(40))
def test_whatever_befalls_a_network_it_holds_and_recovers(seed: int) -> None:
    loop.run(soak.soak(seed))


def test_a_soak_is_a_function_of_its_seed() -> None:
    assert loop.run(soak.soak(7)) == loop.run(soak.soak(7))


class NetworkMachine(RuleBasedStateMachine):
    """Nodes and services that come and go, wires that are cut and heal: what must hold, holds after every rule."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner(loop_factory=loop.VirtualLoop)
        self.cut: list[tuple[LabNode, LabNode]] = []
        self.do(self._begin())

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(work)

    async def _begin(self) -> None:
        self.lab = Lab(0, options=LabOptions(keep_log=False))
        self.nodes = await self.lab.ring(4)

    @rule(node=st.integers(0, 3), name=st.sampled_from("xy"))
    def serve(self, node: int, name: str) -> None:
        if self.nodes[node].is_alive:
            self.do(self.nodes[node].serve(Service(f"svc.{name}")))

    @rule(node=st.integers(0, 3))
    def stop_a_service(self, node: int) -> None:
        member = self.nodes[node]
        if member.is_alive and member.services:
            self.do(member.stop_service(member.services[0]))

    @rule(node=st.integers(0, 3), is_orderly=st.booleans())
    def end(self, node: int, is_orderly: bool) -> None:
        member = self.nodes[node]
        if member.is_alive:
            self.do(member.stop() if is_orderly else member.kill())

    @rule(node=st.integers(0, 3))
    def begin_again(self, node: int) -> None:
        if not self.nodes[node].is_alive:
            self.do(self.nodes[node].start())

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
        self.do(self.lab.pass_time(seconds))

    @invariant()
    def what_must_hold_holds(self) -> None:
        self.lab.check()

    def teardown(self) -> None:
        while self.cut:
            self.lab.heal(*self.cut.pop())
        for node in range(4):
            self.begin_again(node)
        self.do(self.lab.converged(soak.BOUND_S))
        self.do(self.lab.close())
        self.runner.close()


NetworkMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
TestNetworkMachine = NetworkMachine.TestCase
