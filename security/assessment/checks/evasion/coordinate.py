"""Coordinate search: one column at a time, to the value that helps most.

For models without gradients, trees first: between two of its thresholds a tree answers
the same, so the values just beyond each threshold are all there is to try. Elsewhere
the ends of what is allowed, and a few values between.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

__all__ = ["CoordinateSearch", "coordinate_search", "thresholds"]

Floats = NDArray[np.float64]
Places = NDArray[np.int64]
Evaluate = Callable[[Floats, Places], Floats]

_BATCH = 8192
_BETWEEN = 3
_MAX_VALUES = 64


@dataclass(frozen=True, eq=False)
class CoordinateSearch:
    """What is searched.

    Attributes:
        centre, low, high: ``(n, d)``, raw values.
        begin: ``(n, d)``, where the second start is.
        thresholds: ascending, per column; empty where none are known.
        steps: columns changed, at most, per start.
        starts: the row itself, then `begin`, then random points of its box.
    """

    centre: Floats
    begin: Floats
    low: Floats
    high: Floats
    thresholds: Sequence[Floats]
    steps: int
    starts: int


def coordinate_search(
    search: CoordinateSearch, evaluate: Evaluate, random: np.random.Generator
) -> tuple[Floats, Floats]:
    """The best raw rows found ``(n, d)`` and their margins ``(n,)``."""
    best = search.centre.copy()
    value = evaluate(best, np.arange(len(best)))
    left = np.flatnonzero(~(value < 0))
    moves = {int(row): _moves(search, int(row)) for row in left}
    for start in range(search.starts):
        left = np.flatnonzero(~(value < 0))
        if not len(left):
            break
        points = search.begin[left] if start == 1 else search.centre[left]
        if start > 1:
            share = random.random(points.shape)
            point = search.low[left] + share * (search.high - search.low)[left]
            points = np.where(random.random(points.shape) < 0.5, point, points)
        found, margin = _climb(search.steps, points, left, evaluate, moves)
        better = ~(margin >= value[left])
        best[left[better]], value[left[better]] = found[better], margin[better]
    return best, value


def thresholds(model: bytes, columns: int) -> list[Floats]:
    """The values at which the trees of a model branch, per column.

    Empty where the model has no tree, or where a tree does not read the input itself.
    """
    graph = onnx.load_model_from_string(model).graph
    stored = {item.name for item in graph.initializer}
    inputs = {item.name for item in graph.input} - stored
    found: list[set[float]] = [set() for _ in range(columns)]
    if len(inputs) != 1:  # whose columns are counted from each input's own start
        return [np.empty(0) for _ in found]
    for node in graph.node:
        if not node.op_type.startswith("TreeEnsemble") or node.input[0] not in inputs:
            continue
        values = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        places = values.get("nodes_featureids", ())
        modes = values.get("nodes_modes", ())
        for place, mode, value in zip(places, modes, values.get("nodes_values", ())):
            if mode != b"LEAF" and 0 <= place < columns:
                found[place].add(float(value))
    return [np.array(sorted(values)) for values in found]


def _climb(
    steps: int,
    points: Floats,
    rows: Places,
    evaluate: Evaluate,
    moves: Mapping[int, _Moves],
) -> tuple[Floats, Floats]:
    """Greedy steps from where each row stands."""
    value = evaluate(points, rows)
    active = np.flatnonzero(~(value < 0))
    for _ in range(steps):
        active = active[[len(moves[int(row)].values) > 0 for row in rows[active]]]
        if not len(active):
            break
        own = [moves[int(row)] for row in rows[active]]
        column, moved, margin = _best_moves(points[active], rows[active], own, evaluate)
        better = margin < value[active]
        active = active[better]
        points[active, column[better]] = moved[better]
        value[active] = margin[better]
        active = active[value[active] >= 0]
    return points, value


@dataclass(frozen=True, eq=False)
class _Moves:
    """Every change of one column of a row: which, and to what."""

    columns: Places
    values: Floats


def _best_moves(
    points: Floats, rows: Places, moves: Sequence[_Moves], evaluate: Evaluate
) -> tuple[Places, Floats, Floats]:
    """Of each row the best move: its column, its value, the margin after it."""
    sizes = np.array([len(own.values) for own in moves])
    column, value, margin = np.empty(len(rows), int), *np.empty((2, len(rows)))
    first = 0
    while first < len(rows):
        count = max(1, int((np.cumsum(sizes[first:]) <= _BATCH).sum()))
        part = slice(first, first + count)
        columns = np.concatenate([own.columns for own in moves[part]])
        values = np.concatenate([own.values for own in moves[part]])
        made = np.repeat(points[part], sizes[part], axis=0)
        made[np.arange(len(made)), columns] = values
        found = evaluate(made, np.repeat(rows[part], sizes[part]))
        found = np.where(np.isnan(found), np.inf, found)
        ends = np.cumsum(sizes[part])
        best = np.array(
            [
                end - size + found[end - size : end].argmin()
                for end, size in zip(ends, sizes[part])
            ]
        )
        column[part], value[part], margin[part] = (
            columns[best],
            values[best],
            found[best],
        )
        first += count
    return column, value, margin


def _moves(search: CoordinateSearch, row: int) -> _Moves:
    """All that may be tried of one row, whatever it stands at."""
    columns = np.flatnonzero(search.high[row] > search.low[row])
    values = [_values(search, int(column), row) for column in columns]
    sizes = [len(item) for item in values]
    return _Moves(
        np.repeat(columns, sizes), np.concatenate(values) if values else np.empty(0)
    )


def _values(search: CoordinateSearch, column: int, row: int) -> Floats:
    low, high = search.low[row, column], search.high[row, column]
    known = search.thresholds[column]
    inside = known[(known >= low) & (known <= high)]
    if len(inside) > _MAX_VALUES:
        inside = inside[np.linspace(0, len(inside) - 1, _MAX_VALUES).astype(int)]
    if not len(known):
        return np.linspace(low, high, _BETWEEN + 2)
    # A branch is taken at or below its threshold, or above: on it, and just beyond.
    single = inside.astype(np.float32)
    above = np.nextafter(single, np.float32(np.inf)).astype(np.float64)
    below = np.nextafter(single, np.float32(-np.inf)).astype(np.float64)
    values = np.concatenate([[low, high], inside, above, below])
    return np.unique(np.clip(values, low, high))
