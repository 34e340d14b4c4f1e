"""security.audit: whatever is done to a record shows, and where."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from security.audit.log import AuditLog, pseudonym
from security.audit.verify import verify_directory, verify_file
from security.errors import AuditError
from tests.mutations import JSON


@pytest.fixture
def log(tmp_path: Path) -> Path:
    audit = AuditLog(tmp_path / "audit", writer="w")
    for number in range(5):
        audit.append({"action": "infer", "rows": number, "model": None, "ok": True})
    audit.close()
    return audit.path


def test_an_untouched_log_verifies(log: Path) -> None:
    assert verify_file(log) == 5
    assert verify_directory(log.parent) == {"w.jsonl": 5}


def test_only_the_owner_reads_it(log: Path) -> None:
    assert log.stat().st_mode & 0o777 == 0o600
    assert log.parent.stat().st_mode & 0o777 == 0o700


def test_each_line_is_one_flat_record(log: Path) -> None:
    records = [json.loads(line) for line in log.read_bytes().splitlines()]
    assert [record["seq"] for record in records] == [0, 1, 2, 3, 4]
    assert [r["prev"] for r in records[1:]] == [r["hash"] for r in records[:-1]]
    assert records[0]["prev"] == "0" * 64


Lines = list[bytes]


def _replace(old: bytes, new: bytes) -> Callable[[Lines], Lines]:
    return lambda lines: [*lines[:2], lines[2].replace(old, new), *lines[3:]]


TAMPERED: list[tuple[str, Callable[[Lines], Lines], str]] = [
    ("altered", _replace(b'"rows":2', b'"rows":3'), "record 3: altered"),
    ("true for 1", _replace(b'"ok":true', b'"ok":1'), "record 3: altered"),
    ("new field", _replace(b'"ok":true', b'"ok":true,"x":1'), "record 3: altered"),
    ("no hash", _replace(b'"hash"', b'"hush"'), "record 3: altered"),
    ("odd hash", _replace(b'"hash":"', b'"hash":"\xc3\xa9'), "record 3: altered"),
    ("null hash", _replace(b'"hash":', b'"hash":null,"x":'), "record 3: altered"),
    ("two fields", _replace(b'"ok"', b'"rows"'), "record 3: not a record"),
    ("surrogate", _replace(b'"infer"', b'"\\ud800"'), "record 3: not a record"),
    ("no JSON", lambda lines: [*lines[:2], b"\n", *lines[3:]], "record 3: not a rec"),
    ("dropped", lambda lines: lines[:2] + lines[3:], "record 3: a record before"),
    ("first dropped", lambda lines: lines[1:], "record 1: a record before it"),
    (
        "moved",
        lambda lines: [lines[0], lines[2], lines[1], *lines[3:]],
        "record 2: a record before it was dropped, added or moved",
    ),
    ("twice", lambda lines: [*lines[:3], *lines[2:]], "record 4: a record before it"),
    ("cut", lambda lines: [*lines[:4], lines[4][:-10]], "record 5: cut short"),
    ("no newline", lambda lines: [*lines[:4], lines[4][:-1]], "record 5: cut short"),
    ("long", lambda lines: [*lines[:4], b" " * 70_000 + lines[4]], "record 5: not a"),
]


@pytest.mark.parametrize(
    ("change", "message"),
    [pytest.param(change, message, id=name) for name, change, message in TAMPERED],
)
def test_shows_where(log: Path, change: Callable[[Lines], Lines], message: str) -> None:
    lines = log.read_bytes().splitlines(keepends=True)
    changed = change(lines)
    assert changed != lines
    log.write_bytes(b"".join(changed))
    with pytest.raises(AuditError, match=rf"w\.jsonl, {message}"):
        verify_file(log)
    with pytest.raises(AuditError, match=rf"w\.jsonl, {message}"):
        verify_directory(log.parent)


def test_a_record_of_another_log_does_not_fit(log: Path, tmp_path: Path) -> None:
    other = AuditLog(tmp_path / "other", writer="w")
    for number in range(5):
        other.append({"action": "infer", "rows": number + 1})
    lines = log.read_bytes().splitlines(keepends=True)
    lines[3] = other.path.read_bytes().splitlines(keepends=True)[3]
    log.write_bytes(b"".join(lines))
    with pytest.raises(AuditError, match="record 4: a record before it"):
        verify_file(log)


@settings(deadline=None)
@given(data=st.data())
def test_no_byte_can_be_changed(tmp_path_factory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("audit")
    audit = AuditLog(folder, writer="w")
    for number in range(3):
        audit.append({"rows": number})
    content = bytearray(audit.path.read_bytes())
    before = [json.loads(line) for line in content.splitlines()]
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(
        st.integers(1, 255)
    )
    audit.path.write_bytes(content)
    try:
        verify_file(audit.path)
    except AuditError:
        return
    # Only what says the same: a blank, say, is not what was recorded.
    assert [json.loads(line) for line in content.splitlines()] == before


@settings(deadline=None)
@given(st.lists(JSON.map(lambda value: json.dumps(value).encode()) | st.binary()))
def test_nothing_in_a_file_breaks_the_verifier(tmp_path_factory, lines: Lines) -> None:
    path = tmp_path_factory.mktemp("audit") / "w.jsonl"
    path.write_bytes(b"\n".join(lines))
    try:
        count = verify_file(path)
    except AuditError:
        return
    assert count == 0


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(AuditError, match="none: no such folder"):
        verify_directory(tmp_path / "none")


def test_a_file_is_never_continued(log: Path) -> None:
    with pytest.raises(AuditError, match="File exists"):
        AuditLog(log.parent, writer="w")


def test_refuses_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "audit").write_text("a file")
    with pytest.raises(AuditError, match=r"File exists|Not a directory"):
        AuditLog(tmp_path / "audit", writer="w")


def test_a_write_that_fails_is_an_error() -> None:
    # The device that is always full.
    full = AuditLog.__new__(AuditLog)
    with open("/dev/full", "wb", buffering=0) as device:
        full.path, full._descriptor = Path("/dev/full"), device.fileno()
        full._previous, full._sequence, full._size = "0" * 64, 0, 0
        with pytest.raises(AuditError, match="No space left on device"):
            full.append({"rows": 1})
    assert full._sequence == 0


def test_half_a_record_is_taken_back(tmp_path: Path) -> None:
    audit = AuditLog(tmp_path, writer="w")
    audit.append({"rows": 1})
    size = audit.path.stat().st_size
    with file_size_limit(size + 20):
        with pytest.raises(AuditError, match="cut short"):
            audit.append({"rows": 2})
        assert audit.path.stat().st_size == size
        with pytest.raises(AuditError, match="cut short"):
            audit.append({"rows": 2})
    audit.append({"rows": 3})
    assert verify_file(audit.path) == 2


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """What a full disk does to a write: it ends early."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_pseudonym_needs_the_key() -> None:
    assert pseudonym(b"a" * 32, "alice") == pseudonym(b"a" * 32, "alice")
    assert pseudonym(b"a" * 32, "alice") != pseudonym(b"b" * 32, "alice")
    assert pseudonym(b"a" * 32, "alice") != pseudonym(b"a" * 32, "bob")
    assert "alice" not in pseudonym(b"a" * 32, "alice")
