"""The fewest columns of a table whose values send everything to one class.

A greedy search that only asks, so that it works for any model: every value that a
column may be set to, alone; then the best one together with each of the next best.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.report import Metric
from security.assessment.checks.evasion.coordinate import thresholds
from security.assessment.plan.context import Context
from security.assessment.results import intervals

__all__ = [
    "Setting",
    "is_candidate",
    "means_something",
    "most_columns",
    "moves_of",
    "search_settings",
    "support",
]

Floats = NDArray[np.float64]
Ask = Callable[[dict[int, float]], NDArray[np.int64]]

_QUANTILES = (0.01, 0.25, 0.5, 0.75, 0.99)
# Values on both sides of so many of a column's thresholds, where the model has any.
_THRESHOLDS = 4
_MAX_COLUMNS, _BEAM = 3, 16
_ENOUGH = 0.95
# Of the rows, those closest in the set columns; their classes say what the data says.
_NEAREST = 0.05
_MIN_NEAREST = 20
# Values this close, as shares of the range, are the same.
_SAME = 0.05
# A trigger is in at most this share of the columns, and in one of a few.
_FEW, _NARROW = 0.1, 8
# So much more often is more, whatever the interval says: of few rows it is wide.
_MORE = 0.15
# Searches per class, each without the column that the one before began with.
_STARTS = 6
# A class that half of the rows have is where everything leads.
_COMMON = 0.5


@dataclass(frozen=True)
class Setting:
    """Columns and the values that they are set to.

    Attributes:
        label: the class that rows are sent to.
        changes: raw values by column.
        share: of the rows that were searched with.
    """

    label: int
    changes: dict[int, float]
    share: float

    def on(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Rows ``(n, d)`` with the values."""
        changed = rows.copy()
        for column, value in self.changes.items():
            changed[:, column] = value
        return changed


def moves_of(context: Context) -> list[dict[int, float]]:
    """What may be set at once: a value of a column, a choice of a one-hot group."""
    space, rows = context.job.space, context.job.rows.astype(np.float64)
    branches = thresholds(context.job.source.model, rows.shape[1])
    moves: list[dict[int, float]] = []
    for column, rule in enumerate(space.rules):
        if rule.change == "never" or rule.group:
            continue
        if rule.kind == "category":
            values = list(rule.values)
        else:
            values = list(_values(context, column, rows[:, column], branches[column]))
        moves += [{column: value} for value in dict.fromkeys(values)]
    for places in space.groups().values():
        if all(space.rules[place].change != "never" for place in places):
            moves += [
                {place: float(place == chosen) for place in places} for chosen in places
            ]
    return moves


def _values(
    context: Context, column: int, own: Floats, branches: Floats
) -> Iterator[float]:
    space = context.job.space
    low, high = float(space.low[column]), float(space.high[column])
    step = np.linspace(0, len(branches) - 1, min(len(branches), _THRESHOLDS))
    near = [
        value + side * 1e-3 * (high - low)
        for value in branches[step.astype(int)]
        for side in (-1, 1)
    ]
    known = own[np.isfinite(own)]
    usual = np.quantile(known, _QUANTILES).tolist() if len(known) else []
    for value in (low, high, *usual, *near):
        whole = round(value) if space.integer[column] else value
        if low <= whole <= high:
            yield float(whole)


def search_settings(
    context: Context, rows: NDArray[Any], labels: list[int]
) -> list[Setting]:
    """The best setting per class, of values that alone mean nothing.

    What means something decides too, and first; a trigger hides behind it.

    Args:
        context: of the scan.
        rows: ``(n, d)``, to be sent elsewhere.
        labels: the classes.
    """
    moves = moves_of(context)
    if not moves:
        return []

    def ask(setting: dict[int, float]) -> NDArray[np.int64]:
        return context.target.ask(Setting(0, setting, 0.0).on(rows)).labels

    given = np.stack([ask(move) for move in moves])
    near = [_nearest(context, move) for move in moves]
    found = []
    for label in labels:
        alone = (given == label).mean(axis=1)
        free = [i for i, own in enumerate(near) if not _speaks(context, own, label)]
        starts: list[Setting] = []
        while free and len(starts) < _STARTS:
            setting = _extended([moves[i] for i in free], alone[free], label, ask)
            starts.append(setting)
            if is_candidate(context, setting):
                break
            first = next(iter(setting.changes))
            free = [i for i in free if first not in moves[i]]
        if starts:
            found.append(starts[-1] if is_candidate(context, starts[-1]) else starts[0])
    return found


