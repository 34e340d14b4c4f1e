"""What became of each row, as tables: the most telling rows first."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from security.assessment.reporting.words import words

__all__ = ["row_tables"]

# All of them are in scan.json.
_MOST = 300
# What rows are told apart by, and whether the largest or the smallest tells most.
_MEASURES = {"distance": 1, "cost": 1, "edits": 1, "change": -1}

Rows = Sequence[Mapping[str, Any]]


def row_tables(
    details: Mapping[str, Any], classes: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Tables of a check's rows, or of those of each norm; none where it keeps none.

    Args:
        details: of the check.
        classes: names of the labels.
    """
    norms = details.get("norms", {})
    kept = {norm: item.get("rows") for norm, item in norms.items()}
    for title, rows in (kept or {"": details.get("rows")}).items():
        first = rows[0] if rows else {}
        measure = next((name for name in _MEASURES if name in first), None)
        if measure is not None:
            yield _table(title, rows, measure, classes)


def _table(
    norm: str, rows: Rows, measure: str, classes: Sequence[str]
) -> dict[str, Any]:
    def order(row: Mapping[str, Any]) -> float:
        value = row[measure]
        return math.inf if value is None else _MEASURES[measure] * value

    shown = sorted(rows, key=order)[:_MOST]
    names = ["row", *(n for n in ("label", "truth", "answer") if n in rows[0]), measure]
    names += [
        name
        for name, value in rows[0].items()
        if name not in names and not isinstance(value, list | dict)
    ]
    which = f", {words(norm)}" if norm else ""
    some = f"the {_MOST} most telling of " if len(rows) > _MOST else ""
    return {
        "title": f"Rows{which}: {some}{len(rows)}",
        "columns": ["class" if name == "label" else words(name) for name in names],
        "rows": [
            [_said(name, row.get(name), classes) for name in names] for row in shown
        ],
    }


def _said(name: str, value: Any, classes: Sequence[str]) -> Any:
    if value is None:
        return "none"
    if name == "row":
        return str(value)
    if name == "label" and isinstance(value, int) and 0 <= value < len(classes):
        return classes[value]
    return value
