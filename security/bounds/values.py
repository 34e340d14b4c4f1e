"""What a node of a graph gives, while it is turned into steps.

A row's values lie flat, ``(n, width)``, beside the shape that the graph gives them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from security.errors import UnboundedModel

__all__ = ["Box", "Const", "Sym", "Value", "joined", "picked", "spread", "stretched"]

Floats = NDArray[np.float64]

# Values that a batch is tried on.
_MAX_TRIED = 1 << 24


@dataclass(frozen=True, eq=False)
class Const:
    """The same for every row: weights, sizes.

    Attributes:
        array: of any type.
        counted: which of it are the number of rows of the batch; None for none.
    """

    array: NDArray[Any] = field(repr=False)
    counted: NDArray[np.bool_] | None = field(default=None, repr=False)

    def of(self, rows: int) -> NDArray[Any]:
        """What it is with so many rows."""
        if self.counted is None:
            return self.array
        return np.where(self.counted, rows, self.array)


@dataclass(frozen=True, eq=False)
class Box:
    """An interval for each value of each row, each with its own.

    Attributes:
        low, high: ``(n, width)``; of truth values, whether it is surely and perhaps
            true.
        shape: of a row.
    """

    low: NDArray[Any] = field(repr=False)
    high: NDArray[Any] = field(repr=False)
    shape: tuple[int, ...]

    def take(self, places: NDArray[np.int64], shape: tuple[int, ...]) -> Box:
        """The same values elsewhere."""
        return Box(self.low[:, places], self.high[:, places], shape)


@dataclass(frozen=True)
class Sym:
    """What a step of the network gives.

    Attributes:
        step: its place among the steps.
        shape: of a row.
    """

    step: int
    shape: tuple[int, ...]

    @property
    def width(self) -> int:
        """Values of a row."""
        return math.prod(self.shape)


Value = Const | Box | Sym


def picked(
    shape: tuple[int, ...], batch: int, function: Callable[[Any], Any]
) -> tuple[NDArray[np.int64], tuple[int, ...]]:
    """Where each value of a row comes from, of an operator that only moves values.

    Args:
        shape: of a row before.
        batch: how many rows the operator is tried on.
        function: it, on an array ``(batch, *shape)``.

    Raises:
        UnboundedModel: it mixes the rows of a batch.
    """
    width = math.prod(shape)
    if batch * width > _MAX_TRIED:
        raise UnboundedModel("a batch of rows is too large for bounds")
    marks = np.arange(batch * width).reshape(batch, *shape)
    try:
        moved = np.asarray(function(marks))
    except (ValueError, IndexError, TypeError):
        raise UnboundedModel("an operator does not fit the shape it is given") from None
    rows = moved.reshape(batch, -1) if moved.ndim and len(moved) == batch else None
    first = np.arange(batch)[:, None] * width
    if rows is None or (rows - first != rows[:1]).any() or (rows[0] >= width).any():
        raise UnboundedModel("the graph mixes the rows of a batch")
    return rows[0], moved.shape[1:]


def spread(
    constant: NDArray[Any], shape: tuple[int, ...]
) -> tuple[NDArray[Any], tuple[int, ...]]:
    """A constant beside a row of some shape: flat, and the shape of both together.

    Raises:
        UnboundedModel: they do not fit, or it differs from row to row.
    """
    array = np.asarray(constant)
    if array.ndim > len(shape):
        if array.ndim > len(shape) + 1 or array.shape[0] != 1:
            raise UnboundedModel("a constant differs from row to row")
        array = array[0]
    try:
        both = np.broadcast_shapes(array.shape, shape)
    except ValueError:
        raise UnboundedModel("shapes do not fit each other") from None
    return np.broadcast_to(array, both).reshape(-1), both


def stretched(shape: tuple[int, ...], wanted: tuple[int, ...]) -> NDArray[np.int64]:
    """Where each value comes from when a row is stretched to a larger shape."""
    marks = np.arange(math.prod(shape)).reshape(shape)
    return np.broadcast_to(marks, wanted).reshape(-1)


def joined(
    shapes: list[tuple[int, ...]], axis: int
) -> tuple[NDArray[np.int64], tuple[int, ...]]:
    """Where values lie once rows, flat one behind another, are joined on an axis."""
    marks, first = [], 0
    for shape in shapes:
        marks.append(np.arange(first, first + math.prod(shape)).reshape(1, *shape))
        first += math.prod(shape)
    try:
        made = np.concatenate(marks, axis=axis)
    except ValueError:
        raise UnboundedModel("shapes do not fit each other") from None
    return made.reshape(-1), made.shape[1:]
