"""Preprocessing: operators on intervals, each value by itself.

Exact where a column passes through operators that rise or fall; otherwise an interval
that holds every value. Each operation that rounds is widened by what single precision
may round, so that what a server computes lies inside. NaN at both ends is a value that
surely is no number, as what is missing; NaN below and infinite above is one of which
nothing is known, not even that it is a number: it proves nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from security.bounds.curves import sigmoid
from security.bounds.values import Box, Const, Value, spread, stretched
from security.errors import UnboundedModel

__all__ = [
    "BINARY",
    "UNARY",
    "UNEVEN",
    "aligned",
    "anything",
    "clip",
    "doubled",
    "honest",
    "one_box",
    "together",
    "where",
    "widened",
]

Ends = tuple[NDArray[Any], NDArray[Any]]

# Below it, floats of single precision are 0 or have fewer digits; above, infinite.
_TINY = 2.0**-126
_LARGEST = float(np.finfo(np.float32).max)
# Operators that compare, and those that surely make no number of none. Kernels of the
# others may cut what they are given to a range first.
_COMPARE = frozenset(("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"))
_PASS = frozenset(("Abs", "Add", "Div", "Mul", "Neg", "Sub", "Sum"))


def widened(low: NDArray[Any], high: NDArray[Any], error: float) -> Ends:
    """Both ends, further out by a relative error."""
    if not error:
        return low, high
    return low - (np.abs(low) * error + _TINY), high + (np.abs(high) * error + _TINY)


def aligned(first: Value, second: Value) -> tuple[Ends, Ends, tuple[int, ...]]:
    """Two operands of which one or both are boxes, as ends of one shape."""
    shape = together([x.shape for x in (first, second) if isinstance(x, Box)])
    for item in (first, second):
        if isinstance(item, Const):
            _, shape = spread(item.array, shape)
    return _ends(first, shape), _ends(second, shape), shape


def together(shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    """The shape of rows that are stretched to fit each other.

    Raises:
        UnboundedModel: they do not fit, or have other numbers of axes: then the rows of
            the batch are stretched along an axis of one.
    """
    if len({len(shape) for shape in shapes}) > 1:
        raise UnboundedModel("the graph mixes the rows of a batch")
    try:
        return np.broadcast_shapes(*shapes)
    except ValueError:
        raise UnboundedModel("shapes do not fit each other") from None


def doubled(array: NDArray[Any]) -> NDArray[Any]:
    """Numbers in double precision; truth values and whole numbers as they are."""
    return array.astype(np.float64) if array.dtype.kind == "f" else array


def honest(operator: str, made: Ends, given: list[Ends]) -> Ends:
    """What an operator made, where it says less than it seems to.

    No number at both ends means that the value surely is none: of what was one before,
    an operator that passes it on makes one. One that is not below single precision's
    largest, or was made of ends of which one is no number, may be anything.
    """
    low, high = made
    if low.dtype == bool:
        if operator not in _COMPARE:
            return made
        unsure = np.logical_or.reduce(np.broadcast_arrays(*map(anything, given)))
        return low & ~unsure, high | unsure
    none = np.isnan(low) & np.isnan(high)
    if operator in _PASS:
        sure = [np.isnan(ends[0]) & np.isnan(ends[1]) for ends in given]
        none &= ~np.logical_or.reduce(np.broadcast_arrays(*sure))
    one = low == high  # as an infinite number that a row has itself
    large = ~one & (np.maximum(np.abs(low), np.abs(high)) > _LARGEST)
    large |= one & (np.abs(low) > _LARGEST) & np.isfinite(low)
    return np.where(none | large, np.nan, low), np.where(none | large, np.inf, high)


def anything(ends: Ends) -> NDArray[np.bool_]:
    """Where a value may be any number, or none."""
    low, high = ends
    if low.dtype == bool:
        return np.zeros(low.shape, dtype=bool)
    far = (np.isinf(low) | np.isinf(high)) & (low != high)
    return np.asarray((np.isnan(low) != np.isnan(high)) | far)


def _ends(value: Value, shape: tuple[int, ...]) -> Ends:
    if isinstance(value, Const):
        flat, _ = spread(doubled(value.array), shape)
        return flat[None], flat[None]
    if not isinstance(value, Box):
        raise TypeError("a step is no interval")
    if value.shape == shape:
        return value.low, value.high
    places = stretched(value.shape, shape)
    return value.low[:, places], value.high[:, places]


def _products(first: Ends, second: Ends) -> Ends:
    made = [one * other for one in first for other in second]
    return _least(made), _most(made)


def _quotients(first: Ends, second: Ends) -> Ends:
    safe = (second[0] > 0) | (second[1] < 0)
    made = [one / other for one in first for other in second]
    return np.where(safe, _least(made), np.nan), np.where(safe, _most(made), np.inf)


def _least(items: list[NDArray[Any]]) -> NDArray[Any]:
    return np.asarray(np.minimum.reduce(np.broadcast_arrays(*items)))


def _most(items: list[NDArray[Any]]) -> NDArray[Any]:
    return np.asarray(np.maximum.reduce(np.broadcast_arrays(*items)))


def _power(first: Ends, second: Ends) -> Ends:
    """By an exponent that is known; of bases below 0, the square alone."""
    (low, high), power = first, second[0]
    fixed = (power == second[1]) & (power > 0)
    rising = fixed & (low >= 0)
    even = fixed & (power == 2)
    over = (low <= 0) & (high >= 0)
    ends = [np.power(np.abs(end), power) for end in first]
    least = np.where(rising, ends[0], np.where(over, 0.0, _least(ends)))
    known = rising | even
    return np.where(known, least, np.nan), np.where(known, _most(ends), np.nan)


def _equal(first: Ends, second: Ends) -> Ends:
    fixed = (first[0] == first[1]) & (second[0] == second[1])
    return (
        fixed & (first[0] == second[0]),
        (first[0] <= second[1]) & (second[0] <= first[1]),
    )


def _both(function: Callable[..., Any]) -> Callable[[Ends, Ends], Ends]:
    return lambda a, b: (function(a[0], b[0]), function(a[1], b[1]))


BINARY: Mapping[str, tuple[Callable[[Ends, Ends], Ends], int]] = {
    "Add": (lambda a, b: (a[0] + b[0], a[1] + b[1]), 1),
    "Sub": (lambda a, b: (a[0] - b[1], a[1] - b[0]), 1),
    "Mul": (_products, 1),
    "Div": (_quotients, 1),
    "Pow": (_power, 8),
    "Max": (_both(np.maximum), 0),
    "Min": (_both(np.minimum), 0),
    "And": (_both(np.logical_and), 0),
    "Or": (_both(np.logical_or), 0),
    "Equal": (_equal, 0),
    "Less": (lambda a, b: (a[1] < b[0], a[0] < b[1]), 0),
    "LessOrEqual": (lambda a, b: (a[1] <= b[0], a[0] <= b[1]), 0),
    "Greater": (lambda a, b: (a[0] > b[1], a[1] > b[0]), 0),
    "GreaterOrEqual": (lambda a, b: (a[0] >= b[1], a[1] >= b[0]), 0),
}
"""By operator: on the ends of both; how many roundings of single precision it makes."""


def _rising(function: Callable[..., Any]) -> Callable[[Ends], Ends]:
    return lambda ends: (function(ends[0]), function(ends[1]))


def _is_nan(ends: Ends) -> Ends:
    sure = np.isnan(ends[0]) & np.isnan(ends[1])
    return sure, sure | anything(ends)


def _is_inf(ends: Ends) -> Ends:
    sure = np.isinf(ends[0]) & (ends[0] == ends[1])
    return sure, sure | anything(ends)


def _abs(ends: Ends) -> Ends:
    over = (ends[0] <= 0) & (ends[1] >= 0)
    parts = [np.abs(ends[0]), np.abs(ends[1])]
    return np.where(over, 0.0, _least(parts)), _most(parts)


UNARY: Mapping[str, tuple[Callable[[Ends], Ends], int]] = {
    "Abs": (_abs, 0),
    "Exp": (_rising(np.exp), 8),
    "IsInf": (_is_inf, 0),
    "IsNaN": (_is_nan, 0),
    "Log": (_rising(np.log), 8),
    "Neg": (lambda ends: (-ends[1], -ends[0]), 0),
    "Not": (lambda ends: (~ends[1], ~ends[0]), 0),
    "Relu": (_rising(lambda value: np.maximum(value, 0.0)), 0),
    "Sigmoid": (_rising(sigmoid), 16),
    "Sqrt": (_rising(np.sqrt), 1),
    "Tanh": (_rising(np.tanh), 16),
}
"""By operator: on the ends; roundings, for kernels that come within a few ulps."""

UNEVEN: Mapping[str, int] = {"Sigmoid": 4}
"""Roundings of 1, not of the result: kernels make it of a half and something odd."""


def clip(box: Box, low: float, high: float) -> Box:
    """Cut to a range."""
    made = [np.minimum(np.maximum(end, low), high) for end in (box.low, box.high)]
    return Box(*_lost(made[0], made[1]), box.shape)


def where(condition: Ends, first: Ends, second: Ends) -> Ends:
    """One where it is surely true, the other where it surely is not, else either."""
    sure, perhaps = condition
    low = np.where(sure, first[0], np.where(perhaps, np.nan, second[0]))
    high = np.where(sure, first[1], np.where(perhaps, np.nan, second[1]))
    open_ = perhaps & ~sure
    if open_.any():
        either = _least([first[0], second[0]]), _most([first[1], second[1]])
        either = _lost(*either)
        low, high = np.where(open_, either[0], low), np.where(open_, either[1], high)
    return low, high


def _lost(low: NDArray[Any], high: NDArray[Any]) -> Ends:
    """The same ends, and of what may be no number nothing is known."""
    if low.dtype == bool:
        return low, high
    none = np.isnan(low) | np.isnan(high)
    return np.where(none, np.nan, low), np.where(none, np.inf, high)


def one_box(first: Value, second: Value, beside: Value) -> tuple[Value, Value]:
    """The two, one of which is made a box where both are constants."""
    if (
        isinstance(first, Box)
        or isinstance(second, Box)
        or not isinstance(first, Const)
    ):
        return first, second
    rows = len(beside.low) if isinstance(beside, Box) else 1
    rank = first.array.ndim
    flat = doubled(first.array).reshape(1, -1)
    shape = (
        first.array.shape[1:]
        if rank > 1 and len(first.array) == 1
        else (first.array.shape)
    )
    wide = np.broadcast_to(flat, (rows, flat.shape[1]))
    return Box(wide, wide, shape), second
