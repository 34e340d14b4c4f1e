"""security.audit: whatever is done to a record shows, and where."""

from __future__ import annotations

import asyncio
import base64
import fcntl
import json
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from sealgate.errors import NoteError
from sealgate.protocol.merkle import EMPTY_ROOT
from sealgate.protocol.notes import Checkpoint, Signer, open_checkpoint
from security.audit import checkpoints
from security.audit.group import GroupLog
from security.audit.journal import user_name
from security.audit.log import AuditLog, Due, LogLimits
from security.audit.records import FIELDS, chain, encode
from security.audit.tally import Tally, TallyLimits
from security.audit.verify import verify_log
from security.errors import AuditError
from security.key_files import pseudonym
from tests.support.disks import file_size_limit
from tests.support.mutations import JSON

KEY, OTHER_KEY = (
    Ed25519PrivateKey.from_private_bytes(bytes([fill]) * 32) for fill in (7, 8)
)
SIGNER = Signer("sealgate.test/audit", KEY)
OTHER = Signer("sealgate.test/audit", OTHER_KEY)
FILE = "w.000001.jsonl"


def records(*rows: int) -> list[bytes]:
    return [encode({"request_id": "r", "rows": number}) for number in rows]


def write(folder: Path, count: int, writer: str = "w", **limits) -> AuditLog:
    log = AuditLog(folder, writer=writer, signer=SIGNER, limits=LogLimits(**limits))
    for number in range(count):
        log.write(records(number))
    log.close()
    return log


