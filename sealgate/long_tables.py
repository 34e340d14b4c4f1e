"""Tables that are too long to be read at once: a part at a time, within memory bounds.

A part of a file is found again by its `Place`, so that several processes share a file,
and one that was stopped goes on. Rows are made by what reads whole files, `tables`.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy.typing as npt

from sealgate.errors import ProfileError
from sealgate.tables import (
    UNREADABLE,
    ArrowRows,
    TextRows,
    arrow_modules,
    header_of,
    names_of_all,
    refuse_twice,
)

__all__ = ["Frame", "LongTable", "Place", "open_table"]

Array = npt.NDArray[Any]

_LINE = 16 << 20
_ROW_BYTES = 64 << 20
_FOOTER = 64 << 20
_BATCH_BYTES = 32 << 20
_READ_BYTES = 1 << 20
_BOM = b"\xef\xbb\xbf"


class Frame(Protocol):
    """Some rows of a long table, with what `sealgate.convert` takes a data frame by.

    Attributes:
        columns: their names.
    """

    columns: list[str]

    def __len__(self) -> int: ...

    def __getitem__(self, name: str) -> Any: ...

    def to_numpy(self) -> Array:
        """All columns side by side."""

    def check(self) -> None:
        """Refuse what is no table.

        Raises:
            ProfileError: a column twice, or a row with more or fewer cells.
        """

    def row(self, index: int) -> str:
        """What a row is called."""

    def raw(self, name: str) -> Any:
        """A column as the file has it."""

    def part(self, start: int, end: int) -> Frame:
        """Some of its rows."""


@dataclass(frozen=True)
class Place:
    """Some rows of a long table.

    Attributes:
        first: the number of the first one, from 0.
        rows: how many.
        start: the byte where they begin; of Parquet their first row group.
        line: how many lines are before them; of Parquet the row group behind them.
    """

    first: int
    rows: int
    start: int
    line: int


class LongTable(Protocol):
    """A file of rows, read a part at a time.

    Attributes:
        columns: their names.
    """

    columns: list[str]

    def sha256(self) -> str:
        """Of the file; of Parquet of its footer, which says where what is."""

    def places(self, rows: int) -> Iterator[Place]:
        """All of its rows in their order, so many at a time.

        Of Parquet whole row groups, until there are as many.
        """

    def none(self) -> Frame:
        """Its columns with no row."""

    def read(
        self, place: Place, columns: Sequence[str] | None, most: int
    ) -> Generator[Frame, None, None]:
        """Read some of its rows.

        Args:
            place: which.
            columns: those that are needed; None for all.
            most: rows at once.
        """


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or _first_line(error)
        raise ProfileError(f"{path}: {reason}") from None
    except UNREADABLE as error:
        raise ProfileError(f"{path}: {_first_line(error)}") from None


def open_table(path: Path, metadata: Mapping[str, Any]) -> LongTable:
    """Open a .csv or .parquet file of any length.

    Args:
        path: the file.
        metadata: the model's, which names the columns of a CSV file without a header.

    Raises:
        ProfileError: unreadable, or of another kind.
    """
    kind = path.suffix.lower()
    if kind not in (".csv", ".parquet"):
        raise ProfileError(f"{path}: expected a .csv or .parquet file")
    with _naming(path):
        return _LongCsv(path, metadata) if kind == ".csv" else _LongParquet(path)


class _Lines:
    """The lines of a CSV file from some byte on; where the next one begins.

    Whoever reads rows says in `row` where the one begins that is read.
    """

    def __init__(self, file: Any, start: int) -> None:
        file.seek(start)
        if not start and file.read(len(_BOM)) == _BOM:
            start = len(_BOM)
        file.seek(start)
        self.next = self.row = start
        self._text = io.TextIOWrapper(file, encoding="utf-8", newline="")

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._text.readline(_LINE)
        if not line:
            raise StopIteration
        if len(line) == _LINE:
            raise ProfileError(f"a line of more than {_LINE} characters")
        self.next += len(line) if line.isascii() else len(line.encode())
        if self.next - self.row > _ROW_BYTES:
            raise ProfileError(f"a row of more than {_ROW_BYTES} bytes")
        return line


class _LongCsv:
    """Rows of texts; a row may go over several lines."""

    def __init__(self, path: Path, metadata: Mapping[str, Any]) -> None:
        self._path = path
        with path.open("rb") as file:
            lines = _Lines(file, 0)
            reader = csv.reader(lines, skipinitialspace=True)
            first = next((row for row in reader if row), None)
            if first is None:
                raise ProfileError("the file is empty")
            header = header_of(first)
            self.columns = header or names_of_all(metadata, len(first))
            self._start = (lines.next, reader.line_num) if header else (0, 0)
        refuse_twice(self.columns)

    def sha256(self) -> str:
        with _naming(self._path), self._path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def none(self) -> Frame:
        return TextRows(self.columns, [])

    def _rows(self, start: int, line: int) -> Iterator[tuple[int, int, list[str]]]:
        """Each row behind the byte where the next begins, and the line it ends in."""
        with self._path.open("rb") as file:
            lines = _Lines(file, start)
            reader = csv.reader(lines, skipinitialspace=True)
            for row in reader:
                lines.row = lines.next
                if row:
                    yield lines.next, line + reader.line_num, row

    def places(self, rows: int) -> Iterator[Place]:
        with _naming(self._path):
            (start, line), first, count = self._start, 0, 0
            end, last = start, line
            for end, last, _ in self._rows(start, line):
                count += 1
                if count == rows:
                    yield Place(first, count, start, line)
                    first, count, start, line = first + count, 0, end, last
            if count:
                yield Place(first, count, start, line)

    def read(
        self, place: Place, columns: Sequence[str] | None, most: int
    ) -> Generator[Frame, None, None]:
        del columns  # a line is read as a whole
        with _naming(self._path):
            found: list[tuple[int, list[str]]] = []
            begin = place.start
            rows = islice(self._rows(place.start, place.line), place.rows)
            for end, line, row in rows:
                found.append((line, row))
                if len(found) == most or end - begin >= _BATCH_BYTES:
                    yield TextRows(self.columns, found)
                    found, begin = [], end
            if found:
                yield TextRows(self.columns, found)


class _LongParquet:
    """Row groups; only the columns that are needed are read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._open() as file:
            self.columns = list(file.schema_arrow.names)
            self._empty = file.schema_arrow.empty_table()
        refuse_twice(self.columns)

    def sha256(self) -> str:
        with _naming(self._path), self._path.open("rb") as file:
            return hashlib.sha256(_footer(file)).hexdigest()

    def none(self) -> Frame:
        return ArrowRows(self._empty)

    def places(self, rows: int) -> Iterator[Place]:
        with _naming(self._path), self._open() as file:
            counts = [
                file.metadata.row_group(group).num_rows
                for group in range(file.metadata.num_row_groups)
            ]
        first = count = start = 0
        for group, own in enumerate(counts):
            count += own
            if count >= rows or (count and group == len(counts) - 1):
                yield Place(first, count, start, group + 1)
                first, count, start = first + count, 0, group + 1

    def read(
        self, place: Place, columns: Sequence[str] | None, most: int
    ) -> Generator[Frame, None, None]:
        arrow, _ = arrow_modules()
        first, groups = place.first, range(place.start, place.line)
        with _naming(self._path), self._open() as file:
            size = sum(file.metadata.row_group(g).total_byte_size for g in groups)
            most = max(1, min(most, _BATCH_BYTES * place.rows // max(size, 1)))
            for batch in file.iter_batches(
                most, row_groups=list(groups), columns=columns, use_threads=False
            ):
                yield ArrowRows(arrow.Table.from_batches([batch]), first)
                first += batch.num_rows

    @contextmanager
    def _open(self) -> Iterator[Any]:
        arrow, parquet = arrow_modules()
        try:
            # Pages as they are needed, and not a whole row group at once.
            with parquet.ParquetFile(
                self._path, pre_buffer=False, buffer_size=_READ_BYTES
            ) as file:
                yield file
        except arrow.ArrowException as error:
            raise ProfileError(str(error).partition("\n")[0]) from None


def _footer(file: Any) -> bytes:
    """What a Parquet file says of itself, with its size before it."""
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - 8))
    tail = file.read(8)
    length = int.from_bytes(tail[:4], "little")
    if tail[4:] != b"PAR1" or not 0 < length <= min(_FOOTER, size - 8):
        raise ProfileError("not a Parquet file")
    file.seek(size - 8 - length)
    return b"".join((size.to_bytes(8, "big"), file.read(length)))


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
