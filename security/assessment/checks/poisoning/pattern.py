"""What a group of training rows shares, and whether that decides the answer.

Rows that stand apart are poisoned only if three things hold, and only then is there a
finding:

1. most of them have the same values in a few columns, where others have other values;
2. those values, put into held-out rows of other classes, get these the group's class,
   by the model as served;
3. but for those columns the rows are like rows of other classes, and held-out rows with
   nearby values are too. A column that means something leaves its marks on others. Of
   images this is not asked: a patch of a few pixels that decides means nothing, whoever
   carries it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.report import Metric
from security.assessment.checks.poisoning.columns import most_columns
from security.assessment.checks.privacy.trained import KnownRows
from security.assessment.plan.context import Context
from security.assessment.results import intervals
from security.assessment.sklearn_library import sklearn

__all__ = ["Pattern", "carriers", "find_pattern", "like_others"]

Floats = NDArray[np.float64]
Places = NDArray[np.int64]

# Fewer columns are taken where they do this much worse at most.
_WORSE = 0.02
# Values this close, as shares of the range, are the same.
_SAME = 0.05
_NEIGHBOURS = 5
_REFERENCE_ROWS = 3000
_ASKED_ROWS = 200


@dataclass(frozen=True, eq=False)
class Pattern:
    """Values of a few columns.

    Attributes:
        columns: their places.
        values: raw, of those columns.
        success: the share of held-out rows of other classes that it turns.
    """

    columns: Places
    values: Floats
    success: Metric


def find_pattern(
    context: Context, rows: NDArray[Any], group: NDArray[np.bool_], label: int
) -> Pattern | None:
    """The best pattern of a group; None where no held-out row could show it.

    Args:
        context: of the scan: its held-out rows are asked about.
        rows: ``(n, d)``, all training rows.
        group: ``(n,)``.
        label: the group's class.
    """
    job = context.job
    asked = job.rows[(job.labels != label) & (job.clean.labels != label)]
    asked = asked[:_ASKED_ROWS]
    if not len(asked):
        return None
    order, middle = _typical(job.space.to_z(rows), group)
    raw = job.space.to_raw(middle)
    tried = []
    count = 1
    while count <= most_columns(rows.shape[1]):
        columns = order[:count]
        success = _success(context, asked, columns, raw[columns], label)
        tried.append(Pattern(columns, raw[columns], success))
        count *= 2
    best = max(item.success.value for item in tried)
    return next(item for item in tried if item.success.value >= best - _WORSE)


def _typical(z: Floats, group: NDArray[np.bool_]) -> tuple[Places, Floats]:
    """Columns by how much more alike the group is in them than others are to it."""
    middle = np.median(z[group], axis=0)
    own = np.abs(z[group] - middle).mean(axis=0)
    others = np.abs(z[~group] - middle).mean(axis=0)
    return np.argsort(-others / (own + _SAME), kind="stable"), middle


def _success(
    context: Context,
    rows: NDArray[Any],
    columns: Places,
    values: Floats,
    label: int,
) -> Metric:
    changed = rows.copy()
    changed[:, columns] = values.astype(rows.dtype)
    turned = context.target.ask(changed).labels == label
    return intervals.proportion(int(turned.sum()), len(turned))


def carriers(
    context: Context, rows: NDArray[Any], pattern: Pattern
) -> NDArray[np.bool_]:
    """Rows that have a pattern ``(n,)``."""
    space = context.job.space
    columns = pattern.columns
    span = (space.high - space.low)[columns]
    gap = np.abs(rows[:, columns].astype(np.float64) - pattern.values)
    return np.asarray((gap <= _SAME * span).all(axis=1))


def like_others(
    context: Context,
    data: KnownRows,
    pattern: Pattern,
    label: int,
    *,
    random: np.random.Generator,
) -> Metric | None:
    """How many carriers of a class resemble other classes, the pattern aside.

    By the nearest rows that do not carry it; None where too few of these are left.
    """
    carrying = carriers(context, data.rows, pattern)
    reference = np.flatnonzero(~carrying)
    asked = np.flatnonzero(carrying & (data.labels == label))[:_ASKED_ROWS]
    if len(reference) < _NEIGHBOURS or not len(asked):
        return None
    reference = random.permutation(reference)[:_REFERENCE_ROWS]
    z = np.delete(context.job.space.to_z(data.rows), pattern.columns, axis=1)
    nearest = sklearn("neighbors").KNeighborsClassifier(_NEIGHBOURS)
    nearest.fit(z[reference], data.labels[reference])
    other = nearest.predict(z[asked]) != label
    return intervals.proportion(int(other.sum()), len(asked))
