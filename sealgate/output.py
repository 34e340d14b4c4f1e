"""Answers into what people and their tools read: a table, JSON, CSV, Parquet."""

from __future__ import annotations

import csv
import importlib
import io
import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sealgate.errors import ProfileError

__all__ = [
    "format_csv",
    "format_json",
    "format_metadata",
    "format_table",
    "join_columns",
    "join_rows",
    "named_outputs",
    "output_policy_text",
    "write_outputs",
    "write_tickets",
]

Array = npt.NDArray[Any]


def format_table(outputs: Mapping[str, Array], metadata: Mapping[str, Any]) -> str:
    """One line per row; class scores get a column per label."""
    labels = _labels(metadata)
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
    """A model's tensors, and a line per column: its range, or its categories."""
    lines = [f"{metadata.get('name', '')}:{','.join(metadata.get('versions', []))}"]
    parameters = metadata.get("parameters", {})
    if most := parameters.get("max_rows"):
        lines.append(f"  at most {most} rows in a request")
    if policy := parameters.get("output_policy"):
        lines.append(f"  of answers leaves {output_policy_text(policy)}")
    for role in ("inputs", "outputs"):
        for tensor in metadata[role]:
            shape = ",".join(map(str, tensor.get("shape", [])))
            kind = f"{tensor['datatype']}[{shape}]"
            lines.append(f"  {role[:-1]:6}  {tensor['name']}  {kind}")
            described = tensor.get("parameters", {})
            lines += _column_lines(described.get("columns", []))
            names = described.get("labels", [])
            lines += [f"            {', '.join(names)}"] if names else []
    return "\n".join(lines)


def output_policy_text(policy: Mapping[str, Any]) -> str:
    """What leaves of an answer, for people.

    >>> output_policy_text({"decimals": 2, "top_k": 1})
    'decimals: 2, top k: 1'
    """
    told = {True: "yes", False: "no"}
    values = {
        name: told.get(v, v) if isinstance(v, bool) else v for name, v in policy.items()
    }
    return ", ".join(f"{name.replace('_', ' ')}: {v}" for name, v in values.items())


def _column_lines(columns: Sequence[Mapping[str, Any]]) -> list[str]:
    width = max((len(column["name"]) for column in columns), default=0)
    return [f"            {c['name']:<{width}}  {_takes(c)}".rstrip() for c in columns]


def _takes(column: Mapping[str, Any]) -> str:
    if names := column.get("categories"):
        more = f", {len(names) - 8} more" if len(names) > 8 else ""
        return f"one of {', '.join(names[:8])}{more}"
    low, high = column.get("low"), column.get("high")
    return "" if low is None or high is None else f"{low:g} to {high:g}"


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


def join_columns(
    tables: Sequence[Mapping[str, Sequence[Any]]],
) -> dict[str, Sequence[Any]]:
    """The columns of several files as one table; none where files have others."""
    if len(tables) == 1:
        return dict(tables[0])
    if any(list(table) != list(tables[0]) for table in tables):
        return {}
    return {
        name: [value for table in tables for value in table[name]] for name in tables[0]
    }


def named_outputs(
    outputs: Mapping[str, Array],
    metadata: Mapping[str, Any],
    columns: Mapping[str, Sequence[Any]],
) -> dict[str, Any]:
    """A table of the input's columns and the answer's: labels have their names.

    Scores have a column per label, a set of classes one per label that ends in
    ``_set``. A column of the answer whose name the input has
    too, a ``label`` that is known say, is called ``predicted_label``.

    Raises:
        ProfileError: the answer has not a row for each of the input's.
    """
    table: dict[str, Any] = dict(columns)
    labels = _labels(metadata)
    # A set of classes has the names of its scores: they are the same classes.
    known = [names for names, _ in _named(metadata).values() if names]
    rows = {len(values) for values in table.values()}
    for name, array in outputs.items():
        flat = array.reshape(len(array) if array.ndim else 1, -1)
        rows.add(len(flat))
        one = array.dtype.kind in "iu" and flat.shape[1] == 1 and len(known) == 1
        for i, head in enumerate(_heads(name, flat.shape[1], labels.get(name))):
            while head in table:
                head = f"predicted_{head}"  # noqa: PLW2901  (until it is another)
            table[head] = _names(flat[:, i], known[0]) if one else flat[:, i]
    if len(rows) > 1:
        raise ProfileError("the answer has not a row for each of the input's")
    return table


