"""The commands that call, as people and programs use them: two sites, a service of every kind of endpoint."""

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
            yield {"heard": item["say"]}
        yield {"heard": "the end"}

    async def wait(self) -> None:
        print("wait has begun", flush=True)
        try:
            await asyncio.sleep(3600)
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
class Place:
    """Commands run on the site `us`; the service is on `eu`, behind both nodes."""

    lab: Any
    us: Any
    service: Any

    def micro(self, *words: str, stdin: str | None = None, proxy: str = "go.micro.network") -> Result:
        """In this process: the command is the same, and starts sooner."""
        from micro_core.cli.main import app

        settings = {"MICRO_CONFIG": str(self.us.config), "MICRO_PROXY": proxy}
        with contextlib.chdir(self.lab.directory):
            return CliRunner().invoke(app, list(words), input=stdin, env=settings, prog_name="micro")

    def with_stdin(self, stdin: str, *words: str) -> tuple[int, str, str]:
        """In a process of its own, with a real standard input: exit code, stdout, stderr."""
        process = self.start(*words)
        said, complained = process.communicate(stdin, timeout=60)
        return process.returncode, said, complained

    def start(self, *words: str) -> subprocess.Popen[str]:
        # As from a shell: pytest may have been started with interrupts ignored, and children would inherit that.
        program = (
            "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
            "sys.argv[0] = 'micro'; from micro_core.cli.main import main; main()"
        )
        return subprocess.Popen(
            [sys.executable, "-c", program, *words],
            env=self.lab.environment(self.us, MICRO_PROXY="go.micro.network"),
            cwd=self.lab.directory,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def said(self, line: str) -> int:
        return int(self.service.lines.count(line))


@pytest.fixture(scope="module")
def place(shared_lab: Any) -> Place:
    lab = shared_lab
    eu = lab.site("eu")
    us = lab.site("us", joins=[eu])
    lab.node(eu)
    lab.node(us)
    service = lab.python("kinds", eu, SERVICE)
    known = lambda: "kinds" in {e["service"] for e in lab.json(us, "network", "services")["services"]}  # noqa: E731
    lab.until(known, "us knows the service")
    return Place(lab, us, service)


def first_line(pipe: IO[str] | None) -> str:
    assert pipe is not None
    return pipe.readline().strip()


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["Do.Swap", '{"left": 1, "right": "ab"}'], {"left": 2, "right": "ba"}),
        (["Do.Swap", "left=1", "right=ab"], {"left": 2, "right": "ba"}),
        (["Do.Move", "x=1"], {"x": 2, "y": 0}),
        (["Do.Order", "count=2", "name=ab"], {"count": 2, "name": "abab"}),
        (["Do.Raw"], "ff00"),
        (["Debug.Health"], {"status": "ok"}),
    ],
)
def test_a_request_is_written_as_json_or_as_pairs_and_typed_by_its_handler(
    place: Place, words: list[str], answer: object
) -> None:
    done = place.micro("call", "kinds", *words)
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout) == answer


