"""Input files into arrays, for the command line."""

from __future__ import annotations

import csv
import importlib
import io
import sys
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sealgate.cells import number
from sealgate.convert import columns_of, to_arrays
from sealgate.errors import JsonError, ProfileError, TensorError
from sealgate.protocol import strict_json, tensors

__all__ = [
    "KINDS",
    "UNREADABLE",
    "ArrowRows",
    "Inputs",
    "TextRows",
    "arrow_modules",
    "header_of",
    "named_columns",
    "names_of_all",
    "read_inputs",
    "read_labels",
    "refuse_twice",
]

MAX_INPUT_BYTES = 256 << 20
Array = npt.NDArray[Any]

# What the readers of these formats raise on files that are damaged or hostile.
UNREADABLE = (
    ProfileError,
    JsonError,
    TensorError,
    ValueError,
    EOFError,
    KeyError,
    MemoryError,
    NotImplementedError,
    RuntimeError,
    csv.Error,
    zipfile.BadZipFile,
    zlib.error,
)


@dataclass(frozen=True)
class Inputs:
    """What a file holds for a model.

    Attributes:
        arrays: by tensor name.
        columns: of a table, as the file has them, by name; empty for other files.
    """

    arrays: Mapping[str, Array] = field(repr=False)
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict, repr=False)


def read_inputs(path: Path, metadata: Mapping[str, Any], kind: str = "") -> Inputs:
    """Read arrays by tensor name from a .json, .npz, .csv or .parquet file.

    JSON: a v2 request, an object of arrays by tensor name, or, for a model with one
    input, an array of rows. Tables: columns are matched by the header's names to the
    model's columns or to its inputs; a CSV file of numbers needs no header if the model
    has one input. Parquet: pyarrow has to be installed.

    Args:
        path: the file; ``-`` for standard input.
        metadata: the model's v2 metadata.
        kind: of `KINDS`; by default what the file's name says, and of standard input
            "csv".

    Raises:
        ProfileError: unreadable, of another kind, or it does not fit the model.
    """
    kind = kind or ("csv" if str(path) == "-" else path.suffix.lower().lstrip("."))
    reader = _READERS.get(kind)
    if reader is None:
        raise ProfileError(f"{path}: expected a .json, .npz, .csv or .parquet file")
    where = "standard input" if str(path) == "-" else str(path)
    try:
        return reader(_read(path), metadata)
    except OSError as error:
        raise ProfileError(f"{where}: {error.strerror}") from None
    except UNREADABLE as error:
        raise ProfileError(f"{where}: {error}") from None


def read_labels(path: Path) -> list[dict[str, Any]]:
    """Read tickets and labels from a .csv, .jsonl or .ndjson file.

    Of a table, the columns ``ticket``, ``label`` and, if it is there, ``group`` count;
    rows without a label or a ticket are left out.

    Args:
        path: the file; ``-`` for CSV on standard input.

    Raises:
        ProfileError: unreadable, without these columns, or without any label.
    """
    where = "standard input" if str(path) == "-" else str(path)
    try:
        data = _read(path)
        if path.suffix.lower() in (".jsonl", ".ndjson"):
            texts = (line for line in data.splitlines() if line.strip())
            rows = [strict_json.loads_object(text, max_bytes=1 << 16) for text in texts]
        else:
            (_, header), *lines = _lines(data)
            frame = TextRows([name.strip() for name in header], lines)
            frame.check()
            if not {"ticket", "label"} <= {*frame.columns}:
                raise ProfileError("expected the columns ticket and label")
            rows = frame.rows
    except OSError as error:
        raise ProfileError(f"{where}: {error.strerror}") from None
    except UNREADABLE as error:
        raise ProfileError(f"{where}: {error}") from None
    names = ("ticket", "label", "group")
    kept = [
        {name: row[name] for name in names if row.get(name, "") != ""} for row in rows
    ]
    labels = [row for row in kept if {"ticket", "label"} <= row.keys()]
    if not labels:
        raise ProfileError(f"{where}: no row has both a ticket and a label")
    return labels


