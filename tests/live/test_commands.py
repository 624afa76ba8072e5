"""Tests of the commands that make calls, with two sites and a service that has every kind of endpoint."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import IO, Any

import pytest
from typer.testing import CliRunner, Result

pytestmark = pytest.mark.timeout(120)

SERVICE = """
import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TypedDict

from pydantic import BaseModel, Field

from micro_core import BadRequest, CallContext, Overloaded, Service

service = Service("kinds", version="1.2")


class Pair(TypedDict):
    left: int
    right: str


@dataclass
class Point:
    x: int
    y: int = 0


class Order(BaseModel):
    count: int = Field(ge=1)
    name: str


@service.handler
class Do:
    async def swap(self, request: Pair) -> Pair:
        return {"left": request["left"] + 1, "right": request["right"][::-1]}

    def move(self, request: Point) -> Point:
        return Point(x=request.x + 1, y=request.y)

    async def order(self, request: Order) -> Order:
        return Order(count=request.count, name=request.name * request.count)

    async def count(self, request: dict) -> AsyncIterator[int]:
        try:
            for number in range(request["to"]):
                await asyncio.sleep(request.get("pause_s", 0))
                yield number
        except (asyncio.CancelledError, GeneratorExit):
            print("count was cancelled", flush=True)
            raise

    async def total(self, numbers: AsyncIterator[int]) -> int:
        return sum([number async for number in numbers])

    async def chat(self, items: AsyncIterator[dict]) -> AsyncIterator[dict]:
        async for item in items:
            yield {"echo": item["text"]}
        yield {"echo": "the end"}

    async def wait(self) -> None:
        print("wait started", flush=True)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            print("wait was cancelled", flush=True)
            raise

    async def remaining(self, request: dict, context: CallContext) -> dict:
        return {"remaining_s": context.remaining_s, "metadata": dict(context.metadata)}

    async def fail(self, request: dict) -> None:
        raise {"busy": Overloaded, "bad": BadRequest}[request["how"]]("no", hint="never")

    async def raw(self) -> bytes:
        return bytes([0xFF, 0x00])


service.run()
"""


@dataclass
class TwoSites:
    """Commands run on the site `us`. The service is on the site `eu`, so calls pass both nodes."""

    lab: Any
    us: Any
    service: Any

    def micro(self, *arguments: str, stdin: str | None = None, proxy: str = "go.micro.network") -> Result:
        """Run a command in this process, which starts faster."""
        from micro_core.cli.main import app

        settings = {"MICRO_CONFIG": str(self.us.config), "MICRO_PROXY": proxy}
        with contextlib.chdir(self.lab.directory):
            return CliRunner().invoke(app, list(arguments), input=stdin, env=settings, prog_name="micro")

    def micro_with_stdin(self, stdin: str, *arguments: str) -> tuple[int, str, str]:
        """Run a command in a child process with a real standard input. Returns exit code, stdout and stderr."""
        process = self.start(*arguments)
        stdout, stderr = process.communicate(stdin, timeout=60)
        return process.returncode, stdout, stderr

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a command in a child process."""
        # Restores the handler of SIGINT: pytest may run with SIGINT ignored, which children inherit.
        program = (
            "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
            "sys.argv[0] = 'micro'; from micro_core.cli.main import main; main()"
        )
        return subprocess.Popen(
            [sys.executable, "-c", program, *arguments],
            env=self.lab.environment(self.us, MICRO_PROXY="go.micro.network"),
            cwd=self.lab.directory,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def printed(self, line: str) -> int:
        """Return how often the service has printed a line."""
        return int(self.service.lines.count(line))


@pytest.fixture(scope="module")
def sites(shared_lab: Any) -> TwoSites:
    lab = shared_lab
    eu = lab.site("eu")
    us = lab.site("us", joins=[eu])
    lab.node(eu)
    lab.node(us)
    service = lab.python("kinds", eu, SERVICE)
    has_route = lambda: "kinds" in {e["service"] for e in lab.json(us, "network", "services")["services"]}  # noqa: E731
    lab.until(has_route, "us has a route to the service")
    return TwoSites(lab, us, service)


def first_line(pipe: IO[str] | None) -> str:
    assert pipe is not None
    return pipe.readline().strip()


@pytest.mark.parametrize(
    ("arguments", "response"),
    [
        (["Do.Swap", '{"left": 1, "right": "ab"}'], {"left": 2, "right": "ba"}),
        (["Do.Swap", "left=1", "right=ab"], {"left": 2, "right": "ba"}),
        (["Do.Move", "x=1"], {"x": 2, "y": 0}),
        (["Do.Order", "count=2", "name=ab"], {"count": 2, "name": "abab"}),
        (["Do.Raw"], "ff00"),
        (["Debug.Health"], {"status": "ok"}),
    ],
)
def test_request_is_json_or_pairs_and_is_converted_to_the_type_of_the_handler(
    sites: TwoSites, arguments: list[str], response: object
) -> None:
    done = sites.micro("call", "kinds", *arguments)
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout) == response


