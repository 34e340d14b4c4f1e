"""docs/formats.md and the code name the same formats, and later ones are refused so."""

from __future__ import annotations

import ast
import base64
import json
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from models.manifest import Manifest
from models.report import Report
from sealgate.errors import SealgateError
from sealgate.protocol import dsse, sealedfile
from sealgate.protocol.receipts import Receipt
from sealgate.protocol.signedkeys import verify_keys_v2
from sealgate.protocol.statement import (
    Statement,
    TestResult,
    VerificationSummary,
    Waiver,
)
from sealgate.protocol.versions import unread
from security.admission.contents import LOCK_FILE, read_lock
from security.admission.plan import Plan
from security.admission.policy import parse_policy
from security.admission.trust import parse_trust
from security.assessment.results.report import ScanReport
from security.monitoring.release import Release
from tests.support.servers import ROOT

FIXTURES = ROOT / "tests" / "fixtures"
PAGE = (ROOT / "docs" / "formats.md").read_text()
HEAD = "| format | identifier | written by | read by | fixture | release 0.1 |"
IDENTIFIER = re.compile(
    r"https://(?:sealgate\.dev|in-toto\.io|slsa\.dev|model_signing)/[\w./-]*v[\d.]*"
    r"|application/vnd\.[\w.+-]+|c2sp\.org/[\w-]+@v\d+|sealgate\.dev/[\w-]+(?:@v\d+)?"
    r"|(?:cosignature|subtree)/v\d+|SGSEAL"
)
_KEY_ID = rb"\+[0-9a-f]{8}\+"
MODULE = re.compile(r"[a-z_]+(?:\.[a-z_]+)+")
# Its version is put behind it by the class that has the versions.
PARTS = {
    "https://sealgate.dev/sealed-file/v": {
        item.schema for item in sealedfile.FORMATS.values()
    }
}


@cache
def identifiers() -> dict[str, set[str]]:
    """What constants of the code are identifiers of formats, and where they stand."""
    found: dict[str, set[str]] = {}
    for room in ("models", "sealgate", "security", "service"):
        for path in sorted((ROOT / room).rglob("*.py")):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            source = path.read_text()
            if not IDENTIFIER.search(source):
                continue
            for text in constants(ast.parse(source)):
                match = IDENTIFIER.match(text.removeprefix("\xff"))
                if match is None:
                    continue
                for name in PARTS.get(match[0], {match[0]}):
                    found.setdefault(name, set()).add(module)
    return found


def constants(tree: ast.AST) -> Iterator[str]:
    """The texts of a module, but not its docstrings."""
    bare = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and id(node) not in bare:
            if isinstance(node.value, str):
                yield node.value
            elif isinstance(node.value, bytes):
                yield node.value.decode("latin-1")


def rows() -> list[list[str]]:
    tables = PAGE.split(HEAD + "\n")[1:]
    lines = [
        line for table in tables for line in table.partition("\n\n")[0].splitlines()[1:]
    ]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def named(text: str) -> set[str]:
    return {word for word in re.findall(r"`([^`]+)`", text) if IDENTIFIER.match(word)}


def test_the_tables_have_the_formats_of_the_code() -> None:
    assert named(PAGE) == set(identifiers())
    assert len(rows()) > 40


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0])
def test_each_row_is_true(row: list[str]) -> None:
    assert len(row) == 6
    assert all(row)
    _, identifier, written, read, fixture, release = row
    modules = {
        m for cell in (written, read) for m in re.findall(r"[a-z_]+(?:\.\w+)+", cell)
    }
    for module in modules:
        assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), module
    assert modules or written.startswith(("people", "release"))
    found = named(identifier)
    assert found or identifier.startswith("none: ")
    for name in found:
        assert identifiers()[name] & modules, f"{name} is not in {modules}"
    assert release.startswith(("reads", "refuses", "has none", "passes over"))
    if fixture.startswith("none: "):
        return
    for place in fixture.split(", "):
        data = contents(FIXTURES / place)
        assert data
        for name in found - {"application/vnd.sealgate.receipt"}:  # a header of HTTP
            assert any(name.encode() in item for item in data), f"{name}: {place}"


@cache
def contents(path: Path) -> list[bytes]:
    """The files of a fixture, and what lies encoded in them."""
    return list(_contents(path))