def verify(*folders: Path, **options):
    return verify_log(folders, verifier=SIGNER.verifier, **options)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five records, one checkpoint over all of them."""
    write(tmp_path / "audit", 5)
    return tmp_path / "audit"


def test_an_untouched_log_verifies(folder: Path) -> None:
    report = verify(folder)
    assert (report.records, report.signed) == ({"w": 5}, {"w": 5})
    assert report.notices == []


def test_only_the_owner_reads_it(folder: Path) -> None:
    for path in folder.iterdir():
        assert path.stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700


def test_each_line_is_one_flat_record(folder: Path) -> None:
    lines = [json.loads(line) for line in (folder / FILE).read_bytes().splitlines()]
    assert [line["seq"] for line in lines] == [0, 1, 2, 3, 4]
    assert [line["prev"] for line in lines[1:]] == [line["hash"] for line in lines[:-1]]
    for line in lines:
        assert line.keys() == {*FIELDS, "seq", "prev", "hash"}
        assert not any(isinstance(value, dict | list) for value in line.values())


def test_a_record_has_no_other_fields() -> None:
    with pytest.raises(AuditError, match="no field 'payload' in a record"):
        encode({"payload": "x"})
    with pytest.raises(AuditError, match="not a record"):
        encode({"client": "\ud800"})


# What can be done to a file. `cut` and the like are seen by the checkpoint.

Lines = list[bytes]


def _replace(old: bytes, new: bytes) -> Callable[[Lines], Lines]:
    return lambda lines: [*lines[:2], lines[2].replace(old, new), *lines[3:]]


TAMPERED: list[tuple[str, Callable[[Lines], Lines], str]] = [
    ("altered", _replace(b'"rows":2', b'"rows":3'), f"{FILE}, record 3: altered"),
    ("new field", _replace(b'"rows":2', b'"rows":2,"x":1'), "record 3: altered"),
    ("no hash", _replace(b'"hash"', b'"hush"'), "record 3: not a record"),
    ("odd hash", _replace(b'"hash":"', b'"hash":"\xc3\xa9'), "record 3: not a record"),
    ("two fields", _replace(b'"model"', b'"rows"'), "record 3: altered"),
    ("no JSON", lambda lines: [*lines[:2], b"\n", *lines[3:]], "record 3: not a rec"),
    ("dropped", lambda lines: lines[:2] + lines[3:], "record 3: a record before"),
    (
        "moved",
        lambda lines: [lines[0], lines[2], lines[1], *lines[3:]],
        "record 2: a record before it was dropped, added or moved",
    ),
    ("twice", lambda lines: [*lines[:3], *lines[2:]], "record 4: a record before it"),
    ("first dropped", lambda lines: lines[1:], "record 1: a record before it"),
    ("last dropped", lambda lines: lines[:4], "w: records 5 to 5 are missing"),
    ("half dropped", lambda lines: lines[:2], "w: records 3 to 5 are missing"),
    ("emptied", lambda lines: [], "w: records 1 to 5 are missing"),
    ("cut", lambda lines: [*lines[:4], lines[4][:-10]], "records 5 to 5 are missing"),
    ("no newline", lambda lines: [*lines[:4], lines[4][:-1]], "records 5 to 5 are"),
    ("long", lambda lines: [*lines[:4], b" " * 70_000 + lines[4]], "record 5: not a"),
]


@pytest.mark.parametrize(
    ("change", "message"),
    [pytest.param(change, message, id=name) for name, change, message in TAMPERED],
)
def test_shows_where(
    folder: Path, change: Callable[[Lines], Lines], message: str
) -> None:
    path = folder / FILE
    lines = path.read_bytes().splitlines(keepends=True)
    changed = change(lines)
    assert changed != lines
    path.write_bytes(b"".join(changed))
    with pytest.raises(AuditError, match=message):
        verify(folder)


def test_a_chain_that_was_made_anew_is_not_what_was_signed(folder: Path) -> None:
    lines = (folder / FILE).read_bytes().splitlines(keepends=True)
    previous = json.loads(lines[0])["prev"]
    forged = []
    for number, line in enumerate(lines):
        rows = 99 if number == 2 else number
        body, digest = chain(records(rows)[0], sequence=number, previous=previous)
        assert number == 2 or number > 2 or body == line
        previous = digest.hex()
        forged.append(body)
    (folder / FILE).write_bytes(b"".join(forged))
    with pytest.raises(AuditError, match="record 5: this record or one before it"):
        verify(folder)
    # Without the key nothing is missed in the chain alone.
    assert verify_log([folder], verifier=None).records == {"w": 5}


def test_a_deleted_file(folder: Path) -> None:
    (folder / FILE).unlink()
    with pytest.raises(AuditError, match="w: records 1 to 5 are missing"):
        verify(folder)
    assert verify(folder, without=["w"]).records == {}


def test_a_checkpoint_that_was_deleted_with_its_files(folder: Path) -> None:
    write(folder, 2, writer="later")
    (folder / FILE).unlink()
    path = folder / checkpoints.FILE_NAME
    _, kept = checkpoints.split_notes(path.read_bytes())
    path.write_bytes(kept + b"\n")
    with pytest.raises(AuditError, match="note 1: a checkpoint before it was dropped"):
        verify(folder)


def old_note(folder: Path, writer: str, log: AuditLog) -> None:
    """A checkpoint as releases wrote it that bound no other writer's."""
    checkpoint = Checkpoint(f"{SIGNER.name}/{writer}", log._tree.size, log._tree.root())
    checkpoints.append_note(folder, lambda after: SIGNER.sign(checkpoint))


def test_the_log_of_an_earlier_release(tmp_path: Path) -> None:
    """Verifies as before, and says what its notes do not bind; the next one does."""
    early = AuditLog(tmp_path, writer="early")
    early.write([encode({"action": "load"}), encode({"action": "unload"})])
    old_note(tmp_path, "early", early)
    late = AuditLog(tmp_path, writer="late")
    late.write(records(3))
    old_note(tmp_path, "late", late)
    report = verify(tmp_path)
    assert report.signed == {"early": 2, "late": 1}
    (notice,) = report.notices
    assert "the last 2 are of an earlier release" in notice
    path = tmp_path / checkpoints.FILE_NAME
    first, second = checkpoints.split_notes(path.read_bytes())
    path.write_bytes(second + b"\n")
    with pytest.raises(AuditError, match="late: a checkpoint from before its start"):
        verify(tmp_path, unsigned=["early"])
    path.write_bytes(first + b"\n" + second + b"\n")
    write(tmp_path, 1, writer="new")
    assert verify(tmp_path).notices == []
    third = checkpoints.split_notes(path.read_bytes())[2]
    for kept in ([second], [first], [second, first]):
        path.write_bytes(b"".join(note + b"\n" for note in [*kept, third]))
        with pytest.raises(AuditError, match=r"note \d: a checkpoint before it was"):
            verify(tmp_path)