def test_request_is_read_from_stdin_or_from_a_file(sites: TwoSites) -> None:
    request = '{"left": 1, "right": "ab"}'
    (sites.lab.directory / "request.json").write_text(request)
    for done in (
        sites.micro("call", "kinds", "Do.Swap", "-", stdin=request),
        sites.micro("call", "kinds", "Do.Swap", "@request.json"),
    ):
        assert json.loads(done.stdout) == {"left": 2, "right": "ba"}, done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["call", "kinds", "Do.Swap", '{"left": "1", "right": ""}'], 1, "left: expected int, got str"),
        (["call", "kinds", "Do.Move", "{}"], 1, "x: missing field"),
        (["call", "kinds", "Do.Order", "count=0", "name=a"], 1, "count: Input should be greater than or equal to 1"),
        (["call", "kinds", "Do.Fail", "how=bad"], 1, "no"),
        (["call", "kinds", "Do.Fail", "how=busy"], 8, "no"),
        (["call", "kinds", "Do.Nothing"], 4, "kinds has no endpoint Do.Nothing"),
        (["call", "unknown", "Do.Nothing"], 4, "no route to unknown"),
        (["call", "kinds", "Do.Wait", "--timeout", "0.3"], 5, ""),
        (["call", "kinds", "Do.Move", "--address", "tcp://127.0.0.1:1"], 6, "cannot connect to"),
        (["call", "a b", "Do.Move"], 2, "'a b' is not a service name"),
        (["call", "kinds", "Do Move"], 2, "'Do Move' is not an endpoint name"),
        (["call", "kinds", "Do.Move", "{x}"], 2, "the request is not valid JSON"),
        (["call", "kinds", "Do.Move", "@nothing.json"], 2, "cannot read nothing.json"),
        (["call", "kinds", "Do.Move", "--timeout", "-1"], 2, "more than 0"),
        (["call", "kinds", "Do.Move", "--timeout", "nan"], 2, "more than 0"),
        (["call", "kinds", "Do.Move", "--metadata", "x"], 2, "'x' is not key=value"),
        (["call", "kinds", "Do.Move", "--set", "node.timeout=0"], 3, "node.timeout"),
        (["stream", "kinds", "Do.Count", "to=9", "pause_s=1", "--timeout", "0.5"], 5, ""),
        (["publish", "a b", "x=1"], 2, "'a b' is not a topic"),
        (["subscribe", "a b"], 2, "'a b' is not a topic"),
        (["describe", "a b"], 2, "'a b' is not a service name"),
        (["call", "kinds", "Do.Count", "to=1"], 1, "micro stream"),
        (["network", "routes", "--at", "5m", "--diff", "5m"], 2, "--at and --diff cannot be combined"),
        (["network", "routes", "--link", "nonsense"], 2, "use local or network"),
        (["up", "--json"], 2, "--json requires --check"),
    ],
)
def test_error_has_a_message_and_an_exit_code(sites: TwoSites, arguments: list[str], code: int, message: str) -> None:
    done = sites.micro(*arguments)
    assert done.exit_code == code, done.stderr
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_error_names_the_hop_that_raised_it(sites: TwoSites) -> None:
    service_error = json.loads(sites.micro("call", "kinds", "Do.Fail", "how=bad", "--json").stdout)["error"]
    assert service_error == {
        "id": "bad-request",
        "code": 400,
        "status": "Bad Request",
        "detail": "no",
        "hint": "never",
        "at": service_error["at"],
    }
    assert service_error["at"].startswith("kinds-")
    node_error = json.loads(sites.micro("call", "unknown", "Do.It", "--json").stdout)["error"]
    assert node_error["at"].startswith("node us-1")


