"""`audit query` for people: a table, the last records, and those that are added."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from security.audit import records
from security.audit.follow import Follower
from security.audit.log import AuditLog, LogLimits
from security.commands import audit
from security.errors import AuditError
from tests.conftest import run_security
from tests.security.audit.test_audit import FILE, SIGNER
from tests.support.live import wait_for
from tests.support.servers import ROOT, environment

DAY_US = 86_400_000_000
HOSTILE = "toy\x1b[2J\n\u202e" + "m" * 40


def record(number: int, **fields: object) -> bytes:
    made = {"time_us": 365 * DAY_US + number * 1_000_000, "request_id": f"r{number}"}
    return records.encode({"action": "infer", "outcome": "allow", **made, **fields})


def writer(home: Path, name: str, **limits: int) -> AuditLog:
    log_limits = LogLimits(sync=False, **limits)
    return AuditLog(home / "audit", writer=name, signer=SIGNER, limits=log_limits)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Two writers, whose records lie between each other's in time."""
    home = tmp_path / "home"
    for name, first in (("w", 0), ("v", 1)):
        log = writer(home, name)
        log.write([record(number, rows=number) for number in range(first, 10, 2)])
        log.close()
    (home / "audit.vkey").write_text(str(SIGNER.verifier))
    return home


def query(home: Path, *arguments: str) -> list[str]:
    result = run_security(home, "audit", "query", *arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def test_where_it_is_piped_it_is_json_lines_as_before(home: Path) -> None:
    lines = [json.loads(line) for line in query(home)]
    assert [line["rows"] for line in lines] == [1, 3, 5, 7, 9, 0, 2, 4, 6, 8]
    assert query(home, "--json") == query(home)


def test_a_table_is_by_time(home: Path) -> None:
    head, *rows = query(home, "--table")
    assert head.split() == [
        *("TIME", "(UTC)", "ACTION", "OUTCOME", "STATUS", "MODEL", "ROWS", "MS"),
        *("CLIENT", "SUBJECT", "REASON"),
    ]
    times = [f"1971-01-01 00:00:0{number}" for number in range(10)]
    assert [row[:19] for row in rows] == times
    assert all("\x1b" not in row for row in rows)


def test_the_last_ones(home: Path) -> None:
    lines = [json.loads(line) for line in query(home, "--tail", "3")]
    assert [line["rows"] for line in lines] == [7, 8, 9]
    assert len(query(home, "--table", "--tail", "2")) == 3
    assert query(home, "--since", "1971-01-01T00:00:09", "--table")[1][:19] == (
        "1971-01-01 00:00:09"
    )
    assert query(home, "--since", "2h", "--table") == []


def test_what_a_table_leaves_out_is_said(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "_TABLE_ROWS", 4)
    result = run_security(home, "audit", "query", "--table")
    assert len(result.stdout.splitlines()) == 5
    assert result.stderr.startswith("notice: 6 earlier records are left out")


@pytest.mark.parametrize("number", ["0", "-1", "x", "1_0", "9" * 30])
def test_a_number_that_is_none(home: Path, number: str) -> None:
    result = run_security(home, "audit", "query", f"--tail={number}")
    assert result.returncode == 2
    assert "a number from 1 to 1000000" in result.stderr


def test_a_strangers_words_stay_in_their_cell(home: Path) -> None:
    log = writer(home, "x")
    said = {"model": HOSTILE, "client": "\r\x07", "outcome": "refuse", "count": 35}
    log.write([record(20, **said, reason="unauthenticated")])
    log.close()
    (row,) = query(home, "--table", "--tail", "1")[1:]
    assert row.isprintable()
    assert "toy?[2J??mmmmmmmmmmmmmm…  " in row
    assert row.endswith("unauthenticated (x35)")


def test_a_record_of_other_types_is_shown_too(home: Path) -> None:
    """Who holds the key of checkpoints may write what they like; nothing breaks."""
    log = writer(home, "x")
    odd = dict.fromkeys(("time_us", "count", "latency_us", "subject", "rows"), "a")
    log.write([record(20, **odd), record(21, subject=True, model=1)])
    log.close()
    assert len(query(home, "--table", "--model", "none")) == 0
    rows = query(home, "--table", "--since", "1971-01-01T00:00:21")[1:]
    assert len(rows) == 1
    assert len(query(home, "--table")) == 13


def test_colours_are_for_terminals(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = writer(home, "x")
    log.write([record(20, outcome="refuse", reason="quota")])
    log.close()
    arguments = ("audit", "query", "--table", "--tail", "1")

    def shown(*more: str, **extra: str) -> str:
        result = run_security(home, *arguments, *more, **extra)
        return result.stdout.splitlines()[1]

    # What a terminal is, rich asks the environment too.
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert shown().startswith("\x1b[1;31m1971")
    assert "\x1b" not in shown("--no-color")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in shown()


def test_it_follows_over_the_ends_of_files(home: Path) -> None:
    log = writer(home, "x", max_file_bytes=1500)
    log.write([record(20)])
    follower = Follower(home / "audit")
    log.write([record(21)])
    # Nothing was verified: it begins with the last file of each writer.
    passed = [found.fields["request_id"] for name, found in follower.read()]
    assert passed[-2:] == ["r20", "r21"]
    for number in range(22, 30):
        log.write([record(number)])
    assert len(list((home / "audit").glob("x.*"))) > 2
    new = writer(home, "y")
    new.write([record(40)])
    found = [(name, item.fields["request_id"]) for name, item in follower.read()]
    assert found == [*(("x", f"r{number}") for number in range(22, 30)), ("y", "r40")]
    # Half a record is one that is being written.
    path = home / "audit" / "y.000001.jsonl"
    whole = path.read_bytes()
    new.write([record(41)])
    rest = path.read_bytes()[len(whole) :]
    path.write_bytes(whole + rest[:100])
    assert list(follower.read()) == []
    path.write_bytes(whole + rest)
    assert [item.fields["request_id"] for _, item in follower.read()] == ["r41"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda line: line.replace(b'"rows":7', b'"rows":8'), "altered"),
        (lambda line: b"", "a record was dropped, added or moved"),
        (lambda line: line + line, "a record was dropped, added or moved"),
        (lambda line: b"{}\n" + line, "not a record"),
        (lambda line: b"x" * 20_000 + line, "not a record"),
    ],
    ids=["altered", "dropped", "twice", "no record", "without an end"],
)
def test_what_is_followed_is_held_to_its_chain(home: Path, change, message) -> None:
    follower = Follower(home / "audit")
    list(follower.read())
    path = home / "audit" / FILE
    log = writer(home, "other")  # to make two records that would follow
    before = path.read_bytes()
    last = json.loads(before.splitlines()[-1])
    lines, previous = [], last["hash"]
    for sequence in (5, 6):
        line, digest = records.chain(
            record(30, rows=7), sequence=sequence, previous=previous
        )
        lines.append(line)
        previous = digest.hex()
    log.close()
    path.write_bytes(before + change(lines[0]) + lines[1])
    with pytest.raises(AuditError, match=message):
        list(follower.read())


def test_follow_until_it_is_interrupted(home: Path, tmp_path: Path) -> None:
    shown = tmp_path / "shown"
    command = [sys.executable, "-m", "security", "audit", "query", "--follow"]
    with shown.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--tail", "1", "--action", "infer"],
            cwd=ROOT, env=environment(home), stdout=output, stderr=subprocess.PIPE,
        )  # fmt: skip
    timer = threading.Timer(60, process.kill)
    timer.start()
    try:
        wait_for(lambda: shown.read_bytes().count(b"\n") == 1)
        log = writer(home, "x")
        log.write([record(50), record(51, action="ready"), record(52)])
        wait_for(lambda: shown.read_bytes().count(b"\n") == 3)
        os.kill(process.pid, 2)
        assert process.communicate(timeout=20) == (None, b"")
    finally:
        timer.cancel()
        process.kill()
    assert process.returncode == 0
    lines = [json.loads(line) for line in shown.read_bytes().splitlines()]
    assert [line["request_id"] for line in lines] == ["r9", "r50", "r52"]
    assert [line["signed"] for line in lines] == [True, False, False]
