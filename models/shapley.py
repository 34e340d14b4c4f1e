"""Shapley values of a row's columns, from what a model answers about mixed rows.

The game: a coalition's columns are the row's, all others a reference's. A permutation
brings the columns in one after the other; what each changes is one estimate of its
value. Permutations come in antithetic pairs, one and its reverse (Mitchell, Cooper,
Frank, Holmes, "Sampling Permutations for Shapley Value Estimation", JMLR 2022). Each
order's changes add up to the row's value less the reference's: additivity is exact.

They follow from a fixed seed: the same question has the same answer. Nothing is secret
about them, and the error that is stated is over pairs drawn once, independently.

Where columns do not interact, one pair is exact, and shows it: a column changes as much
when it comes first as when it comes last.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["LocalModel", "Orders", "fit_local", "log_odds", "nearby"]

Array = NDArray[np.generic]
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

# Probabilities are floats of 32 bits, and below this none of them is exact.
_LEAST = float(np.finfo(np.float32).tiny)
_SEED = 0
# How far a nearby row is moved: standard deviation, as a share of the public range.
_REACH = 0.1
_OTHER_CATEGORY = 0.5


class Orders:
    """Antithetic pairs of permutations of columns.

    Attributes:
        pairs: how many.
        coalitions: that have to be asked about, neither empty nor full, for a row and a
            reference: ``2 pairs (columns - 1)``.

    >>> Orders(3, 1).masks(0, 4).sum(axis=1).tolist()
    [1, 2, 1, 2]
    """

    def __init__(self, columns: int, pairs: int) -> None:
        self.pairs = pairs
        self._columns = columns
        self._steps = columns - 1
        self.coalitions = 2 * pairs * self._steps
        order = np.tile(np.arange(columns), (pairs, 1))
        order = np.random.default_rng(_SEED).permuted(order, axis=1)
        self._order = np.stack([order, order[:, ::-1]], axis=1)  # (pairs, 2, columns)
        self._rank = np.argsort(self._order, axis=2).reshape(-1, columns)

    def masks(self, start: int, stop: int) -> Mask:
        """Coalitions from one place to another ``(stop - start, columns)``.

        Places beyond `coalitions` begin again.
        """
        place = np.arange(start, stop) % max(1, self.coalitions)
        which, size = place // self._steps, place % self._steps + 1
        mask: Mask = self._rank[which] < size[:, None]
        return mask

    def attributions(
        self, values: Floats, rows: Floats, references: Floats
    ) -> tuple[Floats, Floats]:
        """Shapley values and their standard errors, ``(rows, columns)`` each.

        Of several references the value is the mean. The error is that of the mean over
        pairs; of one pair, half of what its two orders differ by.

        Args:
            values: ``(rows, references, coalitions)``, what the model answers.
            rows: ``(rows,)``, what it answers about each row.
            references: ``(rows, references)``, and about each reference.
        """
        shape = (*references.shape, self.pairs, 2, self._steps)
        edge = (*shape[:-1], 1)
        first, last = references[..., None, None, None], rows[:, *[None] * 4]
        whole = np.concatenate(
            [
                np.broadcast_to(first, edge),
                values.reshape(shape),
                np.broadcast_to(last, edge),
            ],
            axis=-1,
        )
        changes = np.diff(whole, axis=-1).mean(axis=1)
        found = np.empty_like(changes)
        np.put_along_axis(found, self._order[None], changes, axis=-1)
        pairs = found.mean(axis=2)
        if self.pairs == 1:
            return pairs[:, 0], np.abs(found[:, 0, 0] - found[:, 0, 1]) / 2
        error = pairs.std(axis=1, ddof=1) / np.sqrt(self.pairs)
        return pairs.mean(axis=1), np.asarray(error)


def log_odds(chances: NDArray[np.floating], which: NDArray[np.intp]) -> Floats:
    """``log(p / q)`` of one class each ``(n,)``, q what all other classes have.

    Not ``log(p / (1 - p))``: a float of 32 bits holds 1e-30, but not 1 less that.

    Args:
        chances: ``(n, classes)``.
        which: ``(n,)``, the classes.

    >>> log_odds(np.array([[1.0, 1e-30]]), np.array([0])).round(2).tolist()
    [69.08]
    """
    wide = np.asarray(chances, np.float64)
    rows = np.arange(len(wide))
    own = wide[rows, which]
    others = wide.copy()
    others[rows, which] = 0.0
    rest = others.sum(axis=1)
    ratio: Floats = np.log(np.maximum(own, _LEAST)) - np.log(np.maximum(rest, _LEAST))
    return ratio


@dataclass(frozen=True, eq=False)
class LocalModel:
    """A linear model of what is answered near one row.

    Attributes:
        slopes: ``(columns,)``: what a whole public range of a column would change, or
            having the row's category and not another one.
        errors: their standard errors.
        fit: R squared, at most 1.
    """

    slopes: Floats
    errors: Floats
    fit: float


def nearby(
    row: Floats, low: Floats, high: Floats, categories: Mask, count: int
) -> Floats:
    """Rows near one ``(count, columns)``; after LIME (Ribeiro, Singh, Guestrin 2016).

    Numbers move by a tenth of their public range (standard deviation) and stay in it;
    every other category is drawn anew. What is missing stays so.
    """
    random = np.random.default_rng(_SEED)
    shape = (count, len(row))
    inside = np.clip(row, low, high)
    moved = inside + _REACH * (high - low) * random.standard_normal(shape)
    rows = np.clip(moved, low, high)
    drawn = low + np.floor((high - low + 1) * random.random(shape))
    anew = random.random(shape) < _OTHER_CATEGORY
    rows = np.where(categories, np.where(anew, drawn, row), rows)
    return np.asarray(np.where(np.isnan(row), row, rows))


def fit_local(
    row: Floats, rows: Floats, values: Floats, span: Floats, categories: Mask
) -> LocalModel:
    """Least squares over nearby rows.

    Args:
        row: ``(columns,)``.
        rows: of `nearby`.
        values: ``(count,)``, what the model answers about them.
        span: ``(columns,)``, width of each public range.
        categories: which columns are.
    """
    own = np.where(np.isnan(row), 0.0, row)
    filled = np.where(np.isnan(rows), own, rows)
    design = np.where(categories, filled == own, (filled - own) / span)
    centred = design - design.mean(axis=0)
    target = values - values.mean()
    gram = centred.T @ centred
    gram[np.diag_indices_from(gram)] += 1e-9 * len(rows)  # columns that cannot move
    inverse = np.linalg.inv(gram)
    slopes = inverse @ (centred.T @ target)
    left = target - centred @ slopes
    free = max(1, len(rows) - len(row) - 1)
    errors = np.sqrt(np.diag(inverse) * float(left @ left) / free)
    errors[~centred.any(axis=0)] = 0.0
    total = float(target @ target)
    return LocalModel(slopes, errors, 1 - float(left @ left) / total if total else 1.0)
