"""What a cell says, whatever program wrote it.

A value is written in many ways: ``65``, ``65.0`` and ``6.5e1`` are one number, and a
column of whole numbers with a gap leaves many programs as fractions; ``True``, ``true``
and ``TRUE`` are one truth, and a day at midnight is that day. So cells are compared by
value. A text that merely looks like a number stays a text: ``007`` is not
``7``, and neither is ``+7``. Nothing is missing that was not said to be: ``None``,
``NA`` and ``null`` are texts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "canonical",
    "cells_of",
    "is_null",
    "is_plain_number",
    "is_rounded",
    "lookup",
    "number",
    "plain_texts",
    "written_number",
]

# As programs write numbers: no leading zeros, no plus, which are signs of a text.
# An exponent that is longer is none: such texts are digests, and Decimal refuses them.
_PLAIN = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]*)?(?:[eE][+-]?[0-9]{1,5})?")
_STAMP = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[T ]([0-9]{2}(?::[0-9]{2}){1,2})\.?0*"
)
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_WORDS = re.compile(r"[+-]?(?:nan|inf|infinity)", re.IGNORECASE)
_TRUTH = {"true": 1.0, "false": 0.0}
# Whole numbers with more digits are left as they are written.
_MAX_DIGITS = 40
# Below it, every whole number is a fraction of double precision of its own.
_EXACT = 2.0**53


def is_null(value: Any) -> bool:
    """Whether a typed cell holds no value: None, NaN, or a library's own mark."""
    if value is None:
        return True
    if isinstance(value, str):
        return False
    if value.__class__.__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, float) and math.isnan(value)


def number(value: Any) -> float | None:
    """A cell of a numeric column: NaN where it says so; None where it is no number.

    >>> number("6.5e1"), number(" -0"), number("1_000"), number("true")
    (65.0, -0.0, None, 1.0)
    """
    if not isinstance(value, str):
        return math.nan if is_null(value) else float(value)
    found = written_number(value)
    return _TRUTH.get(value.strip(" \t").lower()) if found is None else found


def written_number(cell: str) -> float | None:
    """A text that is a number, NaN and infinity included; None where it is not.

    Stricter than Python's own reading, which takes ``1_000`` and every script's digits.
    """
    cell = cell.strip(" \t")
    known = _NUMBER.fullmatch(cell) or _WORDS.fullmatch(cell)
    return float(cell) if known else None


def canonical(value: Any) -> str:
    """A cell of a column without a declared type, the same for the same value.

    Empty where there is none. Whole numbers are exact, however large.

    >>> [canonical(cell) for cell in ("3.0", 3, "007", " F ", "1e2", None, "-0.0")]
    ['3', '3', '007', 'F', '100', '', '0']
    """
    if not isinstance(value, str):
        if is_null(value):
            return ""
        value = str(value)
    cell: str = value.strip(" \t")
    if not _PLAIN.fullmatch(cell):
        return _plain_text(cell)
    exact = Decimal(cell)
    if exact.adjusted() >= _MAX_DIGITS:
        return cell if cell.lstrip("-").isdigit() else str(exact.normalize())
    whole = exact.to_integral_value()
    return str(int(whole)) if exact == whole else repr(float(cell))


def _plain_text(cell: str) -> str:
    """A text that is no number; empty for NaN, as typed columns are written."""
    if cell in ("nan", "NaN"):
        return ""
    if cell.lower() in _TRUTH:
        return cell.lower()
    stamp = _STAMP.fullmatch(cell)
    if stamp is None:
        return cell
    day, time = stamp.groups()
    return day if time.strip("0:") == "" else f"{day} {time}"


def is_rounded(value: Any) -> bool:
    """Whether a cell is a fraction so large that its last digits were lost.

    >>> [is_rounded(cell) for cell in (2.0**53, "9007199254740992.0", 2**60, "1e20")]
    [True, True, False, False]
    """
    if isinstance(value, str):
        fraction = "." in value and _PLAIN.fullmatch(value.strip(" \t"))
        return bool(fraction) and abs(float(value)) >= _EXACT
    return isinstance(value, float) and abs(value) >= _EXACT


def is_plain_number(value: Any) -> bool:
    """Whether a cell of a column without a declared type is a number, or a truth."""
    if not isinstance(value, str):
        return not is_null(value)
    cell = value.strip(" \t")
    return bool(_PLAIN.fullmatch(cell)) or cell.lower() in _TRUTH


def cells_of(values: NDArray[Any]) -> list[Any]:
    """A column's cells as Python has them; None where a typed one is null."""
    if values.dtype.kind == "f":
        if values.dtype.itemsize < 8:  # by its shortest text: 0.1, not 0.10000000149
            values = np.array([float(str(value)) for value in values])
        empty = np.isnan(values)
        if empty.any():
            cells = values.astype(object)
            cells[empty] = None
            return list(cells.tolist())
    return list(values.tolist())


def plain_texts(values: NDArray[Any]) -> NDArray[np.str_]:
    """`canonical` of every cell of a column ``(n,)``."""
    if values.dtype.kind in "iu":
        return values.astype(np.str_)
    cells = cells_of(values)
    known = {cell: canonical(cell) for cell in dict.fromkeys(cells)}
    return np.array([known[cell] for cell in cells], dtype=np.str_)


def lookup(names: Mapping[str, int], cells: Iterable[Any]) -> dict[Any, int]:
    """The codes of distinct cells; those that are no name are left out.

    A cell is the name that is spelled as it is; else the only one of the same value.

    >>> lookup({"no": 0, "1": 1}, ["no", "1.0", 1, "yes", None])
    {'no': 0, '1.0': 1, 1: 1}
    """
    values: dict[str, set[int]] = {}
    for name, code in names.items():
        for key in _keys(name):
            values.setdefault(key, set()).add(code)
    found: dict[Any, int] = {}
    for cell in cells:
        if isinstance(cell, str) and cell in names:
            found[cell] = names[cell]
            continue
        for key in _keys(cell):
            if len(values.get(key, ())) == 1:
                (found[cell],) = values[key]
                break
    return found


def _keys(cell: Any) -> tuple[str, ...]:
    """What stands for a cell's value, the closest first; none where there is none."""
    text = canonical(cell)
    truth = _TRUTH.get(text.lower())
    if truth is None:
        return (text,) if text else ()
    return text.lower(), str(int(truth))