def many(folder: Path, count: int) -> None:
    """Two writers that sign in turns."""
    logs = [AuditLog(folder, writer=name, signer=SIGNER) for name in ("a", "b")]
    for number in range(count):
        for log in logs:
            log.write(records(number))
            log.sign_checkpoint()
    for log in logs:
        log.close()


def cut_writer(folder: Path, writer: str, left: int) -> None:
    """Take away a writer's checkpoints but the first ones, and what they cover."""
    path = folder / checkpoints.FILE_NAME
    origin, kept, seen = f"{SIGNER.name}/{writer}\n".encode(), [], 0
    for note in checkpoints.split_notes(path.read_bytes()):
        seen += note.startswith(origin)
        if not note.startswith(origin) or seen <= left:
            kept.append(note + b"\n")
    path.write_bytes(b"".join(kept))
    for stored in [folder / f"{writer}.hashes", *folder.glob("log.*")]:
        stored.unlink(missing_ok=True)
    file = folder / f"{writer}.000001.jsonl"
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:left]))


def test_one_writer_cannot_be_cut_alone(tmp_path: Path) -> None:
    """94 of 96 checkpointed records of one writer went so, unseen."""
    many(tmp_path, 96)
    assert verify(tmp_path).signed == {"a": 96, "b": 96}
    cut_writer(tmp_path, "a", 2)
    with pytest.raises(AuditError, match="note 5: a checkpoint before it was dropped"):
        verify(tmp_path)


def test_only_a_common_tail_can_go_and_a_copy_shows_it(tmp_path: Path) -> None:
    many(tmp_path, 5)
    copy = (tmp_path / checkpoints.FILE_NAME).read_bytes()
    cut_writer(tmp_path, "a", 2)
    cut_writer(tmp_path, "b", 2)
    assert verify(tmp_path).signed == {"a": 2, "b": 2}
    with pytest.raises(AuditError, match="was kept elsewhere is missing here"):
        verify(tmp_path, copies=[copy])


@pytest.mark.parametrize("tail", [300, 64 << 10])
def test_a_binding_is_found_from_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tail: int
) -> None:
    """Also where half a note, or none that binds, is in what is read of the file."""
    monkeypatch.setattr(checkpoints, "_TAIL_BYTES", tail)
    old = AuditLog(tmp_path, writer="old")
    for number in range(3):
        old.write(records(number))
        old_note(tmp_path, "old", old)
    many(tmp_path, 4)
    for number in range(3):
        old.write(records(number))
        old_note(tmp_path, "old", old)
    many_more = AuditLog(tmp_path, writer="c", signer=SIGNER)
    many_more.write(records(1))
    many_more.close()
    assert verify(tmp_path).signed == {"old": 6, "a": 4, "b": 4, "c": 1}


def test_a_note_that_follows_two() -> None:
    text = Checkpoint("o", 1, bytes(32), "0" * 64).text + b"after " + b"1" * 64 + b"\n"
    data = base64.b64encode(SIGNER.verifier.key_id + KEY.sign(text)).decode()
    note = text + f"\n— {SIGNER.name} {data}\n".encode()
    with pytest.raises(NoteError, match="it follows two others"):
        open_checkpoint(note, [SIGNER.verifier])


