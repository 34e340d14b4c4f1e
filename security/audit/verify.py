"""Reads a log back and says which record was changed.

What is checked, in this order:

1. every checkpoint is signed by a trusted key, no writer's ever shrink, and each that
   says what it follows does follow it;
2. each writer's files are there from the first to the last, without a gap;
3. each record is whole, its hash is that of its bytes, its number and its ``prev``
   continue the record before it, over the borders of files;
4. a writer's first ``prev`` is the hash of the checkpoints as they were at some time;
5. at each checkpointed size the tree has the signed root;
6. no checkpoint covers more records than there are: the end was not cut off;
7. checkpoints that were kept elsewhere are among those that are here;
8. of every writer something is signed, unless it is allowed by name that nothing is.

Steps 9 to 12 are about the log of all writers' checkpoints: `verify_tree` has them.

What may still go unseen is a common tail: every checkpoint of every writer since some
time, with what only those cover, and the log put back to then. A copy kept elsewhere
shows that too, and so does whoever asks the witnesses. Half a record at
the end of a writer's last file is reported, not refused: a process that was killed
while it wrote leaves that, and nobody was answered on the strength of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from sealgate.errors import NoteError
from sealgate.protocol.merkle import Tree
from sealgate.protocol.notes import Checkpoint, Verifier, open_checkpoint
from security.audit import checkpoints
from security.audit.log import segment_name
from security.audit.query import made_us
from security.audit.records import MAX_RECORD_BYTES, Record, decode
from security.audit.stored_hashes import hashes_name
from security.audit.verify_tree import Demand, HashCheck, TreeReport, TreeSnapshot
from security.errors import AuditError

__all__ = ["LogReport", "list_segments", "verify_log"]

_SEGMENT = re.compile(
    r"(?P<writer>[A-Za-z0-9_-]{1,100})\.(?P<number>[0-9]{6,9})\.jsonl"
)


Visit = Callable[[str, Record], None]
Told = Callable[[int], None]


@dataclass
class LogReport:
    """What a log that verifies holds.

    Attributes:
        records: how many, by writer.
        signed: how many of them a checkpoint covers, by writer.
        unsigned: writers of which nothing is signed, and that were allowed.
        notices: what is worth a look, though nothing acknowledged is missing.
        tree: the log of all writers' checkpoints; None where there is none, as in what
            earlier releases wrote.
        ages_us: when the last record was made that a checkpoint covers, microseconds
            since 1970, by its writer and its size.
    """

    records: dict[str, int] = field(default_factory=dict)
    signed: dict[str, int] = field(default_factory=dict)
    unsigned: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    tree: TreeReport | None = None
    ages_us: dict[tuple[str, int], int] = field(default_factory=dict)


def verify_log(
    folders: Sequence[Path],
    *,
    verifier: Verifier | None,
    log_verifiers: Sequence[Verifier] = (),
    copies: Sequence[bytes] = (),
    demand: Demand | None = None,
    without: Sequence[str] = (),
    unsigned: Sequence[str] = (),
    visit: Visit = lambda writer, record: None,
    told: Told = lambda count: None,
) -> LogReport:
    """Verify a log, which may lie in several folders.

    Args:
        folders: archives first, last the one with the checkpoints.
        verifier: of checkpoints; None leaves out steps 1 and 4 to 12.
        log_verifiers: further keys that sign the log of all writers' checkpoints.
        copies: contents of checkpoint files that were kept elsewhere, of either kind.
        demand: what witnesses must have seen.
        without: writers whose files were deleted on purpose.
        unsigned: writers of which nothing need be signed, as of a process that ended
            before it signed.
        visit: is given each record, in the order of its writer.
        told: is told, record by record, how many bytes were read.

    Raises:
        AuditError: names the file and the record that was altered, dropped, added,
            moved or cut off.
    """
    report = LogReport()
    # Before the checkpoints are read: a leaf is added after its note.
    snapshot = None if verifier is None else TreeSnapshot(folders[-1])
    notes_read, signed = _read_checkpoints(folders[-1], verifier, report)
    of_tree = _check_copies(copies, signed, verifier)
    # Listed after the checkpoints are read: a running server only adds to both.
    segments = list_segments(folders)

    def notes(writer: str) -> Sequence[Checkpoint] | None:
        return None if verifier is None else signed.get(writer, [])

    chains = [
        _Chain(
            writer,
            notes(writer),
            report,
            hashes=_hashes(folders, writer) if verifier else None,
            visit=visit,
            told=told,
        )
        for writer in sorted(segments.keys() | signed.keys())
        if writer not in without
    ]
    for chain in chains:
        chain.verify(segments.get(chain.writer, {}), allowed=chain.writer in unsigned)
    if verifier is not None and snapshot is not None:
        _check_starts(chains, folders[-1])
        report.tree = snapshot.verify(
            notes_read,
            [verifier, *log_verifiers],
            copies=of_tree,
            ages_us=report.ages_us,
            demand=demand,
        )
        _notice_leaves(report)
    return report


def list_segments(folders: Sequence[Path]) -> dict[str, dict[int, Path]]:
    """The files of a log by writer and number.

    Raises:
        AuditError: no such folder, a file of another name, or one that is there twice.
    """
    result: dict[str, dict[int, Path]] = {}
    for folder in folders:
        if not folder.is_dir():
            raise AuditError(f"{folder}: no such folder")
        for path in sorted(folder.glob("*.jsonl")):
            match = _SEGMENT.fullmatch(path.name)
            if match is None:
                raise AuditError(f"{path.name}: not a file of this log")
            files = result.setdefault(match["writer"], {})
            if int(match["number"]) in files:
                raise AuditError(f"{path.name}: is in two folders")
            files[int(match["number"])] = path
    return result


def _hashes(folders: Sequence[Path], writer: str) -> Path | None:
    """The file with the hashes of a writer's tree."""
    paths = (folder / hashes_name(writer) for folder in folders)
    return next((path for path in paths if path.exists()), None)


