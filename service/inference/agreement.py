"""Whether two versions of a model give the same answer to the same input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.manifest import Tensor
from sealgate.protocol.tensors import Array

__all__ = ["Agreement", "compare"]

# Scores and quantities agree when they differ by less than a hundredth of their size.
_RELATIVE = 0.01
_ABSOLUTE = 1e-3


@dataclass(frozen=True)
class Agreement:
    """What a comparison found.

    Attributes:
        same: they agree: whole numbers, booleans and texts are equal; of class scores
            the highest is the same class; other numbers are within a hundredth.
        difference: the largest absolute one between their floating-point numbers.
    """

    same: bool
    difference: float


def compare(
    tensors: Sequence[Tensor], left: Sequence[Array], right: Sequence[Array]
) -> Agreement:
    """Compare two answers to one input.

    Args:
        tensors: what the arrays are, from the manifest.
        left: arrays in that order.
        right: likewise.
    """
    same, difference = True, 0.0
    for tensor, a, b in zip(tensors, left, right):
        if a.shape != b.shape:
            return Agreement(same=False, difference=float("inf"))
        if a.dtype.kind == "f":
            difference = max(difference, _difference(a, b))
        same = same and _same(tensor, a, b)
    return Agreement(same, difference)


def _same(tensor: Tensor, a: Array, b: Array) -> bool:
    if a.dtype.kind != "f":
        return np.array_equal(a, b)
    if tensor.labels and a.ndim and a.size:
        return np.array_equal(a.argmax(axis=-1), b.argmax(axis=-1))
    return np.allclose(a, b, rtol=_RELATIVE, atol=_ABSOLUTE, equal_nan=True)


def _difference(a: Array, b: Array) -> float:
    # Infinities and NaN on both sides are no difference; on one side, an endless one.
    with np.errstate(invalid="ignore", over="ignore"):
        gap = np.abs(a.astype(np.float64) - b.astype(np.float64))
    gap[(a == b) | (np.isnan(a) & np.isnan(b))] = 0.0
    return float(np.nan_to_num(gap, nan=np.inf, posinf=np.inf).max(initial=0.0))
