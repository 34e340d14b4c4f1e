"""Makes receipts: from a record's place in the log to a proof that it is there.

What a receipt is, callers verify by `sealgate.protocol.receipts`; this is the other
side. Nothing is kept for it beside the log: a record is found by halving its writer's
files, its writer's checkpoint by searching the deployment's log from the end, and both
proofs are read off the stored hashes. It reads only, so any process of the deployment
makes the receipt for any other's record, a writer's that has ended too.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from sealgate.errors import MerkleError, NoteError, ReceiptError
from sealgate.protocol.merkle import inclusion_proof
from sealgate.protocol.notes import Checkpoint, parse_checkpoint
from sealgate.protocol.receipts import (
    LogTrust,
    NumberSealer,
    Receipt,
    open_cosigned,
    verify_receipt,
)
from security.audit.journal import load_signer
from security.audit.records import MAX_RECORD_BYTES, Record, body, decode
from security.audit.stored_hashes import hashes_name, open_hashes
from security.audit.tree_log import TreeLog
from security.audit.witnesses import load_quorum
from security.errors import AuditError
from security.settings.audit import AuditSettings

__all__ = ["ReceiptMaker", "Recorded", "load_trust"]

_MAX_PLACES = 1024
_WRITER = re.compile(r"[A-Za-z0-9_-]{1,100}")


@dataclass(frozen=True)
class Recorded:
    """A record that a number names.

    Attributes:
        writer: whose it is.
        line: as it stands in the log.
        record: what that says.
    """

    writer: str
    line: bytes
    record: Record


def load_trust(settings: AuditSettings) -> LogTrust:
    """What this deployment's checkpoints must bear before anybody is shown them.

    Raises:
        KeyFileError, AuditError: a key cannot be read.
    """
    keys, quorum = load_signer(settings).verifiers, load_quorum(settings.witnesses)
    if quorum is None:
        return LogTrust(keys)
    return LogTrust(keys, quorum.keys, quorum.required)


class ReceiptMaker:
    """Finds records by receipts' numbers, and proves that they are in the log."""

    def __init__(self, log: TreeLog, *, numbers: NumberSealer, trust: LogTrust) -> None:
        """Nothing is read yet.

        Args:
            log: the deployment's; its folder has the writers' files.
            numbers: opens what callers were given.
            trust: what a checkpoint must bear before receipts rest on it.
        """
        self._log = log
        self._numbers = numbers
        self._trust = trust
        # Of writers: how many leaves were looked at, and the newest one of theirs.
        self._places: dict[str, tuple[int, int | None]] = {}

    def find(self, number: str) -> Recorded:
        """The record that a number names.

        Args:
            number: from anyone.

        Raises:
            ReceiptError: this deployment gave no such number, or has the record no
                more.
        """
        writer, sequence = self._numbers.open(number)
        if not _WRITER.fullmatch(writer):
            raise ReceiptError("no number of ours")
        try:
            for path in _segments(self._log.directory, writer):
                with path.open("rb") as file:
                    line = _line_at(file, sequence)
                if line is not None:
                    return Recorded(writer, line, decode(line))
        except OSError:
            pass  # as if it were not there
        raise ReceiptError("the record is not here")

    def make(self, found: Recorded) -> bytes | None:
        """The receipt for a record; None while no checkpoint covers it that may.

        Raises:
            AuditError: the log is not what it was, or cannot be read.
        """
        note = self._log.cosigned() if self._trust.required else self._log.checkpoint()
        if note is None:
            return None
        try:
            newest, _ = open_cosigned(note, self._trust)
        except NoteError:
            return None  # a witness, or a key, is missing still
        placed = self._writer_checkpoint(found.writer, newest.size)
        if placed is None or placed[2].size <= found.record.sequence:
            return None
        place, text, checkpoint = placed
        receipt = Receipt(
            body(found.line),
            text,
            self._writer_path(found, checkpoint.size),
            place,
            tuple(self._log.inclusion(place, newest.size)),
            note,
        ).encode()
        self._check(receipt)
        return receipt

    def _writer_checkpoint(
        self, writer: str, size: int
    ) -> tuple[int, bytes, Checkpoint] | None:
        """The newest one within the log's first leaves: its place and text."""
        place = self._newest_place(writer, size)
        if place is None:
            return None
        text = self._log.leaf(place)
        try:
            return place, text, parse_checkpoint(text)
        except NoteError as error:
            raise AuditError(f"leaf {place}: {error}") from None

    def _newest_place(self, writer: str, size: int) -> int | None:
        """Of a writer that ended long ago the whole log is searched, but once."""
        start, place = self._places.get(writer, (0, None))
        if start > size:
            start, place = 0, None
        prefix = f"{self._log.origin}/{writer}\n".encode()
        place = next(self._log.search(prefix, start=start, size=size), place)
        if len(self._places) >= _MAX_PLACES:
            self._places.clear()
        self._places[writer] = size, place
        return place

    def _writer_path(self, found: Recorded, size: int) -> tuple[bytes, ...]:
        path = self._log.directory / hashes_name(found.writer)
        try:
            with open_hashes(path) as read:
                return tuple(inclusion_proof(found.record.sequence, size, read))
        except MerkleError as error:
            raise AuditError(f"{path}: {error}") from None

    def _check(self, receipt: bytes) -> None:
        """A log that was changed gives no receipts; nobody has to find that out."""
        try:
            verify_receipt(receipt, self._trust, request_id=None)
        except ReceiptError as error:
            raise AuditError(f"no receipt can be made: {error}") from None


def _segments(folder: Path, writer: str) -> Iterator[Path]:
    """A writer's files that are in the folder, the newest first."""
    return iter(sorted(folder.glob(f"{writer}.*.jsonl"), reverse=True))


def _line_at(file: BinaryIO, sequence: int) -> bytes | None:
    """The line of a record in one file, found by halving it."""
    low, high = 0, os.fstat(file.fileno()).st_size
    while low < high:
        middle = (low + high) // 2
        start, line = _first_line(file, middle)
        if start >= high or not line.endswith(b"\n"):
            high = middle
            continue
        found = decode(line).sequence
        if found == sequence:
            return line
        if found < sequence:
            low = start + len(line)
        else:
            high = middle
    return None


def _first_line(file: BinaryIO, at: int) -> tuple[int, bytes]:
    """The first line that begins at an offset or after it, and where."""
    file.seek(max(at - 1, 0))
    if at > 0:
        file.readline(MAX_RECORD_BYTES)
    return file.tell(), file.readline(MAX_RECORD_BYTES)
