"""The reference pages of the roles: a written introduction, the docstrings of the contract, and the checks of the kit."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from pathlib import Path

from docstrings import markdown

from micro_core.contract import Role
from micro_core.testing import CAPABILITIES, Conformance, Faults
from micro_core.testing.kit.conformance import requirements_of
from micro_core.testing.verify import KITS

ROOT = Path(__file__).parents[1]
SPEC = ROOT / "micro_core" / "contract"

CLASSES = {
    Role.REGISTRY: {
        "registry.py": (
            *("Registry", "RegistryWatch", "Instance", "Endpoint", "EndpointKind"),
            *("RegistryEvent", "RegistryEventKind"),
        ),
        "watching.py": ("WatchSet",),
    },
    Role.TRANSPORT: {"transport.py": ("Transport", "Listener", "Socket", "SocketReceiver")},
    Role.BROKER: {"broker.py": ("Broker", "Subscription", "Message")},
    Role.TUNNEL: {
        "tunnel.py": ("LinkDriver", "Link", "LinkReceiver", "Priority"),
        "transport_reports.py": ("ReportsLoss", "ReportsSilence", "ReportsAcknowledgements"),
        "transport.py": ("Listener",),
    },
    Role.TABLE: {
        "table.py": (
            *("Table", "Route", "RouteKey", "OriginRoute", "OriginRouteKey", "Offer", "RouteQuery"),
            *("LocalRouteChanged", "OriginRouteChanged", "OffersChanged"),
        )
    },
    Role.RESOLVER: {"resolver.py": ("Resolver", "Candidate")},
}
"""For each role and file of the contract, the documented classes. The Protocol of the role is the first one."""


def pages() -> dict[str, tuple[str, str]]:
    """Return the title and the text of the page of each role, by file name."""
    return {f"role-{role.value}.md": (f"Role: {role.value}", page(role)) for role in Role}


def page(role: Role) -> str:
    """Return the text of the page of a role."""
    introduction = (ROOT / "docs" / "plugins" / "introductions" / f"{role.value}.md").read_text().strip()
    lines = [
        introduction,
        "",
        f"Entry-point group `{role.group}`, hook `{role.hook}`. `micro plugin new {role.value} NAME` creates a plugin, and the",
        "[tutorial](../plugins/write-one.md) describes the next steps. The objects that core passes to a driver, and the other",
        "names that a driver uses, are described in [the contract](contract.md).",
        "",
    ]
    for file, names in CLASSES[role].items():
        lines += class_sections(SPEC / file, names)
    lines += ["## Capabilities", ""]
    lines += [f"- `{name}`: {promise}" for name, promise in CAPABILITIES[role].items()] or [
        "There are no capabilities for this role."
    ]
    lines += [
        "",
        "A driver declares them in `Driver.capabilities`. The names of additional capabilities begin with `x-`.",
        "",
    ]
    return "\n".join([*lines, *kit_section(role)])


def class_sections(path: Path, names: tuple[str, ...]) -> list[str]:
    """Return the sections of these classes of a file, as lines."""
    tree = ast.parse(path.read_text())
    found = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    return [line for name in names for line in class_section(found[name])]


def class_section(node: ast.ClassDef) -> list[str]:
    """Return the section of a class: its docstring, fields and public methods."""
    text = markdown(ast.get_docstring(node))
    is_constructed = any(isinstance(each, ast.FunctionDef) and each.name == "__init__" for each in node.body)
    # The docstring of a class describes the arguments of its constructor.
    end = text.index("Arguments:") if is_constructed and "Arguments:" in text else len(text)
    lines = [f"## `{node.name}`", "", *"\n".join(text[:end]).rstrip().splitlines(), ""]
    fields = list(documented_fields(node))
    if fields:
        lines += [*(f"- `{text}`{': ' + meaning if meaning else ''}" for text, meaning in fields), ""]
    for method in node.body:
        if not isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if method.name == "__init__":
            lines += [f"### `{node.name}({arguments(method)})`", "", *text[end:], ""]
        elif not method.name.startswith("_") or (method.name == "__aiter__" and ast.get_docstring(method)):
            lines += function_section(method, level=3)
    return lines


def function_section(node: ast.FunctionDef | ast.AsyncFunctionDef, *, level: int = 2) -> list[str]:
    """Return the section of a function or method: its signature and docstring."""
    kind = "async " if isinstance(node, ast.AsyncFunctionDef) else ""
    is_property = any(ast.unparse(each) == "property" for each in node.decorator_list)
    result = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    signature = (
        f"{node.name}{result.replace(' ->', ':')}" if is_property else f"{kind}{node.name}({arguments(node)}){result}"
    )
    text = ast.get_docstring(node)
    return [f"{'#' * level} `{signature}`", "", *([*markdown(text), ""] if text else [])]


def arguments(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """Return the parameters of a function as in the source, without `self`."""
    return ast.unparse(node.args).removeprefix("self, ").removeprefix("self")


def documented_fields(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    """Yield the source text of each field or member, with the docstring below it."""
    for index, statement in enumerate(node.body):
        if isinstance(statement, ast.AnnAssign) and not ast.unparse(statement.target).startswith("_"):
            default = f" = {ast.unparse(statement.value)}" if statement.value is not None else ""
            text = f"{ast.unparse(statement.target)}: {ast.unparse(statement.annotation)}{default}"
        elif isinstance(statement, ast.Assign) and not ast.unparse(statement.targets[0]).startswith("_"):
            text = ast.unparse(statement)
        else:
            continue
        below = node.body[index + 1] if index + 1 < len(node.body) else None
        is_text = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
        yield text, " ".join(str(below.value.value).split()) if is_text else ""  # type: ignore[union-attr]


def kit_section(role: Role) -> list[str]:
    """Return the section about the conformance kit of a role: its checks, faults and class attributes."""
    kit = KITS[role]
    lines = [
        "## Conformance kit",
        "",
        f"Inherit from `micro_core.testing.{kit.__name__}` and supply the fixture `driver_under_test`. The kit has these checks:",
        "",
        "| check | required |",
        "|---|---|",
    ]
    checks = {name: check for name, check in inspect.getmembers(kit, inspect.isfunction) if name.startswith("test_")}
    for name, check in sorted(checks.items(), key=lambda item: (rank(item[1]), position_of(kit, item[1]))):
        lines.append(f"| {name.removeprefix('test_').replace('_', ' ')} | {requirement(check)} |")
    methods = [name for name, _ in inspect.getmembers(Faults, inspect.iscoroutinefunction)]
    lines += ["", "Implement the methods of the fault handle that the back end supports:", ""]
    lines += [f"- `{name}`: {' '.join((inspect.getdoc(getattr(Faults, name)) or '').split())}" for name in methods]
    lines += ["", "Set these class attributes to adapt the kit to a back end:", ""]
    for owner in kit.__mro__:
        if issubclass(owner, Conformance):
            body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]
            assert isinstance(body, ast.ClassDef)
            fields = [(text, meaning) for text, meaning in documented_fields(body) if meaning]
            lines += [f"- `{text.replace('ClassVar[', '').replace(']', '', 1)}`: {meaning}" for text, meaning in fields]
    return lines


def rank(check: object) -> int:
    """Return the sort key of a check: required ones first, then those of capabilities, then those that need faults."""
    requirements = requirements_of(check)
    return 2 if requirements.faults else 1 if requirements.capability else 0


def position_of(kit: type, check: object) -> tuple[int, int]:
    """Return the sort key of a check: those of the role first, then those of all kits, in the order of the source."""
    owners = [index for index, owner in enumerate(kit.__mro__) if check in vars(owner).values()]
    return (owners[0] if owners else 0, inspect.getsourcelines(check)[1])  # type: ignore[arg-type]


def requirement(check: object) -> str:
    """Return a description of the drivers for which a check is run."""
    requirements = requirements_of(check)
    conditions = [f"with `{requirements.capability}`"] if requirements.capability else []
    if requirements.faults:
        conditions.append(f"with the faults {', '.join(f'`{name}`' for name in requirements.faults)}")
    return " and ".join(conditions) or "always"
