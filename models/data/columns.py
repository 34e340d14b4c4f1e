"""Cells to numbers, codes and texts; the first that does not fit is named by its place.

A message quotes a cell, shortened, because it is for whoever holds the data.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from models.errors import DatasetError

__all__ = ["Table", "codes", "numbers", "texts"]

_SHOWN = 40


@dataclass(eq=False)
class Table:
    """Arrays of one length by name.

    Attributes:
        where: what messages call it.
        arrays: the first axis counts rows.
        first_line: line of the first row in its file; 0 where there are no lines.
    """

    where: str
    arrays: dict[str, NDArray[Any]]
    first_line: int = 0

    @property
    def rows(self) -> int:
        """How many."""
        return min((len(array) for array in self.arrays.values()), default=0)

    def place(self, row: int) -> str:
        """How messages call a row."""
        if self.first_line:
            return f"line {self.first_line + row}"
        return f"row {row + 1}"

    def hint(self, name: str) -> str:
        """Which column was probably meant."""
        close = difflib.get_close_matches(name, list(self.arrays), n=1)
        return f"; did you mean {close[0]!r}?" if close else ""

    def spread(self, name: str, columns: Sequence[str]) -> None:
        """Replace a matrix by its columns.

        Raises:
            DatasetError: it has not that many.
        """
        matrix = self.arrays[name]
        if matrix.ndim != 2 or matrix.shape[1] != len(columns):
            raise DatasetError(
                f"{self.where}: {name!r} has shape {matrix.shape}, "
                f"{len(columns)} columns are declared"
            )
        del self.arrays[name]
        self.arrays |= {column: matrix[:, i] for i, column in enumerate(columns)}


def numbers(table: Table, name: str, *, missing: frozenset[str]) -> NDArray[np.float64]:
    """A column of finite numbers; NaN where a value is missing, if that is allowed.

    Raises:
        DatasetError: another type, not a number, infinite, or missing.
    """
    values = _flat(table, name)
    if values.dtype.kind in "biuf":
        result = values.astype(np.float64)
        bad = np.isnan(result) & (not missing)
    else:
        cells = texts(table, name)
        absent = (
            np.isin(cells, list(missing)) if missing else np.zeros(len(cells), bool)
        )
        parsed = pd.to_numeric(
            pd.Series(np.where(absent, "nan", cells)), errors="coerce"
        )
        result = parsed.to_numpy(dtype=np.float64)
        bad = np.isnan(result) & ~absent
    _refuse(table, name, bad, "is not a number")
    _refuse(table, name, np.isinf(result), "is infinite")
    return result


def codes(
    table: Table,
    name: str,
    known: Mapping[str, int],
    *,
    missing: frozenset[str],
    what: str,
) -> NDArray[np.float64]:
    """A column of names as their codes; NaN where a value is missing, if allowed.

    Raises:
        DatasetError: a name that is not known.
    """
    cells = pd.Series(texts(table, name))
    result = cells.map(dict(known)).to_numpy(dtype=np.float64)
    bad = np.isnan(result) & ~np.isin(cells.to_numpy(dtype=str), list(missing))
    if bad.any():
        cell = str(cells[int(np.flatnonzero(bad)[0])])
        close = difflib.get_close_matches(cell, list(known), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        _refuse(table, name, bad, f"is no declared {what}{hint}")
    return np.asarray(result, dtype=np.float64)


def texts(table: Table, name: str) -> NDArray[np.str_]:
    """A column as text: whole numbers without a decimal point, None as empty.

    Raises:
        DatasetError: more than one axis.
    """
    values = _flat(table, name)
    if values.dtype.kind == "f" and np.equal(np.mod(values, 1), 0).all():
        values = values.astype(np.int64)
    if values.dtype.kind == "O":
        return np.array(["" if v is None else str(v) for v in values], dtype=np.str_)
    return values.astype(np.str_)


def _flat(table: Table, name: str) -> NDArray[Any]:
    values = table.arrays[name]
    if values.ndim != 1 or values.dtype.kind not in "biufUO":
        raise DatasetError(
            f"{table.where}: column {name!r} is {values.dtype} of {values.ndim} axes"
        )
    return values


def _refuse(table: Table, name: str, bad: NDArray[np.bool_], reason: str) -> None:
    if not bad.any():
        return
    row = int(np.flatnonzero(bad)[0])
    cell = repr(str(table.arrays[name][row])[:_SHOWN])
    count = int(bad.sum())
    more = f" (and {count - 1} more)" if count > 1 else ""
    raise DatasetError(
        f"{table.where}: column {name!r}, {table.place(row)}: {cell} {reason}{more}"
    )
