"""Input files into arrays, and answers into a table, for the command line."""

from __future__ import annotations

import csv
import importlib
import io
import json
import math
import re
import sys
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sealgate.convert import columns_of, to_arrays
from sealgate.errors import JsonError, ProfileError, TensorError
from sealgate.protocol import strict_json, tensors

__all__ = [
    "category",
    "format_json",
    "format_metadata",
    "format_table",
    "join_rows",
    "number",
    "read_inputs",
    "write_outputs",
]

MAX_INPUT_BYTES = 256 << 20
Array = npt.NDArray[Any]

_NUMBER = re.compile(
    r"[+-]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|nan|inf|infinity)",
    re.IGNORECASE,
)
_PLAIN = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?")
_TRUTH = {"true": 1.0, "false": 0.0}

# What the readers of these formats raise on files that are damaged or hostile.
_UNREADABLE = (
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


def read_inputs(path: Path, metadata: Mapping[str, Any]) -> dict[str, Array]:
    """Read arrays by tensor name from a .json, .npz, .csv or .parquet file.

    JSON: a v2 request, an object of arrays by tensor name, or, for a model with one
    input, an array of rows. CSV: for a model with one tabular input; columns are
    matched by the header where there is one. Parquet: columns are matched by name, to
    the model's columns or to its inputs; pyarrow has to be installed.

    Args:
        path: the file.
        metadata: the model's v2 metadata.

    Raises:
        ProfileError: unreadable, of another kind, or it does not fit the model.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise ProfileError(f"{path}: expected a .json, .npz, .csv or .parquet file")
    try:
        if path.stat().st_size > MAX_INPUT_BYTES:
            raise ProfileError(f"more than {MAX_INPUT_BYTES} bytes")
        return reader(path.read_bytes(), metadata)
    except OSError as error:
        raise ProfileError(f"{path}: {error.strerror}") from None
    except _UNREADABLE as error:
        raise ProfileError(f"{path}: {error}") from None


def format_table(outputs: Mapping[str, Array], metadata: Mapping[str, Any]) -> str:
    """One line per row; class scores get a column per label."""
    labels = {
        tensor["name"]: tensor.get("parameters", {}).get("labels")
        for tensor in metadata["outputs"]
    }
    columns: dict[str, list[str]] = {}
    for name, array in outputs.items():
        columns |= _columns(name, array, labels.get(name))
    rows = max((len(cells) for cells in columns.values()), default=0)
    index = [str(row) for row in range(rows)]
    return _align({"row": index} | columns)


def format_json(outputs: Mapping[str, Array]) -> str:
    """An object of nested arrays by output name."""
    return json.dumps({name: array.tolist() for name, array in outputs.items()})


def format_metadata(metadata: Mapping[str, Any]) -> str:
    """A model's tensors, one per line, and the columns and labels they have."""
    lines = [f"{metadata.get('name', '')}:{','.join(metadata.get('versions', []))}"]
    for role in ("inputs", "outputs"):
        for tensor in metadata[role]:
            shape = ",".join(map(str, tensor.get("shape", [])))
            kind = f"{tensor['datatype']}[{shape}]"
            lines.append(f"  {role[:-1]:6}  {tensor['name']}  {kind}")
            names = columns_of(tensor) or tensor.get("parameters", {}).get("labels", [])
            lines += [f"            {', '.join(names)}"] if names else []
    return "\n".join(lines)


def join_rows(answers: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """The answers to several files as one: rows of the first file first.

    Raises:
        ProfileError: outputs without rows, or of different widths.
    """
    if len(answers) == 1:
        return dict(answers[0])
    try:
        return {
            name: np.concatenate([answer[name] for answer in answers])
            for name in answers[0]
        }
    except (KeyError, ValueError):
        raise ProfileError("the answers to these files cannot be joined") from None


def write_outputs(path: Path, outputs: Mapping[str, Array]) -> None:
    """Write the answer as .json or .npz, by the file's name.

    Raises:
        ProfileError: another kind of file, or it cannot be written.
    """
    kind = path.suffix.lower()
    if kind not in (".json", ".npz"):
        raise ProfileError(f"{path}: expected a .json or .npz file")
    try:
        if kind == ".json":
            path.write_text(format_json(outputs) + "\n")
            return
        with zipfile.ZipFile(path, "w") as archive:
            for name, array in outputs.items():
                buffer = io.BytesIO()
                np.save(buffer, array, allow_pickle=False)
                archive.writestr(f"{name}.npy", buffer.getbuffer())
    except OSError as error:
        raise ProfileError(f"{path}: {error.strerror}") from None


def _read_json(data: bytes, metadata: Mapping[str, Any]) -> dict[str, Array]:
    value = strict_json.loads(data, max_bytes=MAX_INPUT_BYTES)
    if isinstance(value, dict) and isinstance(value.get("inputs"), list):
        return tensors.decode_response({"outputs": value["inputs"]})
    if isinstance(value, dict):
        return {name: np.asarray(rows) for name, rows in value.items()}
    return {_only_input(metadata)["name"]: np.asarray(value)}


def _read_npz(data: bytes, metadata: Mapping[str, Any]) -> dict[str, Array]:
    del metadata
    arrays = np.load(io.BytesIO(data), allow_pickle=False)
    if not isinstance(arrays, np.lib.npyio.NpzFile):
        raise ProfileError("not an .npz archive of named arrays")
    with arrays:
        return {name: np.asarray(arrays[name]) for name in arrays.files}


def _read_csv(data: bytes, metadata: Mapping[str, Any]) -> dict[str, Array]:
    tensor = _only_input(metadata)
    lines = io.StringIO(data.decode("utf-8-sig"), newline="")  # any end of lines
    rows = [row for row in csv.reader(lines, skipinitialspace=True) if row]
    if not rows:
        raise ProfileError("the file is empty")
    if any(number(cell) is None for cell in rows[0]):
        rows = _select(rows, columns_of(tensor))
    if not rows:
        raise ProfileError("there is a header, but no row")
    if len({len(row) for row in rows}) > 1:
        raise ProfileError("rows are not of one length")
    columns = tensor.get("parameters", {}).get("columns", [])
    kinds = [column.get("categories", ()) for column in columns]
    kinds = kinds if len(kinds) == len(rows[0]) else [()] * len(rows[0])
    values = [_values(cells, names) for cells, names in zip(zip(*rows), kinds)]
    return {tensor["name"]: np.stack(values, axis=1)}


def number(cell: str) -> float | None:
    """A cell as a number, None if it is none: as training and assessment read it.

    >>> number("6.5e1"), number("1_000"), number("true")
    (65.0, None, 1.0)
    """
    text = cell.strip(" \t")
    return float(text) if _NUMBER.fullmatch(text) else _TRUTH.get(text.lower())


def category(cell: str, names: Sequence[str]) -> int | None:
    """The name that a cell is: spelled alike, or the only one of the same value.

    >>> category("1.0", ["0", "1"]), category("01", ["0", "1"])
    (1, None)
    """
    if cell in names:
        return names.index(cell)
    for key in _keys(cell):
        same = [code for code, name in enumerate(names) if key in _keys(name)]
        if len(same) == 1:
            return same[0]
    return None


def _keys(cell: str) -> tuple[str | float, ...]:
    """What stands for a cell's value; numbers with leading zeros are texts."""
    text = cell.strip(" \t")
    if _PLAIN.fullmatch(text):
        return (float(text),)
    if text.lower() in _TRUTH:
        return text.lower(), _TRUTH[text.lower()]
    return () if text in ("", "nan", "NaN") else (text,)


def _values(cells: Sequence[str], names: Sequence[str]) -> Array:
    """A column as the model takes it: numbers, or the codes of categories.

    Where no category looks like a number, codes may stand in the cells.
    """
    coded = all(number(name) is None for name in names)
    known: dict[str, float] = {}
    for cell in dict.fromkeys(cells):
        value: float | None = category(cell, names)
        if value is None and coded:
            value = number(cell)
        if value is None or (names and value not in range(len(names))):
            what = "no category of the model" if names else "not a number"
            raise ProfileError(f"{cell[:40]!r} is {what}")
        known[cell] = value
    return np.array([known[cell] for cell in cells], dtype=np.float64)


def _read_parquet(data: bytes, metadata: Mapping[str, Any]) -> dict[str, Array]:
    try:
        arrow = importlib.import_module("pyarrow")
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise ProfileError("reading .parquet needs pyarrow") from None
    try:
        table = parquet.read_table(arrow.BufferReader(data))
        return to_arrays(_Frame(table), metadata)
    except arrow.ArrowException as error:
        raise ProfileError(str(error).partition("\n")[0]) from None


class _Frame:
    """An Arrow table with what `sealgate.convert` takes a data frame by."""

    def __init__(self, table: Any) -> None:
        self._table = table
        self.columns: list[str] = table.column_names

    def __getitem__(self, name: str) -> Any:
        return self._table[name]

    def to_numpy(self) -> Array:
        return np.stack([self[name].to_numpy() for name in self.columns], axis=1)


def _select(rows: list[list[str]], names: Sequence[str]) -> list[list[str]]:
    """The rows below a header, with the model's columns in the model's order."""
    header = [name.strip() for name in rows[0]]
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise ProfileError(f"column {twice[0]!r} occurs twice")
    missing = [name for name in names if name not in header]
    if missing:
        raise ProfileError(f"missing column {missing[0]!r}")
    ignored = [name for name in header if name not in names]
    if ignored and names:
        print(f"ignored columns: {', '.join(ignored)}", file=sys.stderr)
    order = [header.index(name) for name in names] or range(len(header))
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(header):
            raise ProfileError(f"line {number} has {len(row)} cells, not {len(header)}")
    return [[row[i] for i in order] for row in rows[1:]]


def _only_input(metadata: Mapping[str, Any]) -> dict[str, Any]:
    inputs: list[dict[str, Any]] = metadata["inputs"]
    if len(inputs) != 1:
        raise ProfileError("the model has several inputs; name them in JSON or npz")
    return inputs[0]


def _columns(
    name: str, array: Array, labels: Sequence[str] | None
) -> dict[str, list[str]]:
    width = math.prod(array.shape[1:])
    rows = array.reshape(-1 if width else 0, width)
    if labels is None or len(labels) != width:
        labels = [name] if width == 1 else [f"{name}[{i}]" for i in range(width)]
    return {
        head: [_cell(value) for value in rows[:, i]] for i, head in enumerate(labels)
    }


def _cell(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, np.floating) else str(value)


def _align(columns: Mapping[str, list[str]]) -> str:
    widths = {
        head: max(len(head), *map(len, cells)) if cells else len(head)
        for head, cells in columns.items()
    }
    lines = ["  ".join(head.rjust(widths[head]) for head in columns)]
    lines += [
        "  ".join(cell.rjust(widths[head]) for head, cell in zip(columns, row))
        for row in zip(*columns.values())
    ]
    return "\n".join(lines)


_READERS: Mapping[str, Callable[[bytes, Mapping[str, Any]], dict[str, Array]]] = {
    ".json": _read_json,
    ".npz": _read_npz,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
