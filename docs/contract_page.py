"""The reference page of the names in `micro_core.contract` and `micro_core.testing` that authors of drivers use, except the Protocols."""

from __future__ import annotations

import ast
from pathlib import Path

from roles import class_sections, function_section

ROOT = Path(__file__).parents[1]

SECTIONS: dict[str, tuple[str, dict[str, tuple[str, ...]]]] = {
    "Describing a driver": (
        "The hook of a plugin returns a `Driver`. Core reads it, and creates the driver only when it is needed.",
        {"driver.py": ("Driver", "Role", "option", "NoOptions")},
    ),
    "Context of a driver": (
        (
            "`DriverContext` is the second argument of `create`. A driver uses its clock, random numbers, logger and counters, "
            "so that tests can replace them."
        ),
        {"driver.py": ("DriverContext", "Counters", "CountersInMemory"), "clock.py": ("Clock", "Random")},
    ),
    "Records of a registry": (
        (
            "`register` calls `check_instance` and stores `instance_to_dict` of the result. Stored and received data is read "
            "with `instance_from_dict`, which validates it."
        ),
        {"records.py": ("check_instance", "instance_to_dict", "instance_from_dict")},
    ),
    "Watches of a registry": (
        "Helpers that turn changes of records into events, and queue the events for watchers.",
        {"watching.py": ("changes", "WatchSet", "WatchQueue")},
    ),
    "Routes of a table": ("A table driver inherits from `RouteIndex`.", {"route_index.py": ("RouteIndex",)}),
    "Messages of a broker": (
        "Call these functions first in `publish` and `subscribe`, so that no later hop refuses the message.",
        {"messages.py": ("check_message", "check_queue")},
    ),
    "Brokers that store messages": (
        "A broker driver that stores messages may implement `DurableBroker` in addition.",
        {"broker.py": ("DurableBroker",)},
    ),
    "Errors": (
        (
            "Raise the class that matches the failure ([all classes](errors.md)), and convert the errors of libraries: "
            '`raise Unreachable("acme: connection refused", hint="is it running?") from error`.'
        ),
        {"errors.py": ("MicroError",)},
    ),
}
"""For each heading, an introduction and the documented names of each file of the contract."""

TESTING: dict[str, tuple[str, ...]] = {
    "kit/driver_under_test.py": ("DriverUnderTest", "Faults"),
    "kit/harness.py": ("Harness", "context"),
    "kit/server.py": ("ServerProcess", "free_port"),
    "kit/waiting.py": ("until", "within"),
}


def page() -> str:
    """Return the text of the page."""
    lines = [
        "Import the names on this page from `micro_core.contract` or, for tests, from `micro_core.testing`. Import limits from the",
        "module in the heading of their table. The Protocols of the six roles have [pages of their own](../plugins/README.md).",
        "",
    ]
    for title, (introduction, files) in SECTIONS.items():
        lines += [f"## {title}", "", introduction, ""]
        for file, names in files.items():
            lines += sections(ROOT / "micro_core/contract" / file, names)
            rows = limits(ROOT / "micro_core/contract" / file)
            if rows:
                lines += [f"Limits (`micro_core.contract.{file.removesuffix('.py')}`):", ""]
                lines += ["| limit | value | meaning |", "|---|---|---|", *rows, ""]
    lines += [
        "## In tests",
        "",
        "Install the dependencies with `pip install micro-network[testing]`. The page [conformance](../plugins/conformance.md)",
        "describes the kits and how to adapt them to a back end.",
        "",
    ]
    for file, names in TESTING.items():
        lines += sections(ROOT / "micro_core/testing" / file, names)
    return "\n".join(lines)


def sections(path: Path, names: tuple[str, ...]) -> list[str]:
    """Return the sections of these classes and functions of a file, one level below the headings of the page."""
    functions = {node.name: node for node in ast.parse(path.read_text()).body if isinstance(node, FUNCTION)}
    lines: list[str] = []
    for name in names:
        found = functions.get(name)
        section = class_sections(path, (name,)) if found is None else function_section(found)
        lines += [f"#{line}" if line.startswith("#") else line for line in section]
    return lines


FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)


def limits(path: Path) -> list[str]:
    """Return table rows for the constants `MAX_...` of a file, with the text below each of them."""
    body = ast.parse(path.read_text()).body
    rows = []
    for index, statement in enumerate(body):
        if not isinstance(statement, ast.Assign) or not ast.unparse(statement.targets[0]).startswith("MAX_"):
            continue
        below = body[index + 1] if index + 1 < len(body) else None
        is_text = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
        meaning = " ".join(str(below.value.value).split()).replace("|", "\\|") if is_text else ""  # type: ignore[union-attr]
        rows.append(f"| `{ast.unparse(statement.targets[0])}` | `{ast.unparse(statement.value)}` | {meaning} |")
    return rows