def test_handler_receives_metadata_and_the_remaining_deadline(sites: TwoSites) -> None:
    done = sites.micro("call", "kinds", "Do.Remaining", "--timeout", "30", "--metadata", "colour=blue")
    answer = json.loads(done.stdout)
    assert 20.0 < answer["remaining_s"] < 30.0
    assert answer["metadata"] == {"colour": "blue"}


@pytest.mark.parametrize(
    ("arguments", "items"),
    [(["Do.Count", "to=3"], [0, 1, 2]), (["Do.Total", "5"], [5]), (["Do.Move", "x=1"], [{"x": 2, "y": 0}])],
)
def test_stream_with_one_request_item_passes_two_nodes(
    sites: TwoSites, arguments: list[str], items: list[object]
) -> None:
    done = sites.micro("stream", "kinds", *arguments)
    assert done.exit_code == 0, done.stderr
    assert [json.loads(line) for line in done.stdout.splitlines()] == items


@pytest.mark.parametrize(
    ("endpoint", "stdin", "items"),
    [
        ("Do.Total", "1\n2\n\n3", [6]),
        ("Do.Total", "", [0]),
        ("Do.Chat", '{"text": "one"}\n{"text": "two"}\n', [{"echo": text} for text in ("one", "two", "the end")]),
    ],
)
def test_lines_of_stdin_are_sent_as_items(sites: TwoSites, endpoint: str, stdin: str, items: list[object]) -> None:
    code, stdout, stderr = sites.micro_with_stdin(stdin, "stream", "kinds", endpoint, "-")
    assert code == 0, stderr
    assert [json.loads(line) for line in stdout.splitlines()] == items


def test_stream_is_bidirectional_and_is_ended_by_an_interrupt(sites: TwoSites) -> None:
    chat = sites.start("stream", "kinds", "Do.Chat", "-")
    assert chat.stdin is not None
    for text in ("one", "two"):
        chat.stdin.write(json.dumps({"text": text}) + "\n")
        chat.stdin.flush()
        assert first_line(chat.stdout) == json.dumps({"echo": text})
    chat.send_signal(signal.SIGINT)
    assert chat.wait(timeout=10) == 130, "although its standard input is still open"
    chat.communicate()


def test_invalid_line_of_stdin_ends_the_stream(sites: TwoSites) -> None:
    code, _, stderr = sites.micro_with_stdin("1\nbad\n3\n", "stream", "kinds", "Do.Total", "-")
    assert code == 2
    assert "not valid JSON" in stderr


def test_unreadable_stdin_ends_the_stream(sites: TwoSites) -> None:
    done = sites.micro(
        "stream", "kinds", "Do.Total", "-", stdin="1"
    )  # CliRunner provides a stdin without a file descriptor.
    assert done.exit_code == 2
    assert "cannot read standard input" in done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_terminated_command_cancels_the_handler_behind_two_nodes(
    sites: TwoSites, number: signal.Signals, code: int
) -> None:
    started, cancelled = sites.printed("wait started"), sites.printed("wait was cancelled")
    call = sites.start("call", "kinds", "Do.Wait", "--timeout", "60")
    sites.service.wait_for(lambda lines: lines.count("wait started") > started)
    call.send_signal(number)
    assert call.wait(timeout=10) == code
    call.communicate()
    sites.service.wait_for(lambda lines: lines.count("wait was cancelled") > cancelled)


def test_closed_pipe_cancels_the_stream(sites: TwoSites) -> None:
    cancelled = sites.printed("count was cancelled")
    stream = sites.start("stream", "kinds", "Do.Count", "to=1000000")
    assert first_line(stream.stdout) == "0"
    assert stream.stdout is not None
    stream.stdout.close()
    assert stream.stdin is not None
    assert stream.stderr is not None
    with stream.stdin, stream.stderr:
        assert (stream.wait(timeout=30), stream.stderr.read()) == (0, "")
    sites.service.wait_for(lambda lines: lines.count("count was cancelled") > cancelled)