def _notice_leaves(report: LogReport) -> None:
    if report.tree is not None and report.tree.without_leaf:
        report.notices.append(
            f"{checkpoints.FILE_NAME}: the last {report.tree.without_leaf} are not in "
            "the log yet"
        )


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """A file's lines with their numbers from 1; one without a line feed is its last."""
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_RECORD_BYTES):
            number += 1
            yield number, line


def _read_checkpoints(
    folder: Path, verifier: Verifier | None, report: LogReport
) -> tuple[Sequence[bytes], dict[str, list[Checkpoint]]]:
    """Step 1: the notes, and what each writer's say."""
    result: dict[str, list[Checkpoint]] = {}
    if verifier is None:
        return [], result
    notes = checkpoints.split_notes(_content(folder))
    loose = 0
    for number, (note, after) in enumerate(
        zip(notes, checkpoints.bindings(notes)), start=1
    ):
        where = f"{checkpoints.FILE_NAME}, note {number}"
        try:
            checkpoint = open_checkpoint(note, [verifier])
        except NoteError as error:
            raise AuditError(f"{where}: {error}") from None
        name, _, writer = checkpoint.origin.rpartition("/")
        if name != verifier.name:
            raise AuditError(f"{where}: is of another log")
        earlier = result.setdefault(writer, [])
        if earlier and earlier[-1].size > checkpoint.size:
            raise AuditError(f"{where}: the log shrank")
        if checkpoint.after not in ("", after):
            raise AuditError(
                f"{where}: a checkpoint before it was dropped, added, altered or moved"
            )
        loose = 0 if checkpoint.after else loose + 1
        earlier.append(checkpoint)
    if loose:
        report.notices.append(
            f"{checkpoints.FILE_NAME}: the last {loose} are of an earlier release, and "
            "bind no other writer's: of each writer, the end can be cut off by itself"
        )
    return notes, result


def _check_copies(
    copies: Sequence[bytes],
    signed: Mapping[str, Sequence[Checkpoint]],
    verifier: Verifier | None,
) -> list[bytes]:
    """Step 7. Returns the notes of the log of all writers, which step 11 is about."""
    here = {item for notes in signed.values() for item in notes}
    of_tree: list[bytes] = []
    for note in (note for copy in copies for note in _notes_of(copy)):
        try:
            checkpoint = open_checkpoint(note, [verifier] if verifier else [])
        except NoteError as error:
            raise AuditError(f"a copy: {error}") from None
        if verifier is not None and checkpoint.origin == verifier.name:
            of_tree.append(note)
        elif checkpoint not in here:
            raise AuditError(
                f"{checkpoint.origin}: the checkpoint over {checkpoint.size} "
                "records that was kept elsewhere is missing here"
            )
    return of_tree


def _notes_of(copy: bytes) -> list[bytes]:
    """Notes with a blank line behind each, or one that ends with its last line."""
    notes = checkpoints.split_notes(copy)
    return notes or ([copy] if copy else [])


