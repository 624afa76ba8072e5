"""The rules by which the clients of `broker:node` choose the host on which they publish, without waiting for a lease."""

from __future__ import annotations

from mutants.mutant import Area, Mutant

MUTANTS = (
    Mutant(
        "messages are published on a host that answers",
        "host_selection.py",
        "connected = [host for host in hosts if host.is_connected]",
        "connected = list(hosts)",
    ),
    Mutant(
        "a client subscribes on several hosts",
        "host_selection.py",
        "if alive >= MAX_HOSTS:",
        "if alive >= 1:",
    ),
    Mutant("the number of hosts is bounded", "host_selection.py", "if alive >= MAX_HOSTS:", "if False:"),
    Mutant(
        "a host that does not answer is not counted",
        "host_selection.py",
        "alive += not host.has_failed",
        "alive += 1",
    ),
    Mutant(
        "a host that returns is used when all clients are connected to it",
        "host_selection.py",
        "(not host.is_registered, now < host.settled_at, host.id)",
        "(not host.is_registered, host.id)",
    ),
    Mutant(
        "a host that withdraws its record is left",
        "host_selection.py",
        "(not host.is_registered, now < host.settled_at, host.id)",
        "(now < host.settled_at, host.id)",
    ),
    Mutant(
        "all clients publish on the same host",
        "host_selection.py",
        "now < host.settled_at, host.id)",
        "now < host.settled_at)",
    ),
)

AREA = Area(
    name="brokers",
    folder="micro_core/builtin/broker",
    tests=(
        ("tests/builtin/test_broker_hosts.py",),
        ("tests/lab/test_site_messages.py", "tests/lab/test_leader_failure.py"),
    ),
    mutants=MUTANTS,
)
