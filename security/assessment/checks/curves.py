"""What a model that explains itself adds for each value of each column: its curves.

They are asked of the file, not read from its evidence: the output that a trained "ebm"
has for this, held to the scores it comes with.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.manifest import Column
from models.sessions import make_session
from models.shapley import log_odds
from security.assessment.plan.context import Context

__all__ = ["curve_views"]

_OUTPUT = "contributions"
_POINTS = 257
_CHARTS = 24
_ROWS = 64
_ADDS_UP = 1e-3
_SATURATED = 6.0

Floats = NDArray[np.float64]


def curve_views(context: Context) -> dict[str, Any]:
    """Charts of numbers and a table of categories; none of another kind of model."""
    job = context.job
    columns = job.source.columns
    if job.remote or job.source.text or not columns:
        return {}
    asked = _Asked(job.source.model)
    rows = job.rows[:_ROWS].astype(np.float32)
    if rows.shape[1] != len(columns) or not asked.adds_up(rows):
        return {}
    usual = rows[:1]
    charts = [
        _chart(asked, usual, place, column)
        for place, column in enumerate(columns)
        if not column.categories
    ]
    categories = [
        row
        for place, column in enumerate(columns)
        if column.categories
        for row in _categories(asked, usual, place, column)
    ]
    table = {
        "title": "What each category adds to the log-odds of the second class",
        "columns": ["column", "category", "adds"],
        "rows": categories,
    }
    return {"charts": charts[:_CHARTS], "tables": [table] if categories else []}


class _Asked:
    """The file's contributions, if it gives any."""

    def __init__(self, model: bytes) -> None:
        self._session = make_session(model)
        self._input = self._session.get_inputs()[0].name
        names = [item.name for item in self._session.get_outputs()]
        self._known = _OUTPUT in names and "probabilities" in names

    def __call__(self, rows: NDArray[Any]) -> Floats:
        """Contributions ``(n, columns)``."""
        (found,) = self._session.run([_OUTPUT], {self._input: rows})
        return np.asarray(found, np.float64)

    def adds_up(self, rows: NDArray[Any]) -> bool:
        """Whether they are the log-odds of the second class, less a constant."""
        if not self._known:
            return False
        (scores,) = self._session.run(["probabilities"], {self._input: rows})
        parts = self(rows)
        if scores.ndim != 2 or scores.shape[1] != 2 or parts.shape != rows.shape:
            return False
        value = log_odds(scores, np.ones(len(scores), np.intp))
        gap = (value - parts.sum(axis=1))[np.abs(value) < _SATURATED]
        return bool(len(gap) and np.ptp(gap) <= _ADDS_UP)


def _at(asked: _Asked, usual: NDArray[Any], place: int, values: NDArray[Any]) -> Floats:
    """What a column adds at some values."""
    rows = np.repeat(usual, len(values), axis=0)
    rows[:, place] = values
    return asked(rows)[:, place]


def _chart(
    asked: _Asked, usual: NDArray[Any], place: int, column: Column
) -> dict[str, Any]:
    values = np.linspace(column.low, column.high, _POINTS, dtype=np.float32)
    if column.low >= 0 and column.high > 1000 * max(column.low, 1.0):
        # What spans factors has most of its steps near the lower end.
        lower = np.geomspace(max(column.low, 1.0), column.high, _POINTS)
        values = np.union1d(values, lower.astype(np.float32))
    added = _at(asked, usual, place, values)
    return {
        "title": f"What {column.name} adds to the log-odds of the second class",
        "x": column.name,
        "y": "adds",
        "series": [{"name": "", "points": _corners(values, added)}],
    }


def _corners(values: NDArray[Any], added: Floats) -> list[list[float]]:
    """The ends of each step: two points where it jumps, none where it is flat."""
    points = [[float(values[0]), float(added[0])]]
    for at in np.flatnonzero(np.diff(added)):
        ends = (at, at + 1)
        points += [[float(values[end]), float(added[end])] for end in ends]
    points.append([float(values[-1]), float(added[-1])])
    return points


def _categories(
    asked: _Asked, usual: NDArray[Any], place: int, column: Column
) -> list[list[str]]:
    codes = np.arange(-1.0, len(column.categories), dtype=np.float32)
    codes[0] = np.nan
    names = ("missing, or none of these", *column.categories)
    added = _at(asked, usual, place, codes)
    return [[column.name, name, f"{one:+.3f}"] for name, one in zip(names, added)]
