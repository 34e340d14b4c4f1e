"""Cells of one column, of a file or a data frame, into what a model takes.

A cell is read as training and assessment read it: a number by its value, a category by
its name. One without a value is sent as NaN where the model takes floats, and refused
anywhere else. Errors name column and row.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sealgate.errors import TensorError
from sealgate.protocol.datatypes import BYTES, DATATYPES

__all__ = ["Cell", "category", "number", "read_cells", "texts_of"]

Array = npt.NDArray[Any]
# The text of a cell; None where there is no value. An empty one has none either, but
# where the model takes texts.
Cell = str | None

# Digits in one way only: a label from anyone is read by it.
_NUMBER = re.compile(
    r"[+-]?(?:(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|nan|inf|infinity)",
    re.IGNORECASE,
)
_PLAIN = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?")
_WHOLE = re.compile(r"[+-]?[0-9]{1,40}(?:\.0*)?")
_TRUTH = {"true": 1.0, "false": 0.0}
_BOOLEANS = {"true": True, "false": False, "1": True, "0": False}
_SHOWN = 40


def read_cells(
    cells: Sequence[Cell],
    datatype: str,
    *,
    categories: Sequence[str] = (),
    where: str,
    row: Callable[[int], str],
) -> Array:
    """A column in a dtype that holds every value of the model's datatype.

    Args:
        cells: its texts.
        datatype: of the model's input.
        categories: their names, in the order of their codes; none for other columns.
        where: the column, for errors.
        row: what a row is called there.

    Returns:
        Of floats 64-bit ones, of other datatypes their own dtype.

    Raises:
        TensorError: a cell is none of what the model takes; names column and row.
    """
    dtype = DATATYPES.get(datatype, np.dtype(np.float64))
    parse = _parser(dtype, categories)
    known: dict[Cell, Any] = {}
    for cell in dict.fromkeys(cells):
        try:
            known[cell] = parse(cell)
        except ValueError as error:
            shown = repr((cell or "")[:_SHOWN]) if _filled(cell) else "an empty cell"
            place = row(list(cells).index(cell))
            raise TensorError(f"{where}, {place}: {shown} {error}") from None
    values = [known[cell] for cell in cells]
    if dtype == BYTES:
        result = np.empty(len(values), dtype=BYTES)
        result[:] = values
        return result
    return np.array(values, dtype=dtype if dtype.kind in "iub" else np.float64)


def texts_of(values: Iterable[Any], where: str) -> list[Cell]:
    """The cells of a column that a library gives as objects.

    Raises:
        TensorError: points in time, or what else is no cell.
    """
    return [_text(value, where) for value in values]


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


def _parser(dtype: np.dtype[Any], categories: Sequence[str]) -> Callable[[Cell], Any]:
    """What reads one cell, or raises a ValueError that says what it is not."""
    if dtype == BYTES:
        return _text_cell
    if dtype.kind == "b":
        return _boolean
    if categories:
        return _code_reader(dtype, categories)
    return _whole_reader(dtype) if dtype.kind in "iu" else _float


def _text_cell(cell: Cell) -> str:
    if cell is None:
        raise ValueError("is no text")
    return cell


def _boolean(cell: Cell) -> bool:
    known = _BOOLEANS.get((cell or "").strip(" \t").lower())
    if known is None:
        raise ValueError("is neither true nor false")
    return known


def _float(cell: Cell) -> float:
    value = number(cell) if cell is not None and _filled(cell) else math.nan
    if value is None:
        raise ValueError("is not a number")
    return value


def _whole_reader(dtype: np.dtype[Any]) -> Callable[[Cell], int]:
    low, high = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)

    def read(cell: Cell) -> int:
        text = (cell or "").strip(" \t")
        # By its digits: a double would round those beyond 2**53.
        if _WHOLE.fullmatch(text):
            value = int(text.partition(".")[0])
        else:
            found = number(text)
            if found is None or found % 1 != 0:
                raise ValueError("is not a whole number")
            value = int(found)
        if not low <= value <= high:
            raise ValueError(f"is out of range, {low} to {high}")
        return value

    return read


def _code_reader(
    dtype: np.dtype[Any], names: Sequence[str]
) -> Callable[[Cell], float | int]:
    # Where no category looks like a number, codes may stand in the cells.
    coded = all(number(name) is None for name in names)

    def read(cell: Cell) -> float | int:
        if (cell is None or not _filled(cell)) and dtype.kind == "f":
            return math.nan
        cell = cell or ""
        code: float | None = category(cell, names)
        if code is None and coded:
            code = number(cell)
        if code is None or code not in range(len(names)):
            raise ValueError("is no category of the model")
        return code

    return read


def _filled(cell: Cell) -> bool:
    return bool((cell or "").strip(" \t"))


def _text(value: Any, where: str) -> Cell:
    if value is None or _is_missing(value):
        return None
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise TensorError(f"{where}: an element is not UTF-8") from None
    if hasattr(value, "isoformat") or isinstance(value, np.datetime64 | np.timedelta64):
        raise TensorError(f"{where}: points in time cannot be sent; send numbers")
    return str(value)


def _is_missing(value: Any) -> bool:
    """NaN, NaT, and pandas.NA, which compares to nothing."""
    try:
        return bool(value != value)  # noqa: PLR0124
    except (TypeError, ValueError):
        return type(value).__name__ == "NAType"
