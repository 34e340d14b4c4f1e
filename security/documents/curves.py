"""The curves of a model that is a sum over its columns, for its card.

The numbers are those of the provenance report. They can be had of the file, too: its
output of contributions gives each of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from models.manifest import Column
from security.documents.facts import Facts
from security.documents.markup import code, number, table

__all__ = ["curves"]

_BARS = "▁▂▃▄▅▆▇█"
_PLACES = 24
_MAX_TERMS = 256
_MAX_BINS = 4096


def curves(facts: Facts) -> Iterator[str]:
    """A table of the columns, the strongest first; nothing for other models."""
    report = facts.reports.get("provenance")
    stated: Any = {} if report is None else report.details.get("curves")
    terms = stated.get("terms") if isinstance(stated, dict) else None
    columns = {item.name: item for item in facts.manifest.columns}
    if not isinstance(terms, list) or not 0 < len(terms) <= _MAX_TERMS:
        return
    known = [(item, _column(item, columns)) for item in terms]
    found = [_curve(term, column) for term, column in known if column is not None]
    rows = sorted((row for row in found if row is not None), key=lambda row: -row[0])
    if not rows:
        return
    labels = next((item.labels for item in facts.manifest.outputs if item.labels), ())
    second = code(labels[1]) if len(labels) == 2 else "the second class"
    yield "## What it learnt"
    yield (
        f"The log-odds of {second} are {_intercept(stated)} and what each column adds "
        "below, and nothing else: the model is its own explanation. A curve runs from "
        "the lower to the upper end of the column's range, or through its categories "
        "in the order above, and each has its own scale; what is missing counts as the "
        "report says."
    )
    yield table(("Column", "Adds at least", "At most", "Curve"), (r[1] for r in rows))


def _column(term: Any, columns: Mapping[str, Column]) -> Column | None:
    name = term.get("column") if isinstance(term, dict) else None
    return columns.get(name) if isinstance(name, str) else None


def _intercept(stated: Mapping[str, Any]) -> str:
    found = _numbers([stated.get("intercept")])
    return number(found[0]) if found else "a constant"


def _curve(term: Mapping[str, Any], column: Column) -> tuple[float, list[str]] | None:
    """How far it reaches, and its row; None for what is no curve."""
    scores, cuts = _numbers(term.get("scores")), _numbers(term.get("cuts", []))
    if not scores or cuts is None:
        return None
    if column.categories:
        if len(scores) != len(column.categories):
            return None
        drawn: Sequence[float] = scores[:_PLACES]
    else:
        if len(scores) != len(cuts) + 1:
            return None
        drawn = [_at(place, column, cuts, scores) for place in range(_PLACES)]
    low, high = min(scores), max(scores)
    bars = "".join(_bar(value, low, high) for value in drawn)
    return high - low, [code(column.name), number(low), number(high), bars]


def _at(
    place: int, column: Column, cuts: Sequence[float], scores: Sequence[float]
) -> float:
    """The score in the middle of one of the places of a curve."""
    share = (place + 0.5) / _PLACES
    value = column.low + share * (column.high - column.low)
    return scores[sum(value >= cut for cut in cuts)]


def _bar(value: float, low: float, high: float) -> str:
    if not high > low:
        return _BARS[0]
    return _BARS[min(len(_BARS) - 1, int((value - low) / (high - low) * len(_BARS)))]


def _numbers(value: Any) -> list[float] | None:
    """Finite numbers, of which there are not too many; None for anything else."""
    if not isinstance(value, list) or len(value) > _MAX_BINS:
        return None
    return [float(item) for item in value] if all(map(_is_number, value)) else None


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 1e300 and math.isfinite(value)
