"""Files to named arrays, within bounds, never unpickled.

CSV is decoded as one encoding and refused where it is none; npz archives are measured
before they are unpacked; a callable runs with the rights of whoever wrote the
configuration.
"""

from __future__ import annotations

import csv
import gzip
import importlib
import io
import re
import stat
import sys
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.data.columns import Table
from models.errors import DatasetError

__all__ = ["CALLABLE", "CsvFormat", "read_table"]

MAX_BYTES = 4 << 30
MAX_COLUMNS = 10_000
CALLABLE = "python:"  # begins a source that is code
# What reading an archive raises where it is damaged or hostile.
_DAMAGED = (
    ValueError,
    OSError,
    EOFError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)
# What pandas calls the numbering of a frame's rows; no column of it.
_FRAME_INDEX = re.compile(r"__index_level_[0-9]+__")


@dataclass(frozen=True)
class CsvFormat:
    """How a CSV file is written.

    Attributes:
        header: the columns' names, where the first line does not have them.
        delimiter: one character.
        encoding: of the whole file.
        comment: lines before the first one that begin with it are skipped; empty for
            none.
    """

    header: tuple[str, ...] = ()
    delimiter: str = ","
    encoding: str = "utf-8"
    comment: str = ""


def read_table(
    source: str,
    *,
    base: Path,
    layout: CsvFormat = CsvFormat(),
    max_bytes: int = MAX_BYTES,
) -> Table:
    """Read a source.

    Args:
        source: a path, from ``base``, or ``python:package.module:function``.
        base: a folder.
        layout: of a CSV file.
        max_bytes: of the file, unpacked.

    Raises:
        DatasetError: missing, too large, malformed, or of another kind.
    """
    if source.startswith(CALLABLE):
        return _call(source.removeprefix(CALLABLE), base)
    path = base / source
    suffixes = [item for item in path.suffixes if item.lower() != ".gz"]
    kind = suffixes[-1].lower() if suffixes else ""
    if kind not in (".csv", ".data", ".test", ".parquet", ".npz"):
        raise DatasetError(f"{path.name}: not a .csv, .parquet or .npz file")
    if kind == ".npz":
        return _npz(path)
    data = _bytes(path, max_bytes)
    if not data:
        raise DatasetError(f"{path.name}: empty")
    if kind == ".parquet":
        return _parquet(data, path.name)
    return _csv(data, path.name, layout)


def _bytes(path: Path, max_bytes: int) -> bytes:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise DatasetError(f"{path.name}: not a regular file")
        with path.open("rb") as raw:
            packed = path.suffix.lower() == ".gz"
            file: Any = gzip.GzipFile(fileobj=raw) if packed else raw
            data: bytes = file.read(max_bytes + 1)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or "not a whole gzip file"
        raise DatasetError(f"{path.name}: {reason}") from None
    if len(data) > max_bytes:
        raise DatasetError(f"{path.name}: more than {max_bytes} bytes")
    return data


def _csv(data: bytes, name: str, layout: CsvFormat) -> Table:
    lines = io.StringIO(_decode(data, name, layout.encoding), newline="")
    first, begin = _first_line(lines, name, layout)
    names = list(layout.header)
    if not names:
        reader = _reader(chain([first], lines), layout)
        try:
            # Names as a configuration writes them, whatever ends the file's lines.
            names = [re.sub("\r\n?", "\n", cell.strip()) for cell in next(reader)]
        except csv.Error as error:
            raise DatasetError(f"{name}: line {begin + 1}: not CSV: {error}") from None
        begin += reader.line_num
    _bound(len(names), name)
    rest = (first if layout.header else "") + lines.read()
    columns = _plain_columns(rest, names, layout)
    places: Sequence[int] = range(begin + 1, begin + 2 + rest.count("\n"))
    if columns is None:
        rows, places = _rows(rest, name, layout, len(names), begin)
        cells = zip(*rows) if rows else [()] * len(names)
        columns = [np.array(column, dtype=object) for column in cells]
    return _table(list(zip(names, columns)), name, places)


def _reader(lines: Iterable[str], layout: CsvFormat) -> Any:
    return csv.reader(
        lines, delimiter=layout.delimiter, skipinitialspace=True, strict=True
    )


def _rows(
    text: str, name: str, layout: CsvFormat, width: int, begin: int
) -> tuple[list[list[str]], list[int]]:
    """The rows, each with every cell, and the lines where they begin."""
    rows, places = [], []
    reader = _reader(io.StringIO(text, newline=""), layout)
    place = begin + 1
    try:
        for row in reader:
            if len(row) != width:
                raise DatasetError(
                    f"{name}: line {place}: {len(row)} cells, not {width}"
                )
            rows.append(row)
            places.append(place)
            place = begin + reader.line_num + 1
    except csv.Error as error:
        raise DatasetError(f"{name}: line {place}: not CSV: {error}") from None
    return rows, places


@dataclass(frozen=True, eq=False)
class _Texts:
    """A column of texts that is made into Python's, or numbers, where it is used."""

    column: Any = field(repr=False)

    @property
    def ndim(self) -> int:
        return 1

    @property
    def shape(self) -> tuple[int]:
        return (len(self.column),)

    def __len__(self) -> int:
        return len(self.column)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        # pyarrow's own way to an array of numpy imports pandas.
        return np.array(self.column.to_pylist(), dtype=dtype or object)

    def floats(self) -> NDArray[np.float64] | None:
        """Every cell as a number; None where one is none."""
        try:
            numbers = self.column.cast("double")
        except ValueError:  # pyarrow's own is one
            return None
        return np.concatenate([np.empty(0), *map(np.from_dlpack, numbers.chunks)])