def _check_starts(chains: Sequence[_Chain], folder: Path) -> None:
    """Step 4, read after the records: a writer may have started meanwhile."""
    states = set(checkpoints.prefix_hashes(_content(folder)))
    for chain in chains:
        if chain.start is not None and chain.start not in states:
            raise AuditError(
                f"{chain.writer}: a checkpoint from before its start was dropped, "
                "altered or moved"
            )


def _content(folder: Path) -> bytes:
    path = folder / checkpoints.FILE_NAME
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise AuditError(f"{path}: {error.strerror}") from None


class _Chain:
    """One writer's records, verified one after the other.

    Attributes:
        writer: whose.
        start: what its first record follows.
    """

    def __init__(
        self,
        writer: str,
        signed: Sequence[Checkpoint] | None,
        report: LogReport,
        *,
        hashes: Path | None,
        visit: Visit,
        told: Told,
    ) -> None:
        self.writer = writer
        self.start: str | None = None
        self._must_be_signed = signed is not None
        self._signed = list(signed or ())
        self._report = report
        self._visit, self._told = visit, told
        self._tree = Tree()
        self._hashes = HashCheck(hashes, whole=False)
        self._made_us = 0
        self._previous = ""
        self._served = False
        self._covered = self._signed[-1].size if self._signed else 0

    def verify(self, segments: Mapping[int, Path], *, allowed: bool) -> None:
        """Steps 2, 3, 5 and 6, and what is stored of the tree.

        Raises:
            AuditError: as `verify_log`.
        """
        self._report.signed[self.writer] = 0
        self._check_roots(self.writer)
        last = max(segments, default=0)
        for number in range(1, last + 1):
            if number not in segments:
                name = segment_name(self.writer, number)
                raise AuditError(f"{name}: the file is missing")
            self._verify_file(segments[number], last=number == last)
        self._hashes.end()
        size = self._report.records[self.writer] = self._tree.size
        if self._signed:
            raise AuditError(
                f"{self.writer}: records {size + 1} to {self._signed[-1].size} are "
                "missing: a checkpoint covers them"
            )
        if self._must_be_signed and size and not self._report.signed[self.writer]:
            self._accept_unsigned(size, allowed=allowed)

    def _accept_unsigned(self, size: int, *, allowed: bool) -> None:
        """Step 8. A server signs what it did at its start before it serves anybody."""
        if self._served or not allowed:
            raise AuditError(
                f"{self.writer}: no checkpoint covers any of its records"
                + ("" if self._served else " (--allow-unsigned allows it)")
            )
        self._report.unsigned.append(self.writer)
        self._report.notices.append(f"{self.writer}: its {size} records are not signed")

    def _verify_file(self, path: Path, *, last: bool) -> None:
        for number, line in read_lines(path):
            where = f"{path.name}, record {number}"
            if not line.endswith(b"\n") and len(line) < MAX_RECORD_BYTES:
                self._accept_torn(where, len(line), last=last)
                return
            try:
                record = decode(line)
            except AuditError as error:
                raise AuditError(f"{where}: {error}") from None
            self._follow(record, where)
            self._told(len(line))

    def _accept_torn(self, where: str, size: int, *, last: bool) -> None:
        if not last:
            raise AuditError(f"{where}: cut short")
        self._report.notices.append(
            f"{where}: {size} bytes of a record that was never acknowledged"
        )

    def _follow(self, record: Record, where: str) -> None:
        if self.start is None:
            self.start = self._previous = record.previous
        if (record.sequence, record.previous) != (self._tree.size, self._previous):
            raise AuditError(f"{where}: a record before it was dropped, added or moved")
        self._hashes.add(self._tree.add(record.digest))
        self._made_us = made_us(record.fields)
        self._previous = record.digest.hex()
        self._served |= record.fields.get("request_id") is not None
        self._check_roots(where)
        signed = record.sequence < self._covered
        self._visit(self.writer, replace(record, signed=signed))

    def _check_roots(self, where: str) -> None:
        """Step 5, for the checkpoints of the tree's size."""
        while self._signed and self._signed[0].size == self._tree.size:
            if self._signed.pop(0).root != self._tree.root():
                raise AuditError(
                    f"{where}: this record or one before it is not what was signed"
                )
            self._report.signed[self.writer] = self._tree.size
            self._report.ages_us[self.writer, self._tree.size] = self._made_us