def test_a_request_comes_from_stdin_or_from_a_file(place: Place) -> None:
    request = '{"left": 1, "right": "ab"}'
    (place.lab.directory / "request.json").write_text(request)
    for done in (
        place.micro("call", "kinds", "Do.Swap", "-", stdin=request),
        place.micro("call", "kinds", "Do.Swap", "@request.json"),
    ):
        assert json.loads(done.stdout) == {"left": 2, "right": "ba"}, done.stderr


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["call", "kinds", "Do.Swap", '{"left": "1", "right": ""}'], 1, "left: expected int, got str"),
        (["call", "kinds", "Do.Move", "{}"], 1, "x: missing field"),
        (["call", "kinds", "Do.Order", "count=0", "name=a"], 1, "count: Input should be greater than or equal to 1"),
        (["call", "kinds", "Do.Fail", "how=bad"], 1, "no"),
        (["call", "kinds", "Do.Fail", "how=busy"], 8, "no"),
        (["call", "kinds", "Do.Nothing"], 4, "kinds has no endpoint Do.Nothing"),
        (["call", "nobody", "Do.Nothing"], 4, "no route to nobody"),
        (["call", "kinds", "Do.Wait", "--timeout", "0.3"], 5, ""),
        (["call", "kinds", "Do.Move", "--address", "tcp://127.0.0.1:1"], 6, "cannot connect to"),
        (["call", "a b", "Do.Move"], 2, "'a b' is not a service name"),
        (["call", "kinds", "Do Move"], 2, "'Do Move' is not an endpoint name"),
        (["call", "kinds", "Do.Move", "{x}"], 2, "the request is not JSON"),
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
        (["network", "routes", "--at", "5m", "--diff", "5m"], 2, "--at and --diff exclude each other"),
        (["network", "routes", "--link", "nonsense"], 2, "there are local and network"),
        (["up", "--json"], 2, "--json goes with --check"),
    ],
)
def test_each_way_to_fail_has_its_sentence_and_its_exit_code(
    place: Place, words: list[str], code: int, sentence: str
) -> None:
    done = place.micro(*words)
    assert done.exit_code == code, done.stderr
    assert done.stderr.startswith("error: ")
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_an_error_names_the_hop_that_made_it_for_people_and_for_programs(place: Place) -> None:
    at_the_service = json.loads(place.micro("call", "kinds", "Do.Fail", "how=bad", "--json").stdout)["error"]
    assert at_the_service == {
        "id": "bad-request",
        "code": 400,
        "status": "Bad Request",
        "detail": "no",
        "hint": "never",
        "at": at_the_service["at"],
    }
    assert at_the_service["at"].startswith("kinds-")
    at_the_node = json.loads(place.micro("call", "nobody", "Do.It", "--json").stdout)["error"]
    assert at_the_node["at"].startswith("node us-1")


def test_the_deadline_and_metadata_arrive_and_the_deadline_shrinks(place: Place) -> None:
    done = place.micro("call", "kinds", "Do.Remaining", "--timeout", "30", "--metadata", "colour=blue")
    answer = json.loads(done.stdout)
    assert 20.0 < answer["remaining_s"] < 30.0
    assert answer["metadata"] == {"colour": "blue"}


@pytest.mark.parametrize(
    ("words", "items"),
    [(["Do.Count", "to=3"], [0, 1, 2]), (["Do.Total", "5"], [5]), (["Do.Move", "x=1"], [{"x": 2, "y": 0}])],
)
def test_a_stream_of_one_request_crosses_two_nodes(place: Place, words: list[str], items: list[object]) -> None:
    done = place.micro("stream", "kinds", *words)
    assert done.exit_code == 0, done.stderr
    assert [json.loads(line) for line in done.stdout.splitlines()] == items


@pytest.mark.parametrize(
    ("endpoint", "stdin", "items"),
    [
        ("Do.Total", "1\n2\n\n3", [6]),
        ("Do.Total", "", [0]),
        ("Do.Chat", '{"say": "one"}\n{"say": "two"}\n', [{"heard": word} for word in ("one", "two", "the end")]),
    ],
)
def test_lines_of_stdin_are_items_and_its_end_is_theirs(
    place: Place, endpoint: str, stdin: str, items: list[object]
) -> None:
    code, said, complained = place.with_stdin(stdin, "stream", "kinds", endpoint, "-")
    assert code == 0, complained
    assert [json.loads(line) for line in said.splitlines()] == items


def test_both_sides_of_a_stream_talk_in_turn_and_an_interrupt_ends_it(place: Place) -> None:
    chat = place.start("stream", "kinds", "Do.Chat", "-")
    assert chat.stdin is not None
    for word in ("one", "two"):
        chat.stdin.write(json.dumps({"say": word}) + "\n")
        chat.stdin.flush()
        assert first_line(chat.stdout) == json.dumps({"heard": word})
    chat.send_signal(signal.SIGINT)
    assert chat.wait(timeout=10) == 130, "although its stdin is open still"
    chat.communicate()


def test_a_line_that_is_no_json_ends_the_stream(place: Place) -> None:
    code, _, complained = place.with_stdin("1\nbad\n3\n", "stream", "kinds", "Do.Total", "-")
    assert code == 2
    assert "not JSON" in complained


