"""What pages and rooms say of the house is so: every name they give is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.support.servers import ROOT

PACKAGES = ("sealgate", "models", "security", "service")
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
ROOMS = sorted(
    file.parent for name in PACKAGES for file in (ROOT / name).rglob("__init__.py")
)
SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
PATH = re.compile(rf"(?:{'|'.join(PACKAGES)})/[\w./{{}},-]*")
DOTTED = re.compile(rf"(?:{'|'.join(PACKAGES)})(?:\.\w+)+")
BRACES = re.compile(r"\{([^{}]*)\}")
ROW = re.compile(r"^(\w+(?:, \w+)*) {2,}\S", re.MULTILINE)
# A setting, and the file it is in.
OTHERS = {"service.models", "service.toml"}
# Groups of entry points, which other packages fill.
OTHERS |= {"sealgate.attesters", "sealgate.attestation_verifiers"}
# Attributes of spans; tests/service/telemetry/test_exports.py holds them to the server.
OTHERS |= {
    f"sealgate.{name}"
    for name in ("model", "model_version", "request_id", "rows", "sealed")
}


def expanded(path: str) -> list[str]:
    """The paths that ``a/{b,c}.py`` stands for."""
    braces = BRACES.search(path)
    if braces is None:
        return [path]
    return [path.replace(braces[0], part.strip(), 1) for part in braces[1].split(",")]


def members(body: list[ast.stmt]) -> dict[str, ast.stmt]:
    """What a module or a class defines, and what a module hands on."""
    found: dict[str, ast.stmt] = {}
    for node in body:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                found[node.name] = node
            case ast.Assign(targets=[ast.Name(name)]):
                found[name] = node
                if name == "__all__":
                    found |= dict.fromkeys(ast.literal_eval(node.value), node)
            case ast.AnnAssign(target=ast.Name(name)):
                found[name] = node
    return found


def exists(name: str, root: Path = ROOT) -> bool:
    """Whether a dotted name is a module, or something that a module defines."""
    place, parts = root, name.split(".")
    while parts and (place / parts[0]).is_dir():
        place /= parts.pop(0)
    file = place / "__init__.py"
    if parts and (place / f"{parts[0]}.py").is_file():
        file = place / f"{parts.pop(0)}.py"
    if not file.is_file():
        return False
    body = ast.parse(file.read_text(encoding="utf-8")).body
    for part in parts:
        node = members(body).get(part)
        if node is None:
            return False
        body = node.body if isinstance(node, ast.ClassDef) else []
    return True


def missing(text: str, root: Path = ROOT) -> list[str]:
    """Names between backticks that lead nowhere."""
    wrong = []
    for span in SPAN.findall(text):
        if PATH.fullmatch(span):
            wrong += [path for path in expanded(span) if not (root / path).exists()]
        elif DOTTED.fullmatch(span) and span not in OTHERS and not exists(span, root):
            wrong.append(span)
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_on_pages_exist(page: Path) -> None:
    assert missing(page.read_text(encoding="utf-8")) == []


def test_the_walks_are_there() -> None:
    """An empty page would have no wrong name either."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert len(set(filter(DOTTED.fullmatch, SPAN.findall(text)))) > 60


@pytest.mark.parametrize(
    "name",
    [
        "service/guards.py",
        "security/access/{dpop,revocations}.py",
        "service.guards",
        "service.guard.Guard.replies",
        "security.admission.gate.verify_all",
    ],
)
def test_a_wrong_name_is_found(name: str) -> None:
    assert missing(f"By `{name}`, as it was.")
    assert not missing("By `service/guard.py`, `service.guard.Guard.answer`.")


def modules(room: Path) -> set[str]:
    """Modules and rooms in a room; `__main__` is how it is started."""
    files = {file.stem for file in room.glob("*.py")} - {"__init__", "__main__"}
    return files | {file.parent.name for file in room.glob("*/__init__.py")}


def unlike(text: str, present: set[str]) -> set[str]:
    """Modules that a map leaves out, and rows of it that are about none."""
    rows = {name.strip() for row in ROW.findall(text) for name in row.split(",")}
    return (rows - present) | {
        name for name in present if not re.search(rf"\b{name}\b", text)
    }


@pytest.mark.parametrize(
    "room", ROOMS, ids=lambda room: room.relative_to(ROOT).as_posix()
)
def test_a_room_says_what_it_holds(room: Path) -> None:
    text = (room / "__init__.py").read_text(encoding="utf-8")
    assert unlike(ast.get_docstring(ast.parse(text)) or "", modules(room)) == set()


def test_a_wrong_map_is_found() -> None:
    text = "A room.\n\nkeys, locks  what opens\ndoors  what is opened"
    assert unlike(text, {"keys", "locks", "doors"}) == set()
    assert unlike(text, {"keys", "locks", "doors", "walls"}) == {"walls"}
    assert unlike(text, {"keys", "doors"}) == {"locks"}
