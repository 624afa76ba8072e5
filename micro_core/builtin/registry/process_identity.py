"""Who a process is, so that another process of the machine can tell that it is gone. Linux only; elsewhere nobody is.

A process is its boot, its pid namespace, its pid and its start time (proc(5)): pids are used again, and directories
are shared between hosts and containers, where the same pid means somebody else. Whoever cannot be told is not gone.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

_STATE = 0
_START_TIME = 19
"""Places in /proc/<pid>/stat after the command's closing bracket; they are fields 3 and 22 in proc(5)."""

_TOKEN = re.compile(r"(?P<world>\S{1,100}) (?P<pid>[0-9]{1,10}) (?P<started>[0-9]{1,20})", re.ASCII)


def process_token() -> str:
    """A text that names this process; empty where the system does not tell."""
    try:
        return f"{_world()} {os.getpid()} {_stat_fields(os.getpid())[_START_TIME]}"
    except (OSError, IndexError):
        return ""


def is_gone(token: str) -> bool:
    """True when the process of `token` ran on this very system and runs no more."""
    parts = _TOKEN.fullmatch(token)
    if parts is None:
        return False
    try:
        if parts["world"] != _world():
            return False
        fields = _stat_fields(int(parts["pid"]))
    except (FileNotFoundError, ProcessLookupError):
        return True
    except OSError:
        return False
    # Z and X: killed, and its parent has not asked for its exit status yet.
    return len(fields) > _START_TIME and (fields[_START_TIME] != parts["started"] or fields[_STATE] in {"Z", "X"})


def _world() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{boot}/{Path('/proc/self/ns/pid').readlink().name}"


def _stat_fields(pid: int) -> list[str]:
    # The command may hold spaces and brackets; the last closing one ends it.
    return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