def test_a_writer_that_never_signed(folder: Path) -> None:
    """Whoever can write the folder can make such records up."""
    made_up = AuditLog(folder, writer="x")
    made_up.write([encode({"action": "admission", "model": "m:1", "outcome": "allow"})])
    with pytest.raises(AuditError, match="x: no checkpoint covers any of its records"):
        verify(folder)
    found: dict[str, list[bool]] = {}
    report = verify(
        folder,
        unsigned=["x"],
        visit=lambda writer, r: found.setdefault(writer, []).append(r.signed),
    )
    assert report.unsigned == ["x"]
    assert found == {"w": [True] * 5, "x": [False]}
    # One that answered somebody has signed before: that is never allowed.
    made_up.write(records(1))
    with pytest.raises(AuditError, match="x: no checkpoint covers"):
        verify(folder, unsigned=["x"])


def test_records_behind_the_last_checkpoint_say_so(tmp_path: Path) -> None:
    log = AuditLog(tmp_path, writer="w", signer=SIGNER)
    log.write(records(1))
    log.sign_checkpoint()
    log.write(records(2))
    found: list[bool] = []
    verify(tmp_path, visit=lambda writer, record: found.append(record.signed))
    assert found == [True, False]


def test_all_checkpoints_deleted(folder: Path) -> None:
    (folder / checkpoints.FILE_NAME).unlink()
    with pytest.raises(AuditError, match="w: no checkpoint covers any of its records"):
        verify(folder)


def test_a_log_that_was_put_back_to_an_earlier_day(tmp_path: Path) -> None:
    folder = tmp_path / "audit"
    log = AuditLog(folder, writer="w", signer=SIGNER)
    log.write(records(0))
    log.sign_checkpoint()
    earlier = {path.name: path.read_bytes() for path in folder.iterdir()}
    log.write(records(1))
    log.close()
    copy = (folder / checkpoints.FILE_NAME).read_bytes()
    assert verify(folder, copies=[copy]).records == {"w": 2}
    for name, content in earlier.items():
        (folder / name).write_bytes(content)
    # In itself it is whole: that is what copies kept elsewhere are for.
    assert verify(folder).records == {"w": 1}
    with pytest.raises(AuditError, match="checkpoint over 2 records that was kept els"):
        verify(folder, copies=[copy])


def test_a_checkpoint_of_another_key(folder: Path) -> None:
    path = folder / checkpoints.FILE_NAME
    forged = OTHER.sign(Checkpoint("sealgate.test/audit/w", 0, EMPTY_ROOT))
    path.write_bytes(path.read_bytes() + forged + b"\n")
    with pytest.raises(AuditError, match="checkpoints, note 2: no trusted key"):
        verify(folder)


def test_checkpoints_never_shrink(folder: Path) -> None:
    path = folder / checkpoints.FILE_NAME
    small = SIGNER.sign(Checkpoint("sealgate.test/audit/w", 0, EMPTY_ROOT))
    path.write_bytes(path.read_bytes() + small + b"\n")
    with pytest.raises(AuditError, match="note 2: the log shrank"):
        verify(folder)


