"""Square attack (Andriushchenko et al. 2020): random search on scores alone.

For images a square of pixels moves at a time; for tables, where neighbours mean
nothing, a random set of columns. Every question is about a row that may be sent: inside
its ball, its ranges and its rules.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from security.assessment.plan.images import Layout

__all__ = ["Search", "square"]

Floats = NDArray[np.float64]
Places = NDArray[np.int64]
# Margins of rows (by their places in the batch); negative is broken, NaN is useless.
Evaluate = Callable[[Floats, Places], Floats]

_FIRST_SHARE = 0.8
# After these of 10,000 queries the share of pixels that moves is halved again.
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


@dataclass(frozen=True, eq=False)
class Search:
    """Where a search may go.

    Attributes:
        centre, low, high: ``(n, d)``, in attack coordinates.
        radius: ``(n,)``, for L2; infinite where the box alone bounds.
        norm: "linf" or "l2".
        image: where the pixels lie, of images; otherwise None.
        queries: per row, at most.
    """

    centre: Floats
    low: Floats
    high: Floats
    radius: Floats
    norm: str
    image: Layout | None
    queries: int


def square(
    search: Search, evaluate: Evaluate, random: np.random.Generator
) -> tuple[Floats, Floats]:
    """The best points found ``(n, d)`` and their margins ``(n,)``."""
    left = np.arange(len(search.centre))
    points = _inside(search, left, _stripes(search, random))
    best = points.copy()
    value = _known(evaluate(points, left))
    for query in range(1, search.queries):
        left = np.flatnonzero(value >= 0)
        if not len(left):
            break
        share = _share(query, search.queries)
        moved = _inside(search, left, _moved(search, best[left], left, share, random))
        found = _known(evaluate(moved, left))
        # Equal is taken too: on a plateau of equal scores the search has to wander.
        better = found <= value[left]
        best[left[better]] = moved[better]
        value[left[better]] = found[better]
    return best, value


def _known(margins: Floats) -> Floats:
    return np.where(np.isnan(margins), np.inf, margins)


def _share(query: int, total: int) -> float:
    position = query / total * 10_000
    return float(_FIRST_SHARE / 2 ** sum(position > bound for bound in _HALVINGS))


def _stripes(search: Search, random: np.random.Generator) -> Floats:
    """The start: stripes of an image, random corners of a table's box."""
    rows, width = search.centre.shape
    if search.image is not None:
        channels, height, columns = search.image.shape
        sign = random.choice([-1.0, 1.0], size=(rows, channels, 1, columns))
        signs = np.broadcast_to(sign, (rows, channels, height, columns))
        signs = search.image.rows(signs)
    else:
        signs = random.choice([-1.0, 1.0], size=(rows, width))
    corner = np.where(signs > 0, search.high, search.low)
    if search.norm == "linf":
        return corner
    step = signs * (search.high > search.low)
    return search.centre + step * _reach(search, np.arange(rows))[:, None]


def _moved(
    search: Search,
    points: Floats,
    left: Places,
    share: float,
    random: np.random.Generator,
) -> Floats:
    window = _window(search, len(left), share, random)
    sign = random.choice([-1.0, 1.0], size=(len(left), 1))
    if search.image is not None:
        channels = search.image.channels
        sign = random.choice([-1.0, 1.0], size=(len(left), channels, 1, 1))
        sign = np.broadcast_to(sign, (len(left), *search.image.shape))
        sign = search.image.rows(sign)
    elif search.norm == "linf":
        sign = random.choice([-1.0, 1.0], size=points.shape)
    if search.norm == "linf":
        corner = np.where(sign > 0, search.high[left], search.low[left])
        return np.where(window, corner, points)
    # What the window held, and as much again, in a direction of its own.
    centre = search.centre[left]
    moved = points - centre
    held = np.sqrt((np.where(window, moved, 0.0) ** 2).sum(axis=1, keepdims=True))
    extra = held + _reach(search, left)[:, None] * np.sqrt(share)
    shape = random.normal(size=points.shape) * 0.3 + sign
    shape = np.where(window, shape * (search.high[left] > search.low[left]), 0.0)
    length = np.sqrt((shape**2).sum(axis=1, keepdims=True))
    return centre + np.where(window, shape / np.maximum(length, 1e-12) * extra, moved)


def _window(
    search: Search, rows: int, share: float, random: np.random.Generator
) -> NDArray[np.bool_]:
    width = search.centre.shape[1]
    if search.image is None:
        # At least one column, whatever the share.
        ranks = random.random((rows, width)).argsort(axis=1).argsort(axis=1)
        return np.asarray(ranks < max(1, round(share * width)))
    _, height, columns = search.image.shape
    side = max(1, min(round(np.sqrt(share * height * columns)), height, columns))
    top = random.integers(0, height - side + 1, size=(rows, 1))
    left = random.integers(0, columns - side + 1, size=(rows, 1))
    inside_rows = _between(np.arange(height), top, side)
    inside_columns = _between(np.arange(columns), left, side)
    window = inside_rows[:, None, :, None] & inside_columns[:, None, None, :]
    return search.image.rows(np.broadcast_to(window, (rows, *search.image.shape)))


def _between(
    places: Sequence[int] | Places, start: Places, side: int
) -> NDArray[np.bool_]:
    return np.asarray((places >= start) & (places < start + side))


def _reach(search: Search, rows: Places) -> Floats:
    """The radius, or for none the size of the box."""
    box = np.sqrt(((search.high[rows] - search.low[rows]) ** 2).sum(axis=1))
    return np.minimum(search.radius[rows], box)


def _inside(search: Search, rows: Places, points: Floats) -> Floats:
    centre = search.centre[rows]
    if search.norm == "l2":
        moved = points - centre
        length = np.sqrt((moved**2).sum(axis=1, keepdims=True))
        reach = search.radius[rows][:, None]
        # Out to the surface: a random search gains nothing by staying inside.
        scale = np.where(np.isfinite(reach), reach / np.maximum(length, 1e-12), 1.0)
        points = centre + moved * scale
    return np.clip(points, search.low[rows], search.high[rows])