def _plain_columns(text: str, names: list[str], layout: CsvFormat) -> list[Any] | None:
    """The columns of a file without quotes, which pyarrow splits twenty times faster.

    None where the two could read it differently, or it has a fault: `csv` names it.
    """
    spaced = f"{layout.delimiter} " in text or "\n " in text
    alone = text.count("\r") != text.count("\r\n")
    blank = "\n\n" in text or "\n\r\n" in text or text[:1] in ("", " ", "\r", "\n")
    if spaced or alone or blank or '"' in text or not layout.delimiter.isascii():
        return None
    try:
        import pyarrow as pa  # noqa: PLC0415  (optional here)
        from pyarrow import csv as plain_csv  # noqa: PLC0415  (as above)

        kinds = dict.fromkeys(names, pa.string())
        table = plain_csv.read_csv(
            pa.BufferReader(text.encode()),
            plain_csv.ReadOptions(use_threads=False, column_names=names),
            plain_csv.ParseOptions(delimiter=layout.delimiter, quote_char=False),
            plain_csv.ConvertOptions(column_types=kinds, strings_can_be_null=False),
        )
    except (ImportError, ValueError):
        return None
    return [_Texts(column) for column in table.columns]


def _decode(data: bytes, name: str, encoding: str) -> str:
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DatasetError(f"{name}: line {line}: not {encoding}") from None
    except LookupError:
        raise DatasetError(f"{name}: no encoding {encoding!r}") from None
    if "\0" in text:
        raise DatasetError(f"{name}: holds a zero byte: not text in {encoding}")
    return text.removeprefix("\ufeff").rstrip("\r\n")


def _first_line(lines: io.StringIO, name: str, layout: CsvFormat) -> tuple[str, int]:
    """The first line that counts, and how many come before it."""
    for skipped, line in enumerate(lines):
        comment = layout.comment and line.startswith(layout.comment)
        if line.strip("\r\n") and not comment:
            return line, skipped
    raise DatasetError(f"{name}: empty")


def _parquet(data: bytes, name: str) -> Table:
    import pyarrow as pa  # noqa: PLC0415  (only for parquet)
    from pyarrow import parquet  # noqa: PLC0415  (only for parquet)

    try:
        file = parquet.ParquetFile(io.BytesIO(data))
        _bound(file.metadata.num_columns, name)
        cells = file.metadata.num_rows * file.metadata.num_columns
        if cells > MAX_BYTES // 8:
            raise DatasetError(f"{name}: {cells} cells, at most {MAX_BYTES // 8}")
        table = file.read()
        columns = [
            (title.strip(), _arrow_column(column))
            for title, column in zip(table.column_names, table.columns)
            if not _FRAME_INDEX.fullmatch(title)
        ]
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0][:200]
        raise DatasetError(f"{name}: not parquet: {reason}") from None
    return _table(columns, name)


def _arrow_column(column: Any) -> NDArray[Any]:
    """Numbers where all are given, or fractions; objects, with None for nulls."""
    from pyarrow import types  # noqa: PLC0415  (only for parquet)

    if types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    binary = types.is_binary(kind) or types.is_large_binary(kind)
    if binary or types.is_temporal(kind) or types.is_decimal(kind):
        column = column.cast("string")  # older writers do not say that bytes are text
    elif column.null_count and (types.is_integer(kind) or types.is_boolean(kind)):
        # As fractions, large numbers would change, and so would every spelling.
        return np.array(column.to_pylist(), dtype=object)
    return np.asarray(column.to_numpy())


def _npz(path: Path) -> Table:
    name = path.name
    try:
        with zipfile.ZipFile(path) as archive:
            items = archive.infolist()
        if sum(item.file_size for item in items) > MAX_BYTES:
            raise DatasetError(f"{name}: more than {MAX_BYTES} bytes unpacked")
        _bound(len(items), name, "arrays")
        with np.load(path, allow_pickle=False) as loaded:
            arrays = [(item, loaded[item]) for item in loaded.files]
    except FileNotFoundError as error:
        raise DatasetError(f"{name}: {error.strerror}") from None
    except _DAMAGED as error:
        reason = (str(error).splitlines() or ["malformed"])[0][:200]
        raise DatasetError(f"{name}: not an npz file: {reason}") from None
    return _table(arrays, name)


def _call(target: str, base: Path) -> Table:
    module_name, _, function_name = target.partition(":")
    sys.path.insert(0, str(base))
    try:
        function = getattr(importlib.import_module(module_name), function_name)
        arrays = function()
    except Exception as error:  # noqa: BLE001  (it runs the user's code)
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise DatasetError(f"{CALLABLE}{target}: {reason}") from None
    finally:
        sys.path.remove(str(base))
    if not isinstance(arrays, Mapping):
        raise DatasetError(f"{CALLABLE}{target}: returned no mapping of arrays")
    return _table([(str(k), np.asarray(v)) for k, v in arrays.items()], target)


def _table(
    columns: Sequence[tuple[str, Any]], where: str, lines: Sequence[int] = ()
) -> Table:
    """Columns, each name once.

    Raises:
        DatasetError: one occurs twice.
    """
    _bound(len(columns), where)
    names = [name for name, _ in columns]
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise DatasetError(f"{where}: column {twice[0]!r} occurs twice")
    return Table(where, dict(columns), lines)


def _bound(columns: int, where: str, what: str = "columns") -> None:
    if columns > MAX_COLUMNS:
        raise DatasetError(f"{where}: {columns} {what}, at most {MAX_COLUMNS}")
