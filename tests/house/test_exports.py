"""`__all__` of every module, and the one error tree."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import tomllib
import warnings
from types import ModuleType

import pytest

import models.errors
import sealgate
import sealgate.errors
import security.errors
from sealgate.errors import SealgateError
from tests.support.servers import ROOT

PACKAGES = ("sealgate", "service", "security", "models")
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): (
        path
    )
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}


def runtime_modules() -> list[str]:
    """The modules that import without the toolkit, as the import contract has them.

    Not service.app: importing it is what runs the gate.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    for contract in project["tool"]["importlinter"]["contracts"]:
        if contract["name"] == "the runtime never reaches the toolkit's libraries":
            rooms = contract["source_modules"]
    return [
        name
        for name in FILES
        if any(name == room or name.startswith(room + ".") for room in rooms)
        and name != "service.app"
    ]


RUNTIME = runtime_modules()


def exported(name: str) -> list[str] | None:
    """`__all__` as the file has it; None where there is none."""
    for node in ast.parse(FILES[name].read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    return None


def defined(name: str) -> set[str]:
    """Names of the functions and classes that a module defines at its top level."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    body = ast.parse(FILES[name].read_text()).body
    return {node.name for node in body if isinstance(node, kinds)}


def case_order(name: str) -> tuple[int, str]:
    """Constants, then classes, then functions, as the linter sorts them (RUF022)."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


def load(name: str) -> ModuleType:
    """Import a module; what the libraries below warn about is not ours to fix."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


def test_there_are_modules():
    assert {"sealgate.client", "service.routes", "models.bundle"} <= set(RUNTIME)
    assert "security.admission.gate" in RUNTIME
    assert not {"security.training.trainer", "models.export"} & set(RUNTIME)


@pytest.mark.parametrize("name", FILES)
def test_all_is_sorted(name):
    names = exported(name)
    if names is None:
        # Then nothing in it is public.
        assert all(own.startswith("_") for own in defined(name))
    else:
        assert names == sorted(set(names), key=case_order)
        assert names


@pytest.mark.parametrize("name", RUNTIME)
def test_exported_names_exist(name):
    module = load(name)
    for exported_name in exported(name) or []:
        assert hasattr(module, exported_name)
        assert not exported_name.startswith("_")


def test_the_sdk():
    assert sealgate.__all__ == [
        "Answers",
        "AsyncClient",
        "AuthenticationError",
        "Client",
        "ClientError",
        "ClockError",
        "Explanation",
        "InvalidInputError",
        "KeyRefusedError",
        "NotFoundError",
        "NotOfferedError",
        "Options",
        "OverloadedError",
        "Passport",
        "PassportError",
        "PermissionDeniedError",
        "Profile",
        "ProfileError",
        "ProofKey",
        "Proven",
        "ReceiptError",
        "ReceiptNumber",
        "RetryPolicy",
        "SealgateError",
        "ServerFailedError",
        "ServerRefusedError",
        "TensorError",
        "Ticketed",
        "TransportError",
    ]


@pytest.mark.parametrize("name", RUNTIME)
def test_every_error_roots_in_sealgate_error(name):
    module = load(name)
    for _, value in inspect.getmembers(module, inspect.isclass):
        if issubclass(value, BaseException) and value.__module__ == name:
            # A client that left is nobody's error: there is nobody to tell.
            assert issubclass(value, SealgateError) or value.__name__ == "ClientGone"


@pytest.mark.parametrize("module", [sealgate.errors, models.errors, security.errors])
def test_the_drawn_tree_is_the_tree(module):
    drawn = dict.fromkeys(re.findall(r"[├└]── (\w+)", module.__doc__))
    own = [name for name in module.__all__ if name != "SealgateError"]
    assert sorted(drawn) == sorted(own)
    # Indentation says who the parent is.
    parents = {-1: "SealgateError"}
    for line in module.__doc__.splitlines():
        match = re.search(r"[├└]── (\w+)", line)
        if match:
            depth = match.start()
            above = max(d for d in parents if d < depth)
            assert getattr(module, match[1]).__base__.__name__ == parents[above]
            parents = {d: n for d, n in parents.items() if d < depth}
            parents[depth] = match[1]
