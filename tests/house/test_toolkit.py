"""What the toolkit's wheel says it needs is what the requirements say."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest

from security.commands.missing import EXTRAS, needed
from tests.support.servers import ROOT

CLIENT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TOOLKIT = tomllib.loads((ROOT / "packaging/toolkit/pyproject.toml").read_text())
PROJECT = TOOLKIT["project"]
OPTIONAL = PROJECT["optional-dependencies"]
# Needed to make environments and wheels, and not by a command.
TOOLS = {"hatchling"}


def lines(name: str) -> set[str]:
    """Requirements of requirements/NAME.in, without comments."""
    text = (ROOT / "requirements" / f"{name}.in").read_text()
    found = (line.partition("#")[0].strip() for line in text.splitlines())
    return {line for line in found if line and not line.startswith("-")}


def name_of(requirement: str) -> str:
    return re.split(r"[<>=]", requirement, maxsplit=1)[0]


def test_the_version_is_the_clients() -> None:
    assert PROJECT["version"] == CLIENT["version"]
    assert f"sealgate=={CLIENT['version']}" in PROJECT["dependencies"]
    assert PROJECT["requires-python"] == CLIENT["requires-python"]


def test_each_requirement_is_one_of_ours() -> None:
    known = lines("serve") | lines("toolkit") | lines("dev")
    own = {line for line in PROJECT["dependencies"] if not line.startswith("sealgate")}
    assert own <= known
    for extra, wanted in OPTIONAL.items():
        assert set(wanted) <= known, extra


def test_the_extras_bring_all_that_the_repository_installs() -> None:
    base = set(CLIENT["dependencies"]) | set(PROJECT["dependencies"])
    brought = {name_of(line) for line in base}
    serving = brought | set(map(name_of, OPTIONAL["serve"]))
    assert {"httpcore[asyncio]"} <= brought
    assert {name_of(x) for x in lines("serve")} - serving == {"httpcore"}
    every = serving.union(*(map(name_of, wanted) for wanted in OPTIONAL.values()))
    assert {name_of(x) for x in lines("toolkit")} - every == TOOLS


def test_inspect_is_onnx_alone() -> None:
    assert list(map(name_of, OPTIONAL["inspect"])) == ["onnx"]


def test_each_package_is_named_with_an_extra_that_brings_it() -> None:
    """What `needs X: pip install …` says is true."""
    distributions = importlib.metadata.packages_distributions()
    assert set(EXTRAS) == {"", *OPTIONAL}
    for extra, names in EXTRAS.items():
        wanted = OPTIONAL[extra] if extra else PROJECT["dependencies"]
        brought = {canonical(name_of(line)) for line in wanted}
        found = {canonical(distributions[name][0]) for name in names if name != "uv"}
        assert found - brought == set(), extra
        missed = brought - found - {"sealgate", "uv"}
        assert missed == set(), extra


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_package_that_is_imported_is_known() -> None:
    known = {name for names in EXTRAS.values() for name in names}
    client = {"certifi", "cryptography", "h11", "httpcore", "numpy"}
    ours = {"models", "sealgate", "security", "service"}
    # Their commands name what to install; markupsafe comes with jinja2.
    others = {"markupsafe", "mlflow", "ray"}
    for path in (*ROOT.glob("security/**/*.py"), *ROOT.glob("models/**/*.py")):
        for name in imported(path) - known - client - ours - others:
            pytest.fail(f"{path.relative_to(ROOT)} imports {name}")


def imported(path: Path) -> set[str]:
    import ast
    import sys

    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found - set(sys.stdlib_module_names)


def test_of_our_own_it_is_a_bug() -> None:
    for name in ("security.nothing", "models", "tomlib", "json.nothing", None):
        error = ModuleNotFoundError("none", name=name)
        if name == "tomlib":
            assert needed(error, "scan") == "needs tomlib, which is not installed"
            continue
        with pytest.raises(ModuleNotFoundError):
            needed(error, "scan")


def test_the_scanner_is_locked() -> None:
    """What the action installs is what the two wheels need, and what builds them."""
    wanted = [*CLIENT["dependencies"], *PROJECT["dependencies"], *OPTIONAL["inspect"]]
    names = {name_of(line) for line in wanted} - {"sealgate"}
    assert lines("scanner") == names | TOOLS
    text = (ROOT / "requirements" / "scanner.txt").read_text()
    pinned = set(re.findall(r"^([a-z0-9-]+)==", text, re.MULTILINE))
    assert {name.partition("[")[0] for name in names} <= pinned
    assert text.count("--hash=sha256:") > len(pinned)