def _contents(path: Path) -> Iterator[bytes]:
    for file in [path] if path.is_file() else sorted(path.rglob("*")):
        if not file.is_file():
            continue
        data = file.read_bytes()
        yield data
        # A verifier key's name and id are no part of what it encodes.
        for text in re.findall(rb"[A-Za-z0-9+/]{40,}", re.sub(_KEY_ID, b" ", data)):
            yield base64.b64decode(text[: len(text) // 4 * 4])


# Later versions.


def payload(path: str) -> bytes:
    document = json.loads((FIXTURES / path).read_bytes())
    return base64.b64decode(document["dsseEnvelope"]["payload"])


def lock(data: bytes, folder: Path) -> object:
    path = folder / LOCK_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return read_lock(folder)


BUNDLE = "release-0.1/bundle"
ATTESTATIONS = f"{BUNDLE}/attestations"
KEYS = FIXTURES / "evidence-2" / "keyconfig" / "sealgate-keys-v2.json"

# Each as it is, what of it is of a later version, that, and its reader.
LATER: dict[str, tuple[bytes, bytes, bytes, Callable[[bytes], object]]] = {
    "Sigstore bundle": (
        (FIXTURES / ATTESTATIONS / "quality.sigstore.json").read_bytes(),
        b"bundle.v0.3",
        b"bundle.v0.12",
        lambda data: dsse.verify(data, {}),
    ),
    "statement": (
        payload(f"{ATTESTATIONS}/quality.sigstore.json"),
        b"Statement/v1",
        b"Statement/v2",
        Statement.from_json,
    ),
    "test result": (
        payload(f"{ATTESTATIONS}/quality.sigstore.json"),
        b"test-result/v0.1",
        b"test-result/v1",
        lambda data: TestResult.from_statement(Statement.from_json(data)),
    ),
    "verdict": (
        payload(f"{ATTESTATIONS}/verdict.sigstore.json"),
        b"verification_summary/v1",
        b"verification_summary/v2",
        lambda data: VerificationSummary.from_statement(Statement.from_json(data)),
    ),
    "waiver": (
        payload(
            "release-0.1/imported-bundle/attestations/waiver-membership.sigstore.json"
        ),
        b"waiver/v1",
        b"waiver/v2",
        lambda data: Waiver.from_statement(Statement.from_json(data)),
    ),
    "report": (
        (FIXTURES / BUNDLE / "evidence" / "quality.json").read_bytes(),
        b"report/v1",
        b"report/v2",
        Report.from_json,
    ),
    "manifest": (
        (FIXTURES / BUNDLE / "manifest.json").read_bytes(),
        b'"schema":"https://sealgate.dev/manifest/v1"',
        b'"new":1,"schema":"https://sealgate.dev/manifest/v2"',
        Manifest.from_json,
    ),
    "sealed file": (
        (FIXTURES / "evidence-2" / "sealed" / "model.onnx.sealed").read_bytes(),
        b"SGSEAL\x00\x02",
        b"SGSEAL\x00\x07",
        sealedfile.parse_header,
    ),
    "trust root": (
        (FIXTURES / "evidence-2" / "trust.json").read_bytes(),
        b"trust/v2",
        b"trust/v3",
        lambda data: parse_trust(data, "trust root"),
    ),
    "key configurations": (
        KEYS.read_bytes(),
        b"ohttp-keys.v2",
        b"ohttp-keys.v3",
        lambda data: verify_keys_v2(data, {}, now=0),
    ),
    "receipt": (
        next((FIXTURES / "evidence-2" / "receipts").glob("*.receipt")).read_bytes(),
        b"receipt@v1",
        b"receipt@v2",
        Receipt.decode,
    ),
    "plan": (
        (FIXTURES / "release-0.1" / "plan" / "plan.json").read_bytes(),
        b'"schema":"https://sealgate.dev/deployment/v1"',
        b'"new":1,"schema":"https://sealgate.dev/deployment/v2"',
        Plan.from_json,
    ),
    "scan": (
        (FIXTURES / "release-0.1" / "scan" / "scan.json").read_bytes(),
        b"scan/v1",
        b"scan/v2",
        ScanReport.parse,
    ),
    "policy": (
        (FIXTURES / "release-0.1" / "policy.toml").read_bytes(),
        b"version = 1",
        b"version = 2",
        lambda data: parse_policy(data, name="policy.toml"),
    ),
    "monitoring release": (
        b'{"schema":"https://sealgate.dev/monitoring-release/v1"}',
        b"release/v1",
        b"release/v2",
        Release.from_json,
    ),
}


@pytest.mark.parametrize("name", LATER)
def test_a_later_version_is_named(name: str) -> None:
    data, known, later, read = LATER[name]
    assert data.count(known) >= 1
    (number,) = re.findall(rb"(?:v|= )([0-9.]+)\"?$", later) or [b"%d" % later[-1]]
    with pytest.raises(SealgateError) as refused:
        read(data.replace(known, later, 1))
    message = f"version {number.decode()} is not known here, only "
    assert message in str(refused.value)
    assert "a newer release is needed" in str(refused.value)


def test_a_later_lock_is_named(tmp_path: Path) -> None:
    for schema, message in (
        ("https://sealgate.dev/lock/v2", "version 2 is not known here, only 1"),
        ("https://sealgate.dev/else/v2", "expected https://sealgate.dev/lock/v1"),
    ):
        data = json.dumps({"schema": schema, "models": {}}).encode()
        with pytest.raises(SealgateError, match=message):
            lock(data, tmp_path)


@pytest.mark.parametrize(
    "found", [None, 3, [], "", "v", "x" * 10**6, "https://x.example/y/v" + "9" * 999]
)
def test_what_is_no_identifier_is_not_repeated(found: object) -> None:
    assert unread(found, "https://x.example/y/v1") == "expected https://x.example/y/v1"


def test_an_earlier_version_that_never_was_needs_no_newer_release() -> None:
    for found in ("https://x.example/y/v1", "https://x.example/y/v0.9"):
        assert "newer" not in unread(found, "https://x.example/y/v2")
    assert "newer" in unread("https://x.example/y/v2.1", "https://x.example/y/v2")