def _read(path: Path) -> bytes:
    if str(path) == "-":
        data = sys.stdin.buffer.read(MAX_INPUT_BYTES + 1)
        size = len(data)
    else:
        size = path.stat().st_size
        data = b"" if size > MAX_INPUT_BYTES else path.read_bytes()
    if size > MAX_INPUT_BYTES:
        raise ProfileError(f"more than {MAX_INPUT_BYTES} bytes")
    return data


def _read_json(data: bytes, metadata: Mapping[str, Any]) -> Inputs:
    value = strict_json.loads(data, max_bytes=MAX_INPUT_BYTES)
    if isinstance(value, dict) and isinstance(value.get("inputs"), list):
        return Inputs(tensors.decode_response({"outputs": value["inputs"]}))
    if isinstance(value, dict):
        return Inputs({name: np.asarray(rows) for name, rows in value.items()})
    return Inputs({_only_input(metadata)["name"]: np.asarray(value)})


def _read_npz(data: bytes, metadata: Mapping[str, Any]) -> Inputs:
    del metadata
    arrays = np.load(io.BytesIO(data), allow_pickle=False)
    if not isinstance(arrays, np.lib.npyio.NpzFile):
        raise ProfileError("not an .npz archive of named arrays")
    with arrays:
        return Inputs({name: np.asarray(arrays[name]) for name in arrays.files})


def _read_csv(data: bytes, metadata: Mapping[str, Any]) -> Inputs:
    lines = _lines(data)
    header = header_of(lines[0][1])
    if header is None:
        header = names_of_all(metadata, len(lines[0][1]))
    else:
        del lines[0]
    frame = TextRows(header, lines)
    frame.check()
    _tell_ignored(frame.columns, metadata)
    arrays = to_arrays(frame, metadata, row=frame.row)
    return Inputs(arrays, {name: frame.raw(name) for name in frame.columns})


def _lines(data: bytes) -> list[tuple[int, list[str]]]:
    """The cells of a CSV file, each row with the line that it ends in."""
    text = io.StringIO(data.decode("utf-8-sig"), newline="")  # any end of lines
    reader = csv.reader(text, skipinitialspace=True)
    lines = [(reader.line_num, row) for row in reader if row]
    if not lines:
        raise ProfileError("the file is empty")
    return lines


class TextRows:
    """Rows of texts with what `sealgate.convert` takes a data frame by."""

    def __init__(
        self, header: list[str], lines: Sequence[tuple[int, list[str]]]
    ) -> None:
        self.columns = header
        self._lines = lines

    def check(self) -> None:
        """Refuse what is no table.

        Raises:
            ProfileError: no row, a column twice, or a row with more or fewer cells.
        """
        refuse_twice(self.columns)
        if not self._lines:
            raise ProfileError("there is a header, but no row")
        for place, row in self._lines:
            if len(row) != len(self.columns):
                raise ProfileError(
                    f"line {place} has {len(row)} cells, not {len(self.columns)}"
                )

    def __len__(self) -> int:
        return len(self._lines)

    def part(self, start: int, end: int) -> TextRows:
        """Some of its rows."""
        return TextRows(self.columns, self._lines[start:end])

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Each row by the names of its columns."""
        return [dict(zip(self.columns, row)) for _, row in self._lines]

    def row(self, index: int) -> str:
        """Where a row ends in the file."""
        return f"line {self._lines[index][0]}"

    def raw(self, name: str) -> list[str]:
        """A column's texts."""
        place = self.columns.index(name)
        return [row[place] for _, row in self._lines]

    def __getitem__(self, name: str) -> _Column:
        return _Column(self.raw(name))

    def to_numpy(self) -> Array:
        """All columns side by side."""
        cells = np.array([row for _, row in self._lines], dtype=object)
        return cells.reshape(len(self._lines), len(self.columns))


def refuse_twice(header: Sequence[str]) -> None:
    """Refuse a column that occurs twice.

    Raises:
        ProfileError: names it.
    """
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise ProfileError(f"column {twice[0]!r} occurs twice")


