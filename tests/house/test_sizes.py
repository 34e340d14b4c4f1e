"""STYLE: small modules and functions, so that a reader holds one in mind."""

from __future__ import annotations

import ast

from tests.support.servers import ROOT

MAX_MODULE_LINES = 500
MAX_FUNCTION_LINES = 60
MODULES = sorted(
    path.relative_to(ROOT).as_posix()
    for package in ("sealgate", "models", "security", "service")
    for path in (ROOT / package).rglob("*.py")
)


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its decorators and its docstring."""
    assert function.end_lineno is not None
    lines = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function) is None:
        return lines
    docstring = function.body[0]
    assert docstring.end_lineno is not None
    return lines - (docstring.end_lineno - docstring.lineno + 1)


def test_modules_and_functions_are_small() -> None:
    large = []
    for name in MODULES:
        source = (ROOT / name).read_text()
        if len(source.splitlines()) >= MAX_MODULE_LINES:
            large.append(name)
        large += [
            f"{name}: {node.name}"
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            and body_lines(node) > MAX_FUNCTION_LINES
        ]
    assert not large
