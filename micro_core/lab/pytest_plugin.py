"""The pytest fixture `micro_net`: a network for tests of services, without sockets and without real waiting.

    async def test_a_call_crosses_two_nodes(micro_net):
        a, b, c = await micro_net.line(3)
        await a.serve(service)
        await micro_net.converged()
        assert await c.call("go.micro.srv.greeter", "Say.Hello", {"name": "John"}) == {"msg": "Hello John"}

A test with this fixture runs on the virtual time of the lab, whichever plugin runs the other asynchronous tests. A
failed test shows its seed, and `--micro-seed N` sets the seed. The lab is imported only if a test uses the fixture.
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
    """Add the option `--micro-seed`."""
    parser.getgroup("micro").addoption(
        "--micro-seed", type=int, default=0, metavar="N", help="seed of the networks of the fixture `micro_net`"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(collector: Any, name: str, obj: object) -> Any:
    """Convert tests with the fixture into synchronous functions, before another plugin runs them in its own loop."""
    # `callable`: since Python 3.12, `iscoroutinefunction` is true for the module `inspect`.
    if not callable(obj) or not inspect.iscoroutinefunction(obj) or FIXTURE not in inspect.signature(obj).parameters:
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
                lab.check_callbacks()
            finally:
                await lab.close()

        loop.run(body())

    return run


@pytest.fixture
def micro_net(request: pytest.FixtureRequest) -> Callable[[], Lab]:
    """Provide a network of nodes on virtual time (`micro_core.lab.net.Lab`)."""
    from micro_core.lab.net import Lab

    seed = request.config.getoption("--micro-seed")
    request.node.user_properties.append(("micro_seed", seed))
    # The lab is created in the loop of the test, which is not running yet.
    return lambda: Lab(seed)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:  # noqa: ARG001
    """Add the seed to the report of a failed test."""
    outcome: Any = yield
    report = outcome.get_result()
    seeds = [value for name, value in item.user_properties if name == "micro_seed"]
    if report.failed and seeds:
        report.sections.append(
            ("micro_net", f"seed {seeds[0]}; to repeat this run: pytest {item.nodeid} --micro-seed {seeds[0]}")
        )
