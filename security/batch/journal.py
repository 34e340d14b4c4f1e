"""A job's folder: what it is about, and what is done, so that it is done once.

A part is done once its line is in the journal, forced to disk, and its file is what the
line says. The order is: the answers wait under a name that readers pass over; they get
their place; the line is written. Whatever is killed in between, the part is done again,
to the same bytes.

While a job runs, it holds a lock on the folder.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.errors import BundleError
from models.files import read_regular, write_atomic
from sealgate.errors import JsonError
from sealgate.protocol import strict_json
from sealgate.protocol.versions import unread
from security.batch.work import WAITING, Done
from security.batch.writing import forced, join_parts
from security.errors import BatchError

__all__ = ["Entry", "Journal", "check_list", "open_journal", "record_path"]

SCHEMA = "https://sealgate.dev/batch/v1"
MAX_RECORD_BYTES = 256 << 20
_ABOUT, _LINES, _RECORD = "_about.json", "_parts.jsonl", "_batch.json"
_HEADER = b"file,row,reason\n"
_WHAT = {
    "root_sha256": "another model",
    "policy_sha256": "another policy",
    "inputs": "another input, or one that was changed since",
}


@dataclass(frozen=True)
class Entry:
    """What the journal says of a part that is done."""

    number: int
    rows: int
    skipped: int
    size: int
    sha256: str
    columns: tuple[str, ...]


class Journal:
    """The folder of one job, locked.

    Attributes:
        folder: where parts are written.
        done: by the number of the part.
        record: of the whole job, where it ended before; else None.
    """

    def __init__(self, out: Path, about: Mapping[str, Any]) -> None:
        self._out, self._about = out, about
        self._kind = str(about["kind"])
        self._one = bool(out.suffix)
        self.folder = _folder(out)
        self.done: dict[int, Entry] = {}
        self.record: dict[str, Any] | None = None

    def begin(self, *, resume: bool) -> None:
        """Begin, or find what is done.

        Raises:
            BatchError: something is there, and it is not to go on; or it is about
                something else.
        """
        path = record_path(self._out)
        if path.exists():
            self.record = self._same(path)
            for file in self.record["files"]:
                there = path.parent / file["name"]
                if not there.exists():
                    raise BatchError(f"{path}: {file['name']}, which it is of, is gone")
                if there.stat().st_size != file["size"]:
                    raise BatchError(f"{path}: {file['name']} is not what was written")
        known = self.folder / _ABOUT
        if known.exists():
            self._same(known)
        elif self.record is None:
            there = [*self.folder.iterdir()] or (self._one and self._out.exists())
            if there:
                raise BatchError(f"{self._out} is there, and no job that began it")
            write_atomic(known, strict_json.dumps(dict(self._about)))
        if self.record is not None:
            self._tidy_up()  # in case that it was stopped just before
        elif resume:
            self._find_done()

    def _same(self, path: Path) -> dict[str, Any]:
        try:
            data = read_regular(path, max_bytes=MAX_RECORD_BYTES)
            known = strict_json.loads_object(data, max_bytes=MAX_RECORD_BYTES)
        except (BundleError, JsonError) as error:
            raise BatchError(f"{path}: {error}") from None
        about = json.loads(json.dumps(self._about))
        for name, value in about.items():
            if known.get(name) != value:
                what = _WHAT.get(name, f"another {name}")
                if name == "schema":
                    what = f"another schema: {unread(known.get(name), SCHEMA)}"
                raise BatchError(f"{self._out}: the job there is about {what}")
        return known

    def _find_done(self) -> None:
        for path in self.folder.glob(f"{WAITING}*"):
            path.unlink(missing_ok=True)
        for line in self._lines():
            try:
                values = strict_json.loads_object(line, max_bytes=MAX_RECORD_BYTES)
                entry = Entry(**values | {"columns": tuple(values["columns"])})
            except (JsonError, KeyError, TypeError):
                continue  # half a line: killed while it was written
            if self._is_whole(entry):
                self.done[entry.number] = entry

    def _lines(self) -> list[bytes]:
        path = self.folder / _LINES
        return path.read_bytes().splitlines() if path.exists() else []

    def _is_whole(self, entry: Entry) -> bool:
        path = self._part(entry.number)
        if entry.skipped and not self._bad(entry.number).exists():
            return False
        if not entry.rows:
            return True
        if not path.exists() or path.stat().st_size != entry.size:
            return False
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == entry.sha256

    def commit(self, done: Done) -> None:
        """A part that was booked and recorded gets its place."""
        if done.refused:
            os.replace(self.folder / done.refused, self._bad(done.number))
        if done.answers:
            os.replace(self.folder / done.answers, self._part(done.number))
        entry = Entry(
            done.number, done.rows, done.skipped, done.size, done.sha256, done.columns
        )
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        descriptor = os.open(self.folder / _LINES, flags, 0o644)
        try:
            # A half line before it, of a job that was killed, stays one by itself.
            os.write(descriptor, b"\n" + strict_json.dumps(vars(entry)) + b"\n")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self.done[done.number] = entry

    def finish(self, bad: Path | None, more: Mapping[str, Any]) -> dict[str, Any]:
        """Join what is to be joined, and write the job's record; returns it.

        Args:
            bad: where the rows that were refused are listed.
            more: what else the record says.

        Raises:
            BatchError: the parts cannot be joined.
        """
        entries = [self.done[number] for number in sorted(self.done)]
        whole = [entry for entry in entries if entry.rows]
        columns = whole[0].columns if whole else ()
        if any(entry.columns != columns for entry in whole):
            raise BatchError(f"{self._out}: parts have other columns than others")
        if bad is not None:
            _write_bad(bad, [self._bad(e.number) for e in entries if e.skipped])
        files = [(self._part(e.number).name, e.size, e.sha256) for e in whole]
        if self._one:
            paths = [self._part(entry.number) for entry in whole]
            waiting = self.folder / f"{WAITING}joined"
            join_parts(waiting, self._kind, paths, columns)
            files = [(self._out.name, *forced(waiting))]
            os.replace(waiting, self._out)
        record = {
            **self._about,
            "rows": sum(entry.rows for entry in entries),
            "skipped": sum(entry.skipped for entry in entries),
            "columns": list(columns),
            "files": [dict(zip(("name", "size", "sha256"), file)) for file in files],
            **more,
        }
        write_atomic(record_path(self._out), strict_json.dumps(record))
        self._tidy_up()
        return record

    def leave(self) -> None:
        """Of a job that was stopped: what is done stays, and else nothing.

        Nor what was answered, and may not leave since a budget is spent.
        """
        ours = [f"{WAITING}*"]
        if not self.done and self.record is None:
            ours += ["part-*", "_part-*.bad", _LINES, _ABOUT]
        for path in (path for form in ours for path in self.folder.glob(form)):
            path.unlink(missing_ok=True)
        self.forget()

    def forget(self) -> None:
        """The folder, if nothing is in it."""
        with suppress(OSError):
            self.folder.rmdir()

    def _tidy_up(self) -> None:
        if self._one:
            shutil.rmtree(self.folder, ignore_errors=True)
            return
        for path in (self.folder / _LINES, self.folder / _ABOUT):
            path.unlink(missing_ok=True)
        for path in self.folder.glob("_part-*.bad"):
            path.unlink()

    def _part(self, number: int) -> Path:
        return self.folder / f"part-{number:06d}{self._kind}"

    def _bad(self, number: int) -> Path:
        return self.folder / f"_part-{number:06d}.bad"


@contextmanager
def open_journal(
    out: Path, about: Mapping[str, Any], *, resume: bool
) -> Iterator[Journal]:
    """Open a job's folder, alone.

    Args:
        out: a file by its suffix, or a folder of parts.
        about: what the job is about: what `Journal.record` is compared with.
        resume: go on with what is there.

    Raises:
        BatchError: another job holds it, or as `Journal.begin`.
    """
    about = {"schema": SCHEMA, **about}
    path = record_path(out)
    if not resume and (out.exists() or path.exists() or _folder(out).exists()):
        found = next(p for p in (out, path, _folder(out)) if p.exists())
        raise BatchError(f"{found} is there already; --resume goes on with it")
    journal = Journal(out, about)
    if not path.exists():
        journal.folder.mkdir(parents=True, exist_ok=True)
    held = journal.folder.exists()
    with _locked(journal.folder) if held else nullcontext():
        try:
            journal.begin(resume=resume)
        except BaseException:
            journal.forget()
            raise
        try:
            yield journal
        except BaseException:
            journal.leave()
            raise


def check_list(path: Path, out: Path, *, resume: bool) -> None:
    """Refuse a place for the list of bad rows where something else is, or will be.

    Args:
        path: of the list.
        out: of the job.
        resume: a list may be there, of a job that was stopped at its end.

    Raises:
        BatchError: names the place.
    """
    whole, place = Path(os.path.abspath(out)), Path(os.path.abspath(path))
    if place in (whole, record_path(whole)) or _folder(whole) in place.parents:
        raise BatchError(f"--skip-bad: {path} is where the answers go")
    if not os.path.lexists(path):
        return
    if not resume:
        raise BatchError(f"--skip-bad: {path} is there already")
    if not path.is_file() or not _begins(path, _HEADER):
        raise BatchError(f"--skip-bad: {path} is there, and no list of bad rows")


def _begins(path: Path, data: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(data)) == data


def record_path(out: Path) -> Path:
    """Where the record of a job is: beside a file, or in the folder of parts."""
    return out.with_name(f"{out.name}.batch.json") if out.suffix else out / _RECORD


def _folder(out: Path) -> Path:
    return out.with_name(f"{out.name}.parts") if out.suffix else out


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise BatchError(f"{folder}: another job writes there") from None
    try:
        yield
    finally:
        os.close(descriptor)


def _write_bad(path: Path, parts: Iterable[Path]) -> None:
    waiting = path.with_name(f"{path.name}{WAITING}")
    with waiting.open("wb") as file:
        file.write(_HEADER)
        for part in parts:
            file.write(part.read_bytes())
        file.flush()
        os.fsync(file.fileno())
    os.replace(waiting, path)
