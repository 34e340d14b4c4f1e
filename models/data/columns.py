"""A table: columns by name, read as numbers, codes and texts; the one place for both.

The first cell that does not fit is named by its place. A message quotes a cell,
shortened, because it is for whoever holds the data.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.data import cells
from models.errors import DatasetError

__all__ = ["Table", "codes", "numbers", "texts"]

_SHOWN = 40
_NAMED = 10
_NONE: frozenset[str] = frozenset()
_NO_CELLS = {bytes, dict, list, set, tuple, np.ndarray}


@dataclass(eq=False)
class Table:
    """Arrays by name.

    Attributes:
        where: what messages call it.
        arrays: their first axis counts rows. Numbers, or objects: texts as they are
            written, None where a typed cell is null. Or what becomes such an array, and
            may know a faster way to ``floats``.
        lines: where each row begins in its file; none where there are no lines.
    """

    where: str
    arrays: dict[str, Any]
    lines: Sequence[int] = ()

    @property
    def rows(self) -> int:
        """How many, at least."""
        return min((len(a) if a.ndim else 0 for a in self.arrays.values()), default=0)

    def place(self, row: int) -> str:
        """How messages call a row."""
        return f"line {self.lines[row]}" if len(self.lines) else f"row {row + 1}"

    def require(self, wanted: Iterable[str], *, also: Iterable[str] = ()) -> None:
        """Check that every wanted column is there, of one length, and no surplus one.

        Args:
            wanted: must be there.
            also: may be there.

        Raises:
            DatasetError: names those that are missing, else those without a role; or
                they have different lengths.
        """
        wanted = list(wanted)
        missing = [name for name in wanted if name not in self.arrays]
        if missing:
            close = difflib.get_close_matches(missing[0], list(self.arrays), n=1)
            hint = f"; did you mean {close[0]!r}?" if close and not missing[1:] else ""
            raise DatasetError(f"{self.where}: no {_listed(missing)}{hint}")
        surplus = sorted(set(self.arrays) - {*wanted, *also})
        if surplus:
            verb, it = ("have", "each") if surplus[1:] else ("has", "it")
            raise DatasetError(
                f"{self.where}: {_listed(surplus)} {verb} no role: "
                f"make {it} a feature, or list it in drop"
            )
        lengths = {self.arrays[name].shape[:1] for name in wanted}
        if len(lengths) > 1:
            raise DatasetError(
                f"{self.where}: arrays of {len(lengths)} different lengths"
            )

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

    def column(self, name: str) -> NDArray[Any]:
        """A column as it was read.

        Raises:
            DatasetError: more than one axis, or neither numbers nor texts.
        """
        values = self.arrays[name] = np.asarray(self.arrays[name])
        if values.dtype.kind == "M":
            values = values.astype(np.str_)
        if values.ndim != 1 or values.dtype.kind not in "biufUO":
            raise DatasetError(
                f"{self.where}: column {name!r} is {values.dtype} of {values.ndim} axes"
            )
        kinds = set(map(type, values)) if values.dtype.kind == "O" else set()
        if nested := kinds & _NO_CELLS:
            kind = nested.pop().__name__
            raise DatasetError(
                f"{self.where}: column {name!r} has cells of type {kind}"
            )
        return values

    def refuse(self, name: str, bad: NDArray[np.bool_], reason: str) -> None:
        """Refuse the rows that are marked, if any is.

        Raises:
            DatasetError: with the place of the first.
        """
        if not bad.any():
            return
        row = int(np.flatnonzero(bad)[0])
        cell = repr(str(self.column(name)[row])[:_SHOWN])
        count = int(bad.sum())
        more = f" (and {count - 1} more)" if count > 1 else ""
        raise DatasetError(
            f"{self.where}: column {name!r}, {self.place(row)}: {cell} {reason}{more}"
        )


def numbers(
    table: Table, name: str, *, missing: frozenset[str] = _NONE
) -> NDArray[np.float64]:
    """A column of finite numbers; NaN where a value is missing, if that is allowed.

    Args:
        table: where the column is.
        name: of the column.
        missing: cells that mean a missing value. NaN is one where any are declared.

    Raises:
        DatasetError: another type, not a number, infinite, or missing.
    """
    result = _quickly(table, name)
    if result is None:
        result, bad = _cell_by_cell(table.column(name).tolist(), missing)
    else:
        bad = np.isnan(result) & (not missing)
    for mark in map(cells.written_number, missing):
        if mark is not None:
            result[result == mark] = np.nan
    table.refuse(name, bad, "is not a number")
    table.refuse(name, np.isinf(result), "is infinite")
    return result


def codes(
    table: Table,
    name: str,
    known: Mapping[str, int],
    *,
    missing: frozenset[str] = _NONE,
    what: str,
) -> NDArray[np.float64]:
    """A column of names as their codes; NaN where a value is missing, if allowed.

    Raises:
        DatasetError: a name that is not known.
    """
    listed = cells.cells_of(table.column(name))
    distinct = dict.fromkeys(listed)
    absent = _absent(distinct, missing)
    found: dict[Any, float] = {
        **dict.fromkeys(distinct, math.inf),
        **cells.lookup(known, [cell for cell in distinct if cell not in absent]),
        **dict.fromkeys(absent, math.nan),
    }
    result = np.fromiter(map(found.__getitem__, listed), np.float64, len(listed))
    bad = np.isinf(result)
    if bad.any():
        cell = listed[int(np.flatnonzero(bad)[0])]
        close = difflib.get_close_matches(str(cell), list(known), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        table.refuse(name, bad, f"is no declared {what}{hint}")
    return result


def texts(
    table: Table, name: str, *, missing: frozenset[str] = _NONE
) -> NDArray[np.str_]:
    """A column without a declared type, by value; empty where there is none.

    Raises:
        DatasetError: more than one axis.
    """
    values = table.column(name)
    result = cells.plain_texts(values)
    if missing:
        marks = [*missing, *map(cells.canonical, missing)]
        result[np.isin(result, marks)] = ""
    return result


def _quickly(table: Table, name: str) -> NDArray[np.float64] | None:
    """A column of numbers, however written; None where a cell is none."""
    known = table.arrays[name]
    if not isinstance(known, np.ndarray):
        found: NDArray[np.float64] | None = known.floats()
        return found
    values = table.column(name)
    if values.dtype.kind in "biuf":
        return values.astype(np.float64)
    try:
        # Python's own reading of texts takes underscores and every script's digits.
        joined = "".join(values.tolist())
        if "_" in joined or not joined.isascii():
            return None
        return np.fromiter(map(float, values), np.float64, len(values))
    except (TypeError, ValueError):
        return None


def _cell_by_cell(
    listed: list[Any], missing: frozenset[str]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """A column as numbers, and where it holds something else."""
    distinct = dict.fromkeys(listed)
    read = {
        **{cell: cells.number(cell) for cell in distinct},
        **dict.fromkeys(_absent(distinct, missing), math.nan),
    }
    bad = [
        found is None or (not missing and math.isnan(found))
        for found in map(read.__getitem__, listed)
    ]
    result = np.array([read[cell] for cell in listed], dtype=np.float64)
    return result, np.array(bad, dtype=np.bool_)


def _absent(distinct: Iterable[Any], missing: frozenset[str]) -> set[Any]:
    """The cells that mean a missing value: where any may, a null is one."""
    if not missing:
        return set()
    values = {cells.canonical(mark) for mark in missing} - {""}
    return {
        cell
        for cell in distinct
        if cell in missing
        or (not isinstance(cell, str) and cells.is_null(cell))
        or cells.canonical(cell) in values
    }


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:_NAMED]))
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"column{'s' if names[1:] else ''} {shown}{more}"
