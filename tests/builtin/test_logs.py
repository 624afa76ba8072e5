"""Lines of the log: one event a line, whatever a peer has put into it."""

from __future__ import annotations

import logging
import subprocess
import sys

from micro_core.lifecycle.logs import KeyValueFormatter


def line(message: str, **fields: object) -> str:
    record = logging.makeLogRecord(
        {"name": "micro.node", "levelno": 30, "levelname": "WARNING", "msg": message, **fields}
    )
    return KeyValueFormatter().format(record)


def test_a_line_is_time_level_place_message_and_fields() -> None:
    _, _, rest = line("link replaced", peer="b7f3", generation=4).partition(" ")
    assert rest == "warning micro.node link replaced peer=b7f3 generation=4"


def test_what_a_peer_said_begins_no_line_and_no_field() -> None:
    said = line("refused", reason='no\n2026-01-01 error micro forged level="x" peer=b7f3\x1b[31m', name_="")
    assert "\n" not in said
    assert "\x1b" not in said
    assert r'reason="no\n2026-01-01 error micro forged level=\"x\" peer=b7f3\u001b[31m"' in said
    assert 'name_=""' in said
    assert "\n" not in line("a message\nof two lines")


def test_a_service_writes_the_same_lines_as_a_node() -> None:
    program = (
        "import logging; from micro_core import Service; s = Service('a.b'); "
        "s._run = lambda: _run(); \n"
        "async def _run(): logging.getLogger('x').warning('said', extra={'reason': 'two words'})\n"
        "s.run()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr.strip().endswith('warning x said reason="two words"'), done.stderr
