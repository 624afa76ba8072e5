"""Public classes and functions of core and the plugins have a docstring, which names the exceptions that the body raises."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for pattern in ("micro_core/**/*.py", "plugins/*/src/**/*.py") for path in ROOT.glob(pattern))

Function = ast.FunctionDef | ast.AsyncFunctionDef

NOT_DOCUMENTED = {"AssertionError", "NotImplementedError", "CancelledError", "StopIteration", "StopAsyncIteration"}
"""Programming errors, and signals of the language that no caller handles by name."""


@dataclass(frozen=True, slots=True)
class Definition:
    """A public class or function."""

    path: Path
    name: str
    """Dotted, with the names of the enclosing classes."""
    node: ast.ClassDef | Function

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.node.lineno}: {self.name}"


def public_definitions(path: Path, body: list[ast.stmt], prefix: str = "") -> Iterator[Definition]:
    """Yield the public classes and functions of a module or class, also those inside `if` and `try` blocks."""
    for statement in body:
        if isinstance(statement, ast.If | ast.Try):
            yield from public_definitions(path, [*statement.body, *statement.orelse], prefix)
        # The name of a check of a conformance kit (`test_...`) is a sentence, which replaces the docstring.
        if not isinstance(statement, ast.ClassDef | Function) or statement.name.startswith(("_", "test_")):
            continue
        if not is_overload_or_accessor(statement):
            yield Definition(path, prefix + statement.name, statement)
        if isinstance(statement, ast.ClassDef):
            yield from public_definitions(path, statement.body, f"{prefix}{statement.name}.")


def is_overload_or_accessor(node: ast.ClassDef | Function) -> bool:
    """Return whether the docstring belongs to another definition of the same name: of the implementation, or the getter."""
    decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
    return any(name in {"overload", "typing.overload"} or name.endswith((".setter", ".deleter")) for name in decorators)


def raised(function: Function) -> set[str]:
    """Return the names of the exception classes that the body raises directly and does not catch itself."""
    found: set[str] = set()
    pending: list[tuple[ast.AST, frozenset[str]]] = [(statement, frozenset()) for statement in function.body]
    while pending:
        node, caught = pending.pop()
        if isinstance(node, ast.ClassDef | Function | ast.Lambda):
            continue  # a nested function raises when it is called
        if isinstance(node, ast.Try):
            names = {name for handler in node.handlers for name in handled(handler)}
            pending += [(inner, caught | names) for inner in node.body]
            pending += [(inner, caught) for inner in (*node.handlers, *node.orelse, *node.finalbody)]
            continue
        if isinstance(node, ast.Raise) and node.exc is not None:
            name = raised_class(node.exc)
            if name is not None and name not in caught and "Exception" not in caught:
                found.add(name)
        pending += [(child, caught) for child in ast.iter_child_nodes(node)]
    return found - NOT_DOCUMENTED


def handled(handler: ast.ExceptHandler) -> set[str]:
    """Return the names of the exception classes in an `except` clause."""
    if handler.type is None:
        return {"Exception"}
    types = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return {ast.unparse(one).rpartition(".")[2] for one in types}


def raised_class(expression: ast.expr) -> str | None:
    """Return the name of the class in `raise Name(...)` and `raise Name`; None if the exception is the value of a variable."""
    called = expression.func if isinstance(expression, ast.Call) else expression
    name = ast.unparse(called).rpartition(".")[2]
    return name if re.fullmatch(r"[A-Z][A-Za-z0-9]*[a-z][A-Za-z0-9]*", name) else None


DEFINITIONS = [
    definition for path in SOURCES for definition in public_definitions(path, ast.parse(path.read_text()).body)
]


def test_public_classes_and_functions_have_a_docstring() -> None:
    missing = [str(definition) for definition in DEFINITIONS if not ast.get_docstring(definition.node)]
    assert missing == [], f"{len(missing)} without a docstring:\n" + "\n".join(missing)


def test_exceptions_raised_by_public_functions_are_in_their_docstrings() -> None:
    missing: list[str] = []
    for definition in DEFINITIONS:
        if isinstance(definition.node, ast.ClassDef):
            continue
        text = ast.get_docstring(definition.node) or ""
        missing += [
            f"{definition} raises {name}"
            for name in sorted(raised(definition.node))
            if not re.search(rf"\b{name}\b", text)
        ]
    assert missing == [], f"{len(missing)} exceptions are not in the docstring:\n" + "\n".join(missing)


def test_exceptions_raised_by_constructors_are_in_the_docstring_of_the_class() -> None:
    missing: list[str] = []
    for definition in DEFINITIONS:
        if not isinstance(definition.node, ast.ClassDef):
            continue
        for inner in definition.node.body:
            if isinstance(inner, Function) and inner.name in {"__init__", "__post_init__"}:
                text = (ast.get_docstring(definition.node) or "") + (ast.get_docstring(inner) or "")
                missing += [
                    f"{definition} raises {name}"
                    for name in sorted(raised(inner))
                    if not re.search(rf"\b{name}\b", text)
                ]
    assert missing == [], f"{len(missing)} exceptions are not in the docstring:\n" + "\n".join(missing)


def test_raised_exceptions_are_found_by_name() -> None:
    source = """
def f():
    try:
        raise KeyError(1)
    except KeyError as error:
        if error:
            raise contract.NotFound("x") from error
        raise
    def inner():
        raise Unrelated("x")
    raise self.error
"""
    (function,) = ast.parse(source).body
    assert isinstance(function, ast.FunctionDef)
    assert raised(function) == {"NotFound"}