def test_stdin_that_cannot_be_read_ends_the_stream(place: Place) -> None:
    done = place.micro("stream", "kinds", "Do.Total", "-", stdin="1")  # a file of the test's, without a descriptor
    assert done.exit_code == 2
    assert "stdin cannot be read" in done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_command_that_is_ended_cancels_the_handler_behind_two_nodes(
    place: Place, number: signal.Signals, code: int
) -> None:
    begun, cancelled = place.said("wait has begun"), place.said("wait was cancelled")
    call = place.start("call", "kinds", "Do.Wait", "--timeout", "60")
    place.service.wait_for(lambda lines: lines.count("wait has begun") > begun)
    call.send_signal(number)
    assert call.wait(timeout=10) == code
    call.communicate()
    place.service.wait_for(lambda lines: lines.count("wait was cancelled") > cancelled)


def test_a_reader_that_goes_away_cancels_the_stream(place: Place) -> None:
    cancelled = place.said("count was cancelled")
    stream = place.start("stream", "kinds", "Do.Count", "to=1000000")
    assert first_line(stream.stdout) == "0"
    assert stream.stdout is not None
    stream.stdout.close()
    assert stream.stdin is not None
    assert stream.stderr is not None
    with stream.stdin, stream.stderr:
        assert (stream.wait(timeout=30), stream.stderr.read()) == (0, "")
    place.service.wait_for(lambda lines: lines.count("count was cancelled") > cancelled)


def test_a_subscriber_that_is_terminated_withdraws(place: Place) -> None:
    subscriber = place.start("subscribe", "orders.created", "--json")
    assert first_line(subscriber.stderr).startswith("subscribed to")
    published = place.micro("publish", "orders.created", "number=7", "--json")
    assert json.loads(published.stdout)["topic"] == "orders.created"
    assert json.loads(first_line(subscriber.stdout))["message"] == {"number": 7}

    def subscribers() -> list[str]:
        found = place.lab.json(place.us, "network", "services")["services"]
        return [entry["service"] for entry in found if entry["service"].startswith("micro.cli.subscriber.")]

    place.lab.until(lambda: len(subscribers()) == 1, "it is registered")
    subscriber.send_signal(signal.SIGTERM)
    assert subscriber.wait(timeout=10) == 143
    subscriber.communicate()
    began = time.monotonic()
    place.lab.until(lambda: not subscribers(), "it is withdrawn")
    assert time.monotonic() - began < 10.0, "withdrawn, where its lease would stand for 30 s"


@pytest.mark.parametrize(
    ("words", "schema", "keys"),
    [
        (["call", "kinds", "Do.Move", "x=1"], "micro.call/1", {"service", "endpoint", "response"}),
        (["stream", "kinds", "Do.Count", "to=1"], "micro.stream/1", {"item"}),
        (["publish", "orders.paid", "x=1"], "micro.publish/1", {"topic", "id"}),
        (["services"], "micro.services/1", {"services", "asked"}),
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
def test_every_command_says_the_same_to_programs_in_one_object(
    place: Place, words: list[str], schema: str, keys: set[str]
) -> None:
    done = place.micro(*words, "--json")
    assert done.exit_code == 0, done.stderr
    (line,) = done.stdout.splitlines()
    told = json.loads(line)
    assert told["schema"] == schema
    assert keys <= set(told)
    assert "\x1b" not in place.micro(*words).stdout, "no colours where nobody looks"


@pytest.mark.parametrize("proxy", ["go.micro.network", "{address}", "{host_and_port}"])
def test_the_proxy_is_named_as_a_service_or_as_an_address(place: Place, proxy: str) -> None:
    written = proxy.format(address=place.us.address, host_and_port=place.us.address.removeprefix("tcp://"))
    done = place.micro("call", "kinds", "Do.Move", "x=1", proxy=written)
    assert json.loads(done.stdout) == {"x": 2, "y": 0}, done.stderr


def test_without_a_proxy_only_the_site_is_called_and_the_way_out_is_told(place: Place) -> None:
    done = place.micro("call", "kinds", "Do.Move", "x=1", proxy="")
    assert done.exit_code == 4
    assert "MICRO_PROXY=go.micro.network" in done.stderr
    assert "(asked: registry:local)" in done.stderr
    assert "--plugins" in done.stderr