def test_terminated_subscriber_withdraws_its_registration(sites: TwoSites) -> None:
    subscriber = sites.start("subscribe", "orders.created", "--json")
    assert first_line(subscriber.stderr).startswith("subscribed to")
    published = sites.micro("publish", "orders.created", "number=7", "--json")
    assert json.loads(published.stdout)["topic"] == "orders.created"
    assert json.loads(first_line(subscriber.stdout))["message"] == {"number": 7}

    def subscribers() -> list[str]:
        found = sites.lab.json(sites.us, "network", "services")["services"]
        return [entry["service"] for entry in found if entry["service"].startswith("micro.cli.subscriber.")]

    sites.lab.until(lambda: len(subscribers()) == 1, "the subscriber is registered")
    subscriber.send_signal(signal.SIGTERM)
    assert subscriber.wait(timeout=10) == 143
    subscriber.communicate()
    started = time.monotonic()
    sites.lab.until(lambda: not subscribers(), "the subscriber is withdrawn")
    assert time.monotonic() - started < 10.0, "withdrawn before its lease of 30 s expires"


@pytest.mark.parametrize(
    ("arguments", "schema", "keys"),
    [
        (["call", "kinds", "Do.Move", "x=1"], "micro.call/1", {"service", "endpoint", "response"}),
        (["stream", "kinds", "Do.Count", "to=1"], "micro.stream/1", {"item"}),
        (["publish", "orders.paid", "x=1"], "micro.publish/1", {"topic", "id"}),
        (["services"], "micro.services/1", {"services", "searched"}),
        (["describe", "kinds"], "micro.describe/1", {"service", "version", "id", "endpoints"}),
        (["describe", "go.micro.network"], "micro.describe/1", {"service", "version", "id", "endpoints"}),
        (["network", "nodes"], "micro.nodes/1", {"nodes"}),
        (["network", "connections"], "micro.connections/1", {"connections"}),
        (["network", "services"], "micro.network-services/1", {"services"}),
        (["network", "routes"], "micro.routes/1", {"routes"}),
        (["network", "graph"], "micro.graph/1", {"nodes", "links"}),
        (["network", "status"], "micro.status/1", {"id", "name", "site", "counters"}),
        (["plugin", "list"], "micro.plugins/1", {"plugins"}),
        (["plugin", "info", "quic"], "micro.plugin/1", {"name", "options"}),
        (["config", "show"], "micro.config/1", {"settings"}),
        (["config", "validate"], "micro.validate/1", {"valid", "drivers"}),
        (["version"], "micro.version/1", {"version", "contract", "wire"}),
    ],
)
def test_json_output_is_one_object_with_a_schema(
    sites: TwoSites, arguments: list[str], schema: str, keys: set[str]
) -> None:
    done = sites.micro(*arguments, "--json")
    assert done.exit_code == 0, done.stderr
    (line,) = done.stdout.splitlines()
    printed = json.loads(line)
    assert printed["schema"] == schema
    assert keys <= set(printed)
    assert "\x1b" not in sites.micro(*arguments).stdout, "no colours without a terminal"


@pytest.mark.parametrize("proxy", ["go.micro.network", "{address}", "{host_and_port}"])
def test_proxy_is_given_by_service_name_or_by_address(sites: TwoSites, proxy: str) -> None:
    value = proxy.format(address=sites.us.address, host_and_port=sites.us.address.removeprefix("tcp://"))
    done = sites.micro("call", "kinds", "Do.Move", "x=1", proxy=value)
    assert json.loads(done.stdout) == {"x": 2, "y": 0}, done.stderr


def test_without_a_proxy_only_the_site_is_called_and_a_hint_is_shown(sites: TwoSites) -> None:
    done = sites.micro("call", "kinds", "Do.Move", "x=1", proxy="")
    assert done.exit_code == 4
    assert "MICRO_PROXY=go.micro.network" in done.stderr
    assert "(searched: registry:local)" in done.stderr
    assert "--plugins" in done.stderr
