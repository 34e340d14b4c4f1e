"""Lines that hold the logistic function and tanh between them on an interval.

Either function f is convex below 0 and concave above it, rises everywhere, and
``f(x) = 2 f(0) - f(-x)``. A line under f on ``[low, high]`` is one of three:

1. *The chord*, where ``low >= 0``: f is concave there and lies above its chords.
2. *A tangent at d*, ``low <= d <= min(high, 0)``. Up to 0 f is convex, so above it.
   From 0 to ``high`` f less the line is concave, so nowhere below the lesser of its
   ends: at 0 it is at least 0, and at ``high`` it is by choice of d. What the tangent
   has at ``high`` rises with d, so that bisection finds the steepest that is not above
   f there; where ``high <= 0`` every d will do, and the middle is taken.
3. *The chord*, where ``low < 0 < high`` and even the tangent at ``low`` is above f at
   ``high``: then the chord is less steep than f at ``low``, so that f less the chord
   rises from 0 there, is convex to 0 and not below 0, and concave from there to 0 at
   ``high``.

Where an interval is too short for a chord's quotient: through ``(low, f(low))`` with
the lesser slope of both ends. The slope of f has one peak, so it is nowhere less than
that in between.

A line above f is one under it in the mirror. Each is moved outward by more than
double precision rounds; what single precision rounds is counted where f is computed
(`security.bounds.steps.Curve`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

__all__ = ["CURVES", "Lines", "curve_lines", "sigmoid"]

Floats = NDArray[np.float64]
Lines = tuple[Floats, Floats, Floats, Floats]
"""Slopes of a line below and of one above, and what is added to each."""

_TURNS = 40
# Shorter intervals have no chord. Of longer ones a chord is off by 1e-16 / 1e-6 at
# most in its slope, and so by 1e-16 at its end.
_SHORT = 1e-6
# Of values up to 1, and of products that are no larger where a line touches.
_OUTWARD = 1e-12


def sigmoid(value: Floats) -> Floats:
    """The logistic function, within some 1e-16."""
    return np.asarray(0.5 * (1 + np.tanh(value / 2)))


def _sigmoid_slope(value: Floats) -> Floats:
    # Not s (1 - s): of large values nothing would be left of the difference.
    power = np.exp(-np.abs(value))
    return np.asarray(power / (1 + power) ** 2)


def _tanh(value: Floats) -> Floats:
    return np.asarray(np.tanh(value))


def _tanh_slope(value: Floats) -> Floats:
    return 4 * _sigmoid_slope(2 * value)


Function = Callable[[Floats], Floats]
CURVES: Mapping[str, tuple[Function, Function, float]] = {
    "Sigmoid": (sigmoid, _sigmoid_slope, 0.5),
    "Tanh": (_tanh, _tanh_slope, 0.0),
}
"""By operator: the function, its slope, and what it is at 0."""


def curve_lines(operator: str, low: Floats, high: Floats) -> Lines:
    """Two lines that hold a function between them in ``[low, high]``.

    Args:
        operator: of `CURVES`.
        low: the lower ends; NaN, or an infinite one, gives NaN, or a line
            that holds all the same.
        high: the upper ends, of the same shape.

    >>> [item.round(3).item() for item in curve_lines("Tanh", *np.array([-1.0, 1.0]))]
    [0.816, 0.816, -0.055, 0.055]
    """
    function, slope, middle = CURVES[operator]
    below, drop = _under(function, slope, low, high)
    above, sunk = _under(function, slope, -high, -low)
    return below, above, drop, 2 * middle - sunk


def _under(
    function: Function, slope: Function, low: Floats, high: Floats
) -> tuple[Floats, Floats]:
    """A line under a function: its slope, and what is added."""
    top, gap = function(high), high - low

    def fits(at: Floats) -> NDArray[np.bool_]:
        return np.asarray(function(at) + slope(at) * (high - at) <= top)

    left, right = low, np.minimum(high, 0.0)
    bends = (low < 0) & ((high <= 0) | fits(low))
    for _ in range(_TURNS):
        middle = (left + right) / 2
        good = fits(middle)
        left, right = np.where(good, middle, left), np.where(good, right, middle)
    touch = np.where(high <= 0, (low + high) / 2, left)
    short = gap <= _SHORT
    touch = np.where(bends & ~short, touch, low)
    chord = (top - function(low)) / np.where(short, 1.0, gap)
    least = np.minimum(slope(low), slope(high))
    steep = np.where(short, least, np.where(bends, slope(touch), chord))
    return steep, function(touch) - steep * touch - _OUTWARD
