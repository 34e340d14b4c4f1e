"""Answers as Parquet, CSV or JSON lines; and parts joined to one file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import orjson

from sealgate.errors import ProfileError
from sealgate.long_tables import open_table
from sealgate.output import format_csv
from sealgate.tables import arrow_modules
from security.errors import BatchError

__all__ = ["KINDS", "Table", "Writer", "forced", "join_parts", "open_writer"]

KINDS = (".parquet", ".csv", ".jsonl")
_GROUP_ROWS = 1 << 17
_GROUP_BYTES = 128 << 20
_COPY_BYTES = 1 << 20

Table = Mapping[str, Sequence[Any]]


class Writer(Protocol):
    """Writes tables of the same columns, one after the other."""

    def write(self, table: Table) -> None:
        """Write some rows."""

    def close(self) -> None:
        """End the file."""


def open_writer(path: Path, kind: str) -> Writer:
    """Open a part's file.

    Raises:
        BatchError: pyarrow is needed, and not installed.
    """
    if kind == ".parquet":
        return _Parquet(path)
    return _Lines(path, _csv if kind == ".csv" else _json_lines)


class _Lines:
    """A file of lines, of which the first part alone has a header."""

    def __init__(self, path: Path, form: Callable[[Table], bytes]) -> None:
        self._file, self._form = path.open("wb"), form

    def write(self, table: Table) -> None:
        with _writable():
            lines = self._form(table)
        self._file.write(lines)

    def close(self) -> None:
        self._file.close()


def _csv(table: Table) -> bytes:
    return format_csv(table, header=False).encode()


def _json_lines(table: Table) -> bytes:
    columns = [_plain(values) for values in table.values()]
    option = orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY
    return b"".join(
        orjson.dumps(dict(zip(table, row)), default=str, option=option)
        for row in zip(*columns)
    )


def _plain(values: Any) -> list[Any]:
    """Python's values; of half precision as what JSON has."""
    if hasattr(values, "to_pylist"):
        return list(values.to_pylist())
    if isinstance(values, np.ndarray) and values.dtype.kind == "f":
        values = values.astype(np.float64)
    return list(values.tolist() if isinstance(values, np.ndarray) else values)


class _Parquet:
    """Row groups of many batches each."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: Any = None
        self._arrow, self._parquet = _modules()
        self._waiting: list[Any] = []
        self._rows = self._bytes = 0

    def write(self, table: Table) -> None:
        made = self._arrow.table({name: self._column(v) for name, v in table.items()})
        self._waiting.append(made)
        self._rows += made.num_rows
        self._bytes += made.nbytes
        if self._rows >= _GROUP_ROWS or self._bytes >= _GROUP_BYTES:
            self._flush()

    def _column(self, values: Any) -> Any:
        texts = isinstance(values, np.ndarray) and values.dtype.kind == "O"
        if texts or isinstance(values, list):
            return self._arrow.array(values, self._arrow.string())
        return values

    def _flush(self) -> None:
        if not self._waiting:
            return
        waiting, self._waiting, self._rows, self._bytes = self._waiting, [], 0, 0
        try:
            table = self._arrow.concat_tables(waiting)
        except ValueError as error:  # pyarrow's own is one
            raise BatchError(f"answers of other columns than before: {error}") from None
        with _writable():
            if self._writer is None:
                self._writer = self._begun(table.schema)
            self._writer.write_table(table)

    def _begun(self, schema: Any) -> Any:
        # Of numbers and ids nearly each is another: with a dictionary they take four
        # times as long, and more room.
        texts = [field.name for field in schema if field.type == self._arrow.string()]
        return self._parquet.ParquetWriter(
            self._path, schema, use_dictionary=texts or False
        )

    def close(self) -> None:
        self._flush()
        if self._writer is not None:
            self._writer.close()


@contextmanager
def _writable() -> Iterator[None]:
    """One line where a value, a kept one say, has no form in a kind of file."""
    try:
        yield
    except (ValueError, TypeError, ArithmeticError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise BatchError(f"the answers cannot be written: {reason}") from None


def forced(path: Path) -> tuple[int, str]:
    """Force a file to disk; its size and SHA-256."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return file.tell(), digest


def join_parts(
    path: Path, kind: str, parts: Sequence[Path], columns: Sequence[str]
) -> None:
    """Make one file of parts, in their order.

    Args:
        path: the file.
        kind: of `KINDS`.
        parts: none where no row was answered.
        columns: of all of them.

    Raises:
        BatchError: the parts have not the same columns.
    """
    if kind == ".parquet":
        _join_parquet(path, parts)
        return
    with path.open("wb") as file:
        if kind == ".csv":
            file.write(format_csv(dict.fromkeys(columns, ())).encode())
        for part in parts:
            with part.open("rb") as source:
                while block := source.read(_COPY_BYTES):
                    file.write(block)


def _join_parquet(path: Path, parts: Sequence[Path]) -> None:
    writer = _Parquet(path)
    try:
        if not parts:
            writer.write({})
        for part in parts:
            table = open_table(part, {})
            for place in table.places(_GROUP_ROWS):
                for frame in table.read(place, None, _GROUP_ROWS):
                    writer.write({name: frame.raw(name) for name in table.columns})
    except ValueError as error:  # pyarrow's own is one
        raise BatchError(f"the parts cannot be joined: {error}") from None
    finally:
        writer.close()


def _modules() -> tuple[Any, Any]:
    try:
        return arrow_modules()
    except ProfileError:
        raise BatchError("writing .parquet needs pyarrow") from None
