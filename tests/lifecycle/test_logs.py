"""Log lines: one line per event, whatever text of a peer it contains."""

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


def test_line_consists_of_time_level_logger_message_and_fields() -> None:
    _, _, rest = line("link replaced", peer="b7f3", generation=4).partition(" ")
    assert rest == "warning micro.node link replaced peer=b7f3 generation=4"


def test_text_of_a_peer_is_quoted_and_escaped() -> None:
    text = line("refused", reason='no\n2026-01-01 error micro forged level="x" peer=b7f3\x1b[31m', name_="")
    assert "\n" not in text
    assert "\x1b" not in text
    assert r'reason="no\n2026-01-01 error micro forged level=\"x\" peer=b7f3\u001b[31m"' in text
    assert 'name_=""' in text
    assert "\n" not in line("a message\nof two lines")


def test_service_and_node_write_the_same_log_format() -> None:
    program = (
        "import logging; from micro_core import Service; s = Service('a.b'); "
        "s._run = lambda: _run(); \n"
        "async def _run(): logging.getLogger('x').warning('test message', extra={'reason': 'with space'})\n"
        "s.run()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr.strip().endswith('warning x test message reason="with space"'), done.stderr