def format_csv(table: Mapping[str, Sequence[Any]], *, header: bool = True) -> str:
    """A table as CSV (RFC 4180), numbers so that they read back as they were."""
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator="\n")
    if header:
        writer.writerow(table)
    # str() of numpy's own numbers is the shortest that reads back.
    writer.writerows(zip(*(map(_plain, values) for values in table.values())))
    return stream.getvalue()


def write_outputs(
    path: Path, outputs: Mapping[str, Array], table: Mapping[str, Sequence[Any]]
) -> None:
    """Write the answer as .json or .npz, or its table as .csv or .parquet.

    Raises:
        ProfileError: another kind of file, or it cannot be written.
    """
    kind = path.suffix.lower()
    try:
        match kind:
            case ".json":
                path.write_text(format_json(outputs) + "\n")
            case ".csv":
                path.write_text(format_csv(table), newline="")
            case ".parquet":
                _write_parquet(path, table)
            case ".npz":
                _write_npz(path, outputs)
            case _:
                raise ProfileError(
                    f"{path}: expected a .csv, .parquet, .json or .npz file"
                )
    except OSError as error:
        raise ProfileError(f"{path}: {error.strerror}") from None


def write_tickets(path: Path, tickets: Sequence[str | None]) -> None:
    """Tickets as CSV, with a column for labels that are not there yet.

    Raises:
        ProfileError: the file cannot be written.
    """
    rows = list(range(len(tickets)))
    texts = [ticket or "" for ticket in tickets]
    table: dict[str, Sequence[Any]] = {
        "row": rows,
        "ticket": texts,
        "label": [""] * len(rows),
    }
    try:
        path.write_text(format_csv(table), encoding="utf-8", newline="")
    except OSError as error:
        raise ProfileError(f"{path}: {error.strerror}") from None


def _write_npz(path: Path, outputs: Mapping[str, Array]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in outputs.items():
            buffer = io.BytesIO()
            np.save(buffer, array, allow_pickle=False)
            archive.writestr(f"{name}.npy", buffer.getbuffer())


def _write_parquet(path: Path, table: Mapping[str, Sequence[Any]]) -> None:
    try:
        arrow = importlib.import_module("pyarrow")
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise ProfileError("writing .parquet needs pyarrow") from None
    parquet.write_table(arrow.table(dict(table)), path)


def _plain(value: Any) -> Any:
    if value is None:
        return ""
    return value.as_py() if hasattr(value, "as_py") else str(value)


def _labels(metadata: Mapping[str, Any]) -> dict[str, Sequence[str]]:
    """Heads of columns by output: names of classes; of a set's, others than scores'."""
    named = _named(metadata)
    sets = {one: [f"{name}_set" for name in own] for own, one in named.values() if one}
    return {name: own for name, (own, _) in named.items()} | sets


def _named(metadata: Mapping[str, Any]) -> dict[str, tuple[Sequence[str], str]]:
    """Names of classes by output, without sets of classes; and what has its sets."""
    every = {
        tensor["name"]: tensor.get("parameters", {}).get("labels") or ()
        for tensor in metadata["outputs"]
    }
    sets = {
        name: one
        for name, names in every.items()
        if names and every.get(one := f"{name}_set") == names
    }
    return {
        name: (names, sets.get(name, ""))
        for name, names in every.items()
        if name not in sets.values()
    }


def _names(codes: Array, labels: Sequence[str]) -> Array:
    """The names of labels; a code beyond them stays what it is."""
    known = (codes >= 0) & (codes < len(labels))
    names = np.array(labels, dtype=object)[np.where(known, codes, 0)]
    if not known.all():
        names[~known] = [str(code) for code in codes[~known].tolist()]
    return names


def _heads(name: str, width: int, labels: Sequence[str] | None) -> Sequence[str]:
    if labels and len(labels) == width:
        return labels
    return [name] if width == 1 else [f"{name}[{i}]" for i in range(width)]


def _columns(
    name: str, array: Array, labels: Sequence[str] | None
) -> dict[str, list[str]]:
    width = math.prod(array.shape[1:])
    rows = array.reshape(-1 if width else 0, width)
    return {
        head: [_cell(value) for value in rows[:, i]]
        for i, head in enumerate(_heads(name, width, labels))
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
