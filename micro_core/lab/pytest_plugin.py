"""The fixture `micro_net`: a network for tests of services, without sockets and without waiting.

    async def test_a_call_crosses_two_nodes(micro_net):
        a, b, c = await micro_net.line(3)
        await a.serve(service)
        await micro_net.converged()
        assert await c.call("go.micro.srv.greeter", "Say.Hello", {"name": "John"}) == {"msg": "Hello John"}

A test with this fixture runs on the lab's virtual time, whichever plugin runs the other asynchronous tests. A failure
shows the seed; `--micro-seed N` runs with another. Imports the lab only where a test wants it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from micro_core.lab.net import Lab

FIXTURE = "micro_net"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("micro").addoption(
        "--micro-seed", type=int, default=0, metavar="N", help="seed of the networks that `micro_net` makes"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(collector: Any, name: str, obj: object) -> Any:
    """Make a test with the fixture an ordinary function, before another plugin takes it for its own loop."""
    if not inspect.iscoroutinefunction(obj) or FIXTURE not in inspect.signature(obj).parameters:
        return None
    on_virtual_time = _on_virtual_time(obj)
    setattr(collector.obj, name, on_virtual_time)
    return collector.ihook.pytest_pycollect_makeitem(collector=collector, name=name, obj=on_virtual_time)


def _on_virtual_time(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*arguments: Any, **fixtures: Any) -> None:
        from micro_core.lab import loop

        async def body() -> None:
            lab = fixtures[FIXTURE] = fixtures[FIXTURE]()
            try:
                await test(*arguments, **fixtures)
            finally:
                await lab.close()

        loop.run(body())

    return run


@pytest.fixture
def micro_net(request: pytest.FixtureRequest) -> Callable[[], Lab]:
    """A network of nodes on virtual time; see `micro_core.lab.net.Lab`."""
    from micro_core.lab.net import Lab

    seed = request.config.getoption("--micro-seed")
    request.node.user_properties.append(("micro_seed", seed))
    # Made in the test's own loop, which does not run yet.
    return lambda: Lab(seed)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:  # noqa: ARG001
    outcome: Any = yield
    report = outcome.get_result()
    seeds = [value for name, value in item.user_properties if name == "micro_seed"]
    if report.failed and seeds:
        report.sections.append(
            ("micro_net", f"seed {seeds[0]}; the same run again: pytest {item.nodeid} --micro-seed {seeds[0]}")
        )