def is_candidate(context: Context, setting: Setting) -> bool:
    """Whether few columns do it that mean nothing."""
    few = len(setting.changes) <= most_columns(context.job.rows.shape[1])
    enough = setting.share >= _ENOUGH
    return few and enough and not means_something(context, setting)


def _extended(
    moves: list[dict[int, float]], alone: Floats, label: int, ask: Ask
) -> Setting:
    """The best move, with more added while too few rows are sent."""
    order = np.argsort(-alone, kind="stable")
    best = Setting(label, dict(moves[order[0]]), float(alone[order[0]]))
    for _ in range(1, _MAX_COLUMNS):
        if best.share >= _ENOUGH:
            break
        longer = best
        for place in _others(order, moves, best):
            changes = best.changes | moves[place]
            share = float((ask(changes) == label).mean())
            if share > longer.share:
                longer = Setting(label, changes, share)
        best = longer
    return _cut_back(best, ask)


def _cut_back(setting: Setting, ask: Ask) -> Setting:
    """Without the columns that it does as well without."""
    for column in list(setting.changes):
        changes = {c: v for c, v in setting.changes.items() if c != column}
        share = float((ask(changes) == setting.label).mean()) if changes else -1.0
        if share >= min(setting.share, _ENOUGH):
            setting = Setting(setting.label, changes, share)
    return setting


def _others(
    order: NDArray[np.int64], moves: list[dict[int, float]], best: Setting
) -> list[int]:
    """The moves of the best other columns: alone, a value may do nothing yet."""
    chosen: list[int] = []
    columns: set[tuple[int, ...]] = set()
    for place in order.tolist():
        own = tuple(moves[place])
        if set(own) & set(best.changes):
            continue
        if own in columns or len(columns) < _BEAM:
            columns.add(own)
            chosen.append(place)
    return chosen


def most_columns(width: int) -> int:
    """How many of a row's values a trigger may be: more would be another row.

    >>> most_columns(4), most_columns(12), most_columns(64)
    (1, 2, 6)
    """
    return 1 if width < _NARROW else max(2, int(width * _FEW))


def means_something(context: Context, setting: Setting) -> bool:
    """Whether held-out rows with such values are of the class more often than others.

    Or most rows are of the class anyway: then everything seems to lead there.
    """
    return _speaks(context, _nearest(context, setting.changes), setting.label)


def support(context: Context, setting: Setting) -> Metric:
    """How often held-out rows with such values are of the class in truth."""
    own = context.job.labels[_nearest(context, setting.changes)]
    return intervals.proportion(int((own == setting.label).sum()), len(own))


def _speaks(context: Context, near: NDArray[np.bool_], label: int) -> bool:
    labels = context.job.labels
    usual = float((labels == label).mean())
    known = intervals.proportion(int((labels[near] == label).sum()), int(near.sum()))
    more = known.value > usual + _MORE or (known.low or 0.0) > usual
    return bool(more or usual >= _COMMON or known.value >= _COMMON)


def _nearest(context: Context, changes: dict[int, float]) -> NDArray[np.bool_]:
    """Held-out rows ``(n,)`` with values closest to some.

    Of numbers, rows that have the very values are left out: where the held-out rows
    come from the same poisoned source, they carry the trigger too, and what means
    something means it of values nearby.
    """
    job, columns = context.job, list(changes)
    span = (job.space.high - job.space.low)[columns]
    own = job.rows[:, columns].astype(np.float64)
    far = np.abs(own - np.array(list(changes.values()))) / span
    far = np.nan_to_num(far, nan=1.0).max(axis=1)
    numbers = all(len(np.unique(own[:, place])) > 2 for place in range(len(columns)))
    left = far > _SAME if numbers else np.ones(len(far), bool)
    if left.sum() < _MIN_NEAREST:
        left[:] = True
    count = min(int(left.sum()), max(_MIN_NEAREST, round(_NEAREST * left.sum())))
    # All rows as close as the last one: of a category, everyone who has it.
    return np.asarray(left & (far <= np.sort(far[left])[count - 1]))
