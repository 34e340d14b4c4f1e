"""New records of a log that verified, as they come.

Each is held to its chain as `verify` does in its step 3: it is whole, its hash is that
of its bytes, and it continues the record before it. No checkpoint covers what was just
written: the next `verify_log` holds it to that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from security.audit.records import MAX_RECORD_BYTES, Record, decode
from security.audit.verify import list_segments
from security.errors import AuditError

__all__ = ["Follower"]


@dataclass
class _Place:
    """How far a writer was read.

    Attributes:
        number, offset: of its file, and how many bytes of that.
        sequence, previous: what the next record must have; None, while not known.
        verified: earlier ones were read by the verification; 0 once those are passed.
    """

    number: int = 1
    offset: int = 0
    sequence: int | None = None
    previous: str | None = None
    verified: int = 0

    def follow(self, record: Record, path: Path) -> None:
        """Take the next record.

        Raises:
            AuditError: it is not the next one.
        """
        expected = (self.sequence, self.previous)
        found = (record.sequence, record.previous)
        if any(want not in (None, got) for want, got in zip(expected, found)):
            raise AuditError(f"{path.name}: a record was dropped, added or moved")
        self.sequence, self.previous = record.sequence + 1, record.digest.hex()


class Follower:
    """Reads on where a verification ended.

    Made before the log is verified, it is told each record on the way (`passed`), so
    that none falls between; then `read` gives what was added since.
    """

    def __init__(self, folder: Path) -> None:
        """Note which files there are.

        Raises:
            AuditError: no such folder, or a file of another name.
        """
        self._folder = folder
        segments = list_segments([folder])
        self._places = {
            writer: _Place(max(files)) for writer, files in segments.items()
        }

    def passed(self, writer: str, record: Record) -> None:
        """Take note of a record that was verified."""
        place = self._places.setdefault(writer, _Place())
        place.sequence = place.verified = record.sequence + 1
        place.previous = record.digest.hex()

    def read(self) -> Iterator[tuple[str, Record]]:
        """The records that were added since the last call, by writer.

        Raises:
            AuditError: names the file whose record was altered, dropped, added or
                moved.
        """
        for writer, files in sorted(list_segments([self._folder]).items()):
            place = self._places.setdefault(writer, _Place(min(files), sequence=0))
            for record in self._added(files, place):
                yield writer, record

    def _added(self, files: Mapping[int, Path], place: _Place) -> Iterator[Record]:
        while place.number in files:
            path = files[place.number]
            for line in _whole_lines(path, place):
                record = _decoded(line, path)
                if record.sequence < place.verified:
                    continue
                place.verified = 0
                place.follow(record, path)
                yield record
            # A file that has a successor was complete before it was listed.
            if place.number + 1 not in files:
                return
            place.number, place.offset = place.number + 1, 0


def _whole_lines(path: Path, place: _Place) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(place.offset)
        while line := file.readline(MAX_RECORD_BYTES):
            if not line.endswith(b"\n") and len(line) < MAX_RECORD_BYTES:
                return  # the rest of it is being written
            place.offset += len(line)
            yield line


def _decoded(line: bytes, path: Path) -> Record:
    try:
        return decode(line)
    except AuditError as error:
        raise AuditError(f"{path.name}: {error}") from None