def test_a_record_of_another_log_does_not_fit(folder: Path, tmp_path: Path) -> None:
    other = AuditLog(tmp_path / "other", writer="w")
    other.write(records(*range(1, 6)))
    lines = (folder / FILE).read_bytes().splitlines(keepends=True)
    lines[3] = other.path.read_bytes().splitlines(keepends=True)[3]
    (folder / FILE).write_bytes(b"".join(lines))
    with pytest.raises(AuditError, match="record 4: a record before it"):
        verify(folder)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a log of three records."""
    folder = tmp_path_factory.mktemp("three")
    write(folder, 3)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@settings(deadline=None)
@given(data=st.data())
def test_no_byte_can_be_changed(
    tmp_path_factory, three: dict[str, bytes], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("audit")
    changed = data.draw(st.sampled_from(sorted(three)))
    place = data.draw(st.integers(0, len(three[changed]) - 1))
    for name, original in three.items():
        content = bytearray(original)
        if name == changed:
            content[place] ^= data.draw(st.integers(1, 255))
        (folder / name).write_bytes(content)
    with pytest.raises(AuditError):
        verify(folder)


@settings(deadline=None)
@given(st.lists(JSON.map(lambda value: json.dumps(value).encode()) | st.binary()))
def test_nothing_in_a_file_breaks_the_verifier(tmp_path_factory, lines: Lines) -> None:
    folder = tmp_path_factory.mktemp("audit")
    for name in (FILE, checkpoints.FILE_NAME):
        (folder / name).write_bytes(b"\n".join(lines))
    try:
        report = verify(folder)
    except AuditError:
        return
    assert report.records == {"w": 0}


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(AuditError, match="none: no such folder"):
        verify(tmp_path / "none")


# Rotation.


def test_files_follow_each_other(tmp_path: Path) -> None:
    write(tmp_path, 10, max_file_bytes=1500)
    files = sorted(path.name for path in tmp_path.glob("*.jsonl"))
    assert files[:2] == ["w.000001.jsonl", "w.000002.jsonl"]
    assert len(files) > 3
    assert all(path.stat().st_size <= 1500 for path in tmp_path.glob("*.jsonl"))
    assert verify(tmp_path).records == {"w": 10}
    second = (tmp_path / files[1]).read_bytes()
    (tmp_path / files[1]).unlink()
    with pytest.raises(AuditError, match=r"w\.000002\.jsonl: the file is missing"):
        verify(tmp_path)
    # What was archived elsewhere is verified with what is here.
    archive = tmp_path / "archive"
    archive.mkdir()
    (archive / files[1]).write_bytes(second)
    assert verify(archive, tmp_path).records == {"w": 10}
    (tmp_path / files[1]).write_bytes(second)
    with pytest.raises(AuditError, match="is in two folders"):
        verify(archive, tmp_path)


def test_a_file_cut_in_the_middle_of_a_log(tmp_path: Path) -> None:
    write(tmp_path, 10, max_file_bytes=1500)
    path = tmp_path / "w.000002.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(AuditError, match=r"w\.000002\.jsonl, record 3: cut short"):
        verify(tmp_path)


def test_a_file_that_is_none_of_ours(folder: Path) -> None:
    (folder / "more.jsonl").write_text("")
    with pytest.raises(AuditError, match=r"more\.jsonl: not a file of this log"):
        verify(folder)


# Failures of the disk, and crashes.


def test_a_file_is_never_continued(folder: Path) -> None:
    with pytest.raises(AuditError, match="File exists"):
        AuditLog(folder, writer="w")


def test_refuses_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "audit").write_text("a file")
    with pytest.raises(AuditError, match=r"File exists|Not a directory"):
        AuditLog(tmp_path / "audit", writer="w")


def test_a_group_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    log = AuditLog(tmp_path, writer="w", signer=SIGNER)
    log.write(records(1))
    log.sign_checkpoint()
    size = log.path.stat().st_size
    with file_size_limit(size * 2 + 20):
        for _ in range(2):
            with pytest.raises(AuditError, match="File too large"):
                log.write(records(2, 3))
            assert log.path.stat().st_size == size
    log.write(records(4))
    log.close()
    found: list[int] = []
    verify(tmp_path, visit=lambda _, record: found.append(record.fields["rows"]))
    assert found == [1, 4]


def test_a_checkpoint_that_cannot_be_written_is_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = AuditLog(tmp_path, writer="w", signer=SIGNER)
    log.write(records(1))
    with file_size_limit(10), caplog.at_level(logging.WARNING):
        log.sign_checkpoint()
    assert "no checkpoint of the audit log" in caplog.text
    assert (tmp_path / checkpoints.FILE_NAME).read_bytes() == b""
    log.close()
    assert verify(tmp_path).signed == {"w": 1}


def test_a_record_torn_by_a_crash_is_reported(folder: Path) -> None:
    path = folder / FILE
    path.write_bytes(path.read_bytes() + b'{"action":"infer","cl')
    report = verify(folder)
    assert report.records == {"w": 5}
    assert report.notices == [
        f"{FILE}, record 6: 21 bytes of a record that was never acknowledged"
    ]


def test_a_note_torn_by_a_crash_is_taken_away(folder: Path) -> None:
    path = folder / checkpoints.FILE_NAME
    before = {each: each.read_bytes() for each in folder.iterdir()}
    whole = path.read_bytes()
    for size in (1, 30, len(whole) - 1):
        path.write_bytes(whole + whole[:size])
        verify(folder)
        write(folder, 1, writer=f"after-{size}")
        assert path.read_bytes().startswith(whole + b"sealgate.test/audit/after")
        verify(folder, without=[f"after-{n}" for n in (1, 30) if n != size])
        for each in folder.iterdir():
            each.unlink()
        for each, content in before.items():
            each.write_bytes(content)


def test_many_writers_share_the_checkpoints(tmp_path: Path) -> None:
    def work(name: str) -> None:
        log = AuditLog(tmp_path, writer=name, signer=SIGNER)
        for number in range(20):
            log.write(records(number))
            log.sign_checkpoint()
        log.close()

    threads = [threading.Thread(target=work, args=(f"w{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verify(tmp_path).signed == {f"w{n}": 20 for n in range(4)}


# Groups.


def test_an_answer_waits_for_its_record(tmp_path: Path) -> None:
    log = AuditLog(tmp_path, writer="w", signer=SIGNER)
    group = GroupLog(log)

    async def one(number: int) -> None:
        await group.append({"rows": number})
        assert b'"rows":%d,' % number in log.path.read_bytes()

    async def all_of_them() -> None:
        await asyncio.gather(*map(one, range(200)))

    asyncio.run(all_of_them())
    # Another loop, as tests have them.
    asyncio.run(one(200))
    group.close([{"rows": 201}])
    assert verify(tmp_path).signed == {"w": 202}
    with pytest.raises(AuditError, match="takes no record now"):
        asyncio.run(one(202))


def test_a_request_that_is_given_up_takes_nobody_with_it(tmp_path: Path) -> None:
    group = GroupLog(AuditLog(tmp_path, writer="w"))

    async def three() -> None:
        tasks = [asyncio.create_task(group.append({"rows": n})) for n in range(3)]
        await asyncio.sleep(0)
        tasks[1].cancel()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        assert (done[0], done[2]) == (0, 2)  # the numbers of their records

    asyncio.run(three())
    group.close()
    assert verify_log([tmp_path], verifier=None).records == {"w": 3}


def test_what_cannot_be_written_is_told_to_each(tmp_path: Path) -> None:
    log = AuditLog(tmp_path, writer="w", signer=SIGNER)
    group = GroupLog(log)

    async def some(count: int) -> list[BaseException | int]:
        tasks = (group.append({"rows": n}) for n in range(count))
        return await asyncio.gather(*tasks, return_exceptions=True)

    with file_size_limit(10):
        errors = asyncio.run(some(3))
    assert [type(error) for error in errors] == [AuditError] * 3
    assert asyncio.run(some(2)) == [0, 1]
    group.close()
    assert verify(tmp_path).records == {"w": 2}


def test_records_may_be_held_in_memory(tmp_path: Path) -> None:
    log = AuditLog(tmp_path, writer="w", signer=SIGNER)
    group = GroupLog(log, max_held=2)
    with file_size_limit(10):
        for number in range(2):
            assert asyncio.run(group.append({"rows": number})) == number
        with pytest.raises(AuditError, match="File too large"):
            asyncio.run(group.append({"rows": 2}))
        assert log.path.read_bytes() == b""
    group.close()
    found: list[int] = []
    verify(tmp_path, visit=lambda _, record: found.append(record.fields["rows"]))
    assert found == [0, 1]


@pytest.mark.parametrize("sync", [False, True])
def test_no_record_waits_for_a_checkpoint(tmp_path: Path, sync: bool) -> None:
    """Another process holds the file of the checkpoints for as long as it likes."""
    limits = LogLimits(sync=sync, checkpoint_interval_s=0.01, max_file_bytes=1500)
    group = GroupLog(AuditLog(tmp_path, writer="w", signer=SIGNER, limits=limits))
    with (tmp_path / checkpoints.FILE_NAME).open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        for number in range(20):
            assert asyncio.run(group.append({"rows": number})) == number
            time.sleep(0.002)
        assert (tmp_path / checkpoints.FILE_NAME).read_bytes() == b""
        # Full files, too.
        assert len(list(tmp_path.glob("*.jsonl"))) > 3
    group.close()
    assert verify(tmp_path).signed == {"w": 20}


def test_an_idle_log_is_signed(tmp_path: Path) -> None:
    limits = LogLimits(checkpoint_interval_s=0.05)
    group = GroupLog(AuditLog(tmp_path, writer="w", signer=SIGNER, limits=limits))
    asyncio.run(group.append({"rows": 1}))
    deadline = 400
    while not (tmp_path / checkpoints.FILE_NAME).read_bytes() and deadline:
        threading.Event().wait(0.05)
        deadline -= 1
    assert verify(tmp_path).signed == {"w": 1}
    group.close()


# Bounds on what strangers cause.


def test_refusals_are_counted_beyond_the_bound() -> None:
    now = 0.0
    limits = TallyLimits(interval_s=60, singles=3, max_kinds=2)
    tally = Tally(limits, lambda: now)
    kinds = [{"reason": reason} for reason in "aabbccdd"]
    assert [tally.take(kind) for kind in kinds] == [True] * 3 + [False] * 5
    assert tally.due_in_s == 60
    assert tally.drain() == [
        {"reason": "b", "count": 1},
        {"reason": "c", "count": 2},
        {"reason": "other", "count": 2},
    ]
    assert tally.take({"reason": "a"})
    # A quiet interval ends by itself.
    tally.take({}), tally.take({})
    now = 61.0
    assert tally.due_in_s == 0
    assert tally.take({"reason": "a"})
    assert tally.due_in_s == 60


def test_a_pseudonym_needs_the_key() -> None:
    assert pseudonym(b"a" * 32, "alice") == pseudonym(b"a" * 32, "alice")
    assert pseudonym(b"a" * 32, "alice") != pseudonym(b"b" * 32, "alice")
    assert pseudonym(b"a" * 32, "alice") != pseudonym(b"a" * 32, "bob")
    assert "alice" not in pseudonym(b"a" * 32, "alice")


def test_a_log_that_cannot_be_repaired_is_given_up(tmp_path: Path) -> None:
    log = AuditLog(tmp_path, writer="w")
    log.write(records(1))
    os.close(log._descriptor)
    for _ in range(2):
        with pytest.raises(AuditError):
            log.write(records(2))
    assert log._descriptor == -1


def test_what_was_written_before_is_signed_all_the_same(tmp_path: Path) -> None:
    log = AuditLog(tmp_path, writer="w", signer=SIGNER)
    log.write(records(1))
    os.close(log._descriptor)
    with pytest.raises(AuditError):
        log.write(records(2))
    log.sign_checkpoint()
    assert verify(tmp_path).signed == {"w": 1}


def test_a_full_file_is_signed_by_whoever_signs(tmp_path: Path) -> None:
    """A record does not wait for the checkpoint of the file before."""
    limits = LogLimits(sync=False, max_file_bytes=1500)
    log = AuditLog(tmp_path, writer="w", signer=SIGNER, limits=limits)
    due: list[Due] = []
    log.on_due = due.append
    for number in range(10):
        log.write(records(number))
    assert [item.checkpoint.size for item in due] == [3, 6, 9]
    assert not log.is_signed
    # The later one first, as two threads may have it.
    for item in (due[1], due[0], due[2]):
        log.commit_checkpoint(item)
    report = verify(tmp_path)
    assert (report.signed, report.tree.size) == ({"w": 9}, 2)
    log.close()
    assert verify(tmp_path).signed == {"w": 10}


def test_who_has_no_name_is_told_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container no line of /etc/passwd need be about its user."""
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    assert user_name()
    monkeypatch.setattr("os.getuid", lambda: 4_000_000_000)
    assert user_name() == "4000000000"
