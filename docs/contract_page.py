"""The reference page of what a driver's author uses besides the Protocol of a role: `micro_core.contract`, `micro_core.testing`."""

from __future__ import annotations

import ast
from pathlib import Path

from roles import class_sections, function_section

ROOT = Path(__file__).parents[1]

SECTIONS: dict[str, tuple[str, dict[str, tuple[str, ...]]]] = {
    "Describing a driver": (
        "What the hook returns: core reads it without building anything.",
        {"driver.py": ("Driver", "Role", "option", "NoOptions")},
    ),
    "What core lends": (
        (
            "The second argument of `create`. Time, chance, the log and the counters come from here, so that "
            "a test can hand in its own."
        ),
        {"driver.py": ("DriverContext", "Counters", "CountersInMemory"), "clock.py": ("Clock", "Random")},
    ),
    "Records of a registry": (
        (
            "`register` checks with `check_instance`, keeps `instance_to_dict` of the result, and whatever comes back from "
            "outside goes through `instance_from_dict`."
        ),
        {"records.py": ("check_instance", "instance_to_dict", "instance_from_dict")},
    ),
    "Watches of a registry": (
        "Events, and the bounded queues in which they wait for watchers.",
        {"watching.py": ("changes", "WatchSet", "WatchQueue")},
    ),
    "Routes of a table": ("", {"route_index.py": ("RouteIndex",)}),
    "Messages of a broker": (
        "`publish` and `subscribe` check before anything is sent, so that no hop behind them has to refuse.",
        {"messages.py": ("check_message", "check_queue")},
    ),
    "Errors": (
        (
            "Raise the class that matches the failure ([all classes](errors.md)), and convert the errors of libraries: "
            '`raise Unreachable("acme: connection refused", hint="is it running?") from error`.'
        ),
        {"errors.py": ("MicroError",)},
    ),
}
"""For each heading: a sentence, and the documented names of each file of the contract."""

TESTING: dict[str, tuple[str, ...]] = {
    "kit/driver_under_test.py": ("DriverUnderTest", "Faults"),
    "kit/harness.py": ("Harness", "context"),
    "kit/server.py": ("ServerProcess", "free_port"),
    "kit/waiting.py": ("until", "within"),
}


def page() -> str:
    lines = [
        "Import the names on this page from `micro_core.contract` or, for tests, from `micro_core.testing`, and bounds from the named",
        "module. The Protocols of the six roles have [pages of their own](../plugins/README.md).",
        "",
    ]
    for title, (sentence, files) in SECTIONS.items():
        lines += [f"## {title}", "", *([sentence, ""] if sentence else [])]
        for file, names in files.items():
            lines += sections(ROOT / "micro_core/contract" / file, names)
            rows = bounds(ROOT / "micro_core/contract" / file)
            if rows:
                lines += [f"Bounds (`micro_core.contract.{file.removesuffix('.py')}`):", ""]
                lines += ["| bound | value | why |", "|---|---|---|", *rows, ""]
    lines += [
        "## In tests",
        "",
        "`pip install micro-network[testing]`. The kits, and how to adapt them to a back end, are described in",
        "[conformance](../plugins/conformance.md).",
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


def bounds(path: Path) -> list[str]:
    """Return table rows for the constants `MAX_...` of a file, with the text below each of them."""
    body = ast.parse(path.read_text()).body
    rows = []
    for index, statement in enumerate(body):
        if not isinstance(statement, ast.Assign) or not ast.unparse(statement.targets[0]).startswith("MAX_"):
            continue
        below = body[index + 1] if index + 1 < len(body) else None
        is_text = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
        why = " ".join(str(below.value.value).split()).replace("|", "\\|") if is_text else ""  # type: ignore[union-attr]
        rows.append(f"| `{ast.unparse(statement.targets[0])}` | `{ast.unparse(statement.value)}` | {why} |")
    return rows
