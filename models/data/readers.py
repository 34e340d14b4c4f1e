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
import sys
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.data.columns import Table
from models.errors import DatasetError

__all__ = ["CsvFormat", "read_arrays"]

MAX_BYTES = 4 << 30
MAX_COLUMNS = 10_000
MAX_HEADER_BYTES = 1 << 20
_CALLABLE = "python:"


@dataclass(frozen=True)
class CsvFormat:
    """How a CSV file is written.

    Attributes:
        header: the columns' names, where the first line does not have them.
        delimiter: one character.
        encoding: of the whole file.
        comment: lines that begin with it are skipped; empty for none.
    """

    header: tuple[str, ...] = ()
    delimiter: str = ","
    encoding: str = "utf-8"
    comment: str = ""


def read_arrays(source: str, *, base: Path, layout: CsvFormat) -> Table:
    """Read a source.

    Raises:
        DatasetError: missing, too large, malformed, or of another kind.
    """
    if source.startswith(_CALLABLE):
        return _call(source.removeprefix(_CALLABLE), base)
    path = base / source
    suffixes = [suffix for suffix in path.suffixes if suffix != ".gz"]
    kind = suffixes[-1] if suffixes else ""
    readers = {".csv": _csv, ".data": _csv, ".test": _csv, ".parquet": _parquet}
    if kind == ".npz":
        return _npz(path)
    if kind not in readers:
        raise DatasetError(f"{path.name}: not a .csv, .parquet or .npz file")
    data = _bytes(path)
    if not data:
        raise DatasetError(f"{path.name}: empty")
    return (
        _csv(data, path.name, layout) if readers[kind] is _csv else _parquet(data, path)
    )


def _bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as raw:
            file: Any = gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw
            data: bytes = file.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or "not a whole gzip file"
        raise DatasetError(f"{path.name}: {reason}") from None
    if len(data) > MAX_BYTES:
        raise DatasetError(f"{path.name}: more than {MAX_BYTES} bytes")
    return data


def _csv(data: bytes, name: str, layout: CsvFormat) -> Table:
    text = _decode(data, name, layout.encoding)
    skipped, header = _first_line(text, name, layout)
    if len(header) > MAX_COLUMNS:
        raise DatasetError(f"{name}: {len(header)} columns, at most {MAX_COLUMNS}")
    names = list(layout.header) or header
    twice = sorted({item for item in names if names.count(item) > 1})
    if twice:
        raise DatasetError(f"{name}: column {twice[0]!r} occurs twice")
    if len(names) != len(header):
        raise DatasetError(
            f"{name}: {len(header)} columns, the header names {len(names)}"
        )
    skipped += not layout.header
    rows = _rows(text.rstrip("\r\n"), name, layout, skipped, len(names))
    cells = zip(*rows) if rows else [()] * len(names)
    arrays = {
        item: np.array(column, dtype=object) for item, column in zip(names, cells)
    }
    return Table(name, arrays, first_line=skipped + 1)


def _rows(
    text: str, name: str, layout: CsvFormat, skipped: int, width: int
) -> list[list[str]]:
    """The rows below the header; each has every cell, or none of them counts."""
    lines = io.StringIO(text, newline="")
    for _ in range(skipped):
        lines.readline()
    reader = csv.reader(
        lines, delimiter=layout.delimiter, skipinitialspace=True, strict=True
    )
    rows = []
    try:
        for row in reader:
            if len(row) != width:
                line = skipped + reader.line_num
                raise DatasetError(
                    f"{name}: line {line}: {len(row)} cells, not {width}"
                )
            rows.append(row)
    except csv.Error as error:
        line = skipped + reader.line_num
        raise DatasetError(f"{name}: line {line}: not CSV: {error}") from None
    return rows


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
    return text.removeprefix("\ufeff")


def _first_line(text: str, name: str, layout: CsvFormat) -> tuple[int, list[str]]:
    """How many lines come before the first that counts, and its cells."""
    start = skipped = 0
    while True:
        end = text.find("\n", start)
        line = text[start : len(text) if end < 0 else end].rstrip("\r")
        if line and not (layout.comment and line.startswith(layout.comment)):
            break
        if end < 0:
            raise DatasetError(f"{name}: empty")
        start, skipped = end + 1, skipped + 1
    if len(line) > MAX_HEADER_BYTES or line.count(layout.delimiter) >= MAX_COLUMNS:
        columns = line.count(layout.delimiter) + 1
        raise DatasetError(f"{name}: {columns} columns, at most {MAX_COLUMNS}")
    reader = csv.reader([line], delimiter=layout.delimiter, skipinitialspace=True)
    return skipped, [cell.strip() for cell in next(reader)]


def _parquet(data: bytes, path: Path) -> Table:
    try:
        import pyarrow as pa  # noqa: PLC0415  (only for parquet)
        from pyarrow import parquet  # noqa: PLC0415  (only for parquet)
    except ImportError:
        raise DatasetError(f"{path.name}: reading parquet needs pyarrow") from None
    try:
        file = parquet.ParquetFile(io.BytesIO(data))
        if file.metadata.num_columns > MAX_COLUMNS:
            columns = file.metadata.num_columns
            raise DatasetError(f"{path.name}: {columns} columns, at most {MAX_COLUMNS}")
        table = file.read()
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0][:200]
        raise DatasetError(f"{path.name}: not parquet: {reason}") from None
    arrays = {
        name: table[name].to_pandas().to_numpy(na_value=None)
        if table[name].null_count
        else table[name].to_numpy()
        for name in table.column_names
    }
    return Table(path.name, arrays)


def _npz(path: Path) -> Table:
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(item.file_size for item in archive.infolist())
            entries = len(archive.infolist())
    except (OSError, zipfile.BadZipFile) as error:
        reason = getattr(error, "strerror", None) or "not an npz file"
        raise DatasetError(f"{path.name}: {reason}") from None
    if size > MAX_BYTES:
        raise DatasetError(f"{path.name}: more than {MAX_BYTES} bytes unpacked")
    if entries > MAX_COLUMNS:
        raise DatasetError(f"{path.name}: {entries} arrays, at most {MAX_COLUMNS}")
    try:
        with np.load(path, allow_pickle=False) as loaded:
            arrays = {name: loaded[name] for name in loaded.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        reason = str(error).splitlines()[0][:200]
        raise DatasetError(f"{path.name}: not an npz file: {reason}") from None
    return _table(arrays, path.name)


def _call(target: str, base: Path) -> Table:
    module_name, _, function_name = target.partition(":")
    sys.path.insert(0, str(base))
    try:
        function = getattr(importlib.import_module(module_name), function_name)
        arrays = function()
    except Exception as error:  # noqa: BLE001  (it runs the user's code)
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise DatasetError(f"{_CALLABLE}{target}: {reason}") from None
    finally:
        sys.path.remove(str(base))
    if not isinstance(arrays, Mapping):
        raise DatasetError(f"{_CALLABLE}{target}: returned no mapping of arrays")
    return _table({str(k): np.asarray(v) for k, v in arrays.items()}, target)


def _table(arrays: dict[str, NDArray[Any]], where: str) -> Table:
    lengths = {len(array) if array.ndim else 0 for array in arrays.values()}
    if len(lengths) > 1:
        raise DatasetError(f"{where}: arrays of {len(lengths)} different lengths")
    return Table(where, arrays)
