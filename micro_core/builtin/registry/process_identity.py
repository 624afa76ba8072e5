"""Identifies a process, so that other processes of the machine can determine that it has ended. Works on Linux only.

A process is identified by the boot id, the pid namespace, the pid and the start time (proc(5)), because pids are reused and
directories are shared between hosts and containers, where the same pid belongs to another process. A process about which
nothing can be determined is assumed to be running.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

_STATE = 0
_START_TIME = 19
"""Indices in /proc/<pid>/stat after the closing bracket of the command; fields 3 and 22 in proc(5)."""

_TOKEN = re.compile(r"(?P<system>\S{1,100}) (?P<pid>[0-9]{1,10}) (?P<started>[0-9]{1,20})", re.ASCII)


def process_token() -> str:
    """Return a string that identifies this process; empty if the system does not provide the data."""
    try:
        return f"{_system_id()} {os.getpid()} {_stat_fields(os.getpid())[_START_TIME]}"
    except (OSError, IndexError):
        return ""


def has_ended(token: str) -> bool:
    """Return whether the process of `token` ran on this system and has ended."""
    parts = _TOKEN.fullmatch(token)
    if parts is None:
        return False
    try:
        if parts["system"] != _system_id():
            return False
        fields = _stat_fields(int(parts["pid"]))
    except (FileNotFoundError, ProcessLookupError):
        return True
    except OSError:
        return False
    # States Z and X: the process was killed, and its parent has not read its exit status yet.
    return len(fields) > _START_TIME and (fields[_START_TIME] != parts["started"] or fields[_STATE] in {"Z", "X"})


def _system_id() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{boot}/{Path('/proc/self/ns/pid').readlink().name}"


def _stat_fields(pid: int) -> list[str]:
    # The command may contain spaces and brackets. Its end is the last closing bracket.
    return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