class _Column:
    """Texts as an array of objects."""

    def __init__(self, cells: Sequence[str]) -> None:
        self._cells = cells

    def to_numpy(self) -> Array:
        result = np.empty(len(self._cells), dtype=object)
        result[:] = self._cells
        return result


def header_of(first: Sequence[str]) -> list[str] | None:
    """The names in a first line; None if it is a row of numbers."""
    cells = [cell for cell in first if cell.strip(" \t")]
    if all(number(cell) is not None for cell in cells):
        return None
    return [name.strip() for name in first]


def names_of_all(metadata: Mapping[str, Any], width: int) -> list[str]:
    """What columns without a header are: the model's own, if it names so many."""
    names = columns_of(_only_input(metadata))
    return names if len(names) == width else [f"{n}" for n in range(1, width + 1)]


def _tell_ignored(header: Sequence[str], metadata: Mapping[str, Any]) -> None:
    known = named_columns(header, metadata)
    ignored = [] if known is None else [name for name in header if name not in known]
    if ignored:
        print(f"ignored columns: {', '.join(ignored)}", file=sys.stderr)


def named_columns(
    header: Sequence[str], metadata: Mapping[str, Any]
) -> list[str] | None:
    """The columns that a model takes by name; None if it names none, and takes all."""
    known: dict[str, None] = {}
    for tensor in metadata["inputs"]:
        names = columns_of(tensor) or [tensor["name"]]
        if names == [tensor["name"]] and tensor["name"] not in header:
            return None
        known |= dict.fromkeys(names)
    return [*known]


def arrow_modules() -> tuple[Any, Any]:
    """pyarrow, and its module for Parquet.

    Raises:
        ProfileError: it is not installed.
    """
    try:
        return (
            importlib.import_module("pyarrow"),
            importlib.import_module("pyarrow.parquet"),
        )
    except ImportError:
        raise ProfileError("reading .parquet needs pyarrow") from None


def _read_parquet(data: bytes, metadata: Mapping[str, Any]) -> Inputs:
    arrow, parquet = arrow_modules()
    try:
        table = parquet.read_table(arrow.BufferReader(data))
        arrays = to_arrays(ArrowRows(table), metadata)
        return Inputs(arrays, {name: table[name] for name in table.column_names})
    except arrow.ArrowException as error:
        raise ProfileError(str(error).partition("\n")[0]) from None


class ArrowRows:
    """An Arrow table with what `sealgate.convert` takes a data frame by."""

    def __init__(self, table: Any, first: int = 0) -> None:
        self._table = table
        self._first = first
        self.columns: list[str] = table.column_names

    def check(self) -> None:
        """Refuse a column that occurs twice: Parquet has as many cells in each row."""
        refuse_twice(self.columns)

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def row(self, index: int) -> str:
        """What a row is called, by its number in the file."""
        return f"row {self._first + index}"

    def raw(self, name: str) -> Any:
        """A column as the file has it."""
        return self._table[name]

    def part(self, start: int, end: int) -> ArrowRows:
        """Some of its rows."""
        return ArrowRows(self._table.slice(start, end - start), self._first + start)

    def __getitem__(self, name: str) -> Any:
        column = self._table[name]
        # A dictionary is how pandas' categories are kept; numpy has none.
        kind = getattr(column.type, "value_type", None)
        return column if kind is None else column.cast(kind)

    def to_numpy(self) -> Array:
        """All columns side by side."""
        return np.stack([self[name].to_numpy() for name in self.columns], axis=1)


def _only_input(metadata: Mapping[str, Any]) -> dict[str, Any]:
    inputs: list[dict[str, Any]] = metadata["inputs"]
    if len(inputs) != 1:
        raise ProfileError("the model has several inputs; name them in JSON or npz")
    return inputs[0]


_READERS: Mapping[str, Callable[[bytes, Mapping[str, Any]], Inputs]] = {
    "csv": _read_csv,
    "json": _read_json,
    "npz": _read_npz,
    "parquet": _read_parquet,
}
KINDS = tuple(_READERS)
