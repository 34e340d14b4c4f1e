"""Which rows are one row, and which owners one owner: by value, in versions.

A row is what the model reads of it and its sensitive attributes, nothing else: not how
a program wrote them, not its class, not a column that is dropped. What the model reads
is single precision, so that is how far its numbers are compared.

Splits, and with them evidence, follow from this, so an earlier version stays readable:

1   the texts of all columns but class and identifier, as the file has them
2   as above
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.data import cells
from models.data.columns import Table, texts

__all__ = ["CURRENT", "VERSIONS", "owners", "row_keys", "written", "written_keys"]

CURRENT = 2
VERSIONS = (1, CURRENT)
_CHUNK = 4096


def row_keys(
    features: NDArray[Any], beside: Sequence[NDArray[np.str_]]
) -> NDArray[np.bytes_]:
    """Digests of rows, of version 2.

    Args:
        features: ``(n, …)``, numbers.
        beside: columns ``(n,)`` that tell rows apart beside them.
    """
    digests = []
    for start in range(0, len(features), _CHUNK):
        part = features[start : start + _CHUNK]
        with np.errstate(over="ignore"):
            values = np.ascontiguousarray(part.reshape(len(part), -1), dtype="<f4")
        values = values + np.float32(0)  # -0.0 is 0.0
        values[np.isnan(values)] = np.nan
        names = [column[start : start + _CHUNK].tolist() for column in beside]
        marks = zip(*names) if names else [()] * len(part)
        digests += [
            hashlib.sha256(row.tobytes() + "\0".join(mark).encode()).hexdigest()
            for row, mark in zip(values, marks)
        ]
    return np.array(digests, dtype="S64")


def owners(table: Table, name: str, missing: frozenset[str]) -> NDArray[np.str_]:
    """Whose each row is, by value.

    Raises:
        DatasetError: a row that is nobody's: it would be one person with all such rows;
            or a fraction that may be the rounded number of several persons.
    """
    names = texts(table, name, missing=missing)
    table.refuse(name, names == "", "is no owner: every row needs one")
    rounded = [cells.is_rounded(cell) for cell in cells.cells_of(table.column(name))]
    reason = "is a rounded number: write owners as whole numbers or texts"
    table.refuse(name, np.array(rounded, dtype=np.bool_), reason)
    return names


def written_keys(table: Table, columns: Iterable[str]) -> NDArray[np.bytes_]:
    """Digests of rows, of version 1."""
    lines = zip(*(written(table.column(name)) for name in columns))
    digests = [hashlib.sha256("\0".join(line).encode()).hexdigest() for line in lines]
    return np.array(digests, dtype="S64")


def written(values: NDArray[Any]) -> NDArray[np.str_]:
    """A column's cells as version 1 had them: of whole numbers, the digits."""
    if values.dtype.kind == "O":
        listed = values.tolist()
        if any(type(cell) is int for cell in listed) and None in listed:
            # A nullable whole number was a fraction by then.
            values = np.array([np.nan if cell is None else cell for cell in listed])
            return values.astype(np.float64).astype(np.str_)
        return np.array(["" if v is None else str(v) for v in listed], dtype=np.str_)
    if values.dtype.kind == "f" and np.equal(np.mod(values, 1), 0).all():
        values = values.astype(np.int64)
    return values.astype(np.str_)
