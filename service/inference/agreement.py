"""Whether two versions of a model give the same answer to the same input.

What a worker counts of a trial is in its report of what it serves, and `python -m
security agreement` adds up the workers and signs it. Counts are of requests, in memory,
from when the worker began the trial: a worker that ends takes its own along.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from models.manifest import Tensor
from sealgate.protocol.tensors import Array

__all__ = ["Agreement", "Tally", "Trial", "compare"]

# Scores and quantities agree when they differ by less than a hundredth of their size.
_RELATIVE = 0.01
_ABSOLUTE = 1e-3
_TICK_S = 1e-9


@dataclass(frozen=True)
class Agreement:
    """What a comparison found.

    Attributes:
        same: they agree: whole numbers, booleans and texts are equal; of class scores
            the highest is the same class, or both say none; other numbers are within a
            hundredth.
        difference: the largest absolute one between their floating-point numbers.
    """

    same: bool
    difference: float


@dataclass(frozen=True)
class Trial:
    """Two versions that run the same requests.

    Attributes:
        kind: "canary" or "shadow".
        model: the name of both.
        version, tried: of the default, and of the version on trial.
        root_sha256, beside_sha256: of the bytes of the latter, and of the default's.
    """

    kind: str
    model: str
    version: str
    tried: str
    root_sha256: str
    beside_sha256: str

    @property
    def labels(self) -> tuple[str, str, str, str]:
        """For the metrics."""
        return self.model, self.kind, self.version, self.tried


@dataclass
class Tally:
    """What one worker has counted of one trial.

    Attributes:
        since, last: Unix seconds of its begin, and of the last request that counts.
        same, different, failed, skipped: requests, by what became of the comparison.
        default_s, tried_s: seconds from asking a version to its answer, over all
            requests that were compared; waiting for a place is in it.
        log_ratio, log_ratio_squares: sums of ln(tried / default), and of its squares.
    """

    since: float = field(default_factory=time.time)
    last: float = 0.0
    same: int = 0
    different: int = 0
    failed: int = 0
    skipped: int = 0
    default_s: float = 0.0
    tried_s: float = 0.0
    log_ratio: float = 0.0
    log_ratio_squares: float = 0.0

    def count(self, result: str) -> None:
        """One request more, with the name of its field."""
        setattr(self, result, getattr(self, result) + 1)
        self.last = time.time()

    def took(self, default_s: float, tried_s: float) -> None:
        """How long the two versions took for a request, seconds."""
        ratio = math.log(max(tried_s, _TICK_S) / max(default_s, _TICK_S))
        self.default_s += default_s
        self.tried_s += tried_s
        self.log_ratio += ratio
        self.log_ratio_squares += ratio * ratio


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
        # A row without any score is one that a model abstains from.
        silent = np.array_equal(a.any(axis=-1), b.any(axis=-1))
        return silent and np.array_equal(a.argmax(axis=-1), b.argmax(axis=-1))
    return np.allclose(a, b, rtol=_RELATIVE, atol=_ABSOLUTE, equal_nan=True)


def _difference(a: Array, b: Array) -> float:
    # Infinities and NaN on both sides are no difference; on one side, an endless one.
    with np.errstate(invalid="ignore", over="ignore"):
        gap = np.abs(a.astype(np.float64) - b.astype(np.float64))
    gap[(a == b) | (np.isnan(a) & np.isnan(b))] = 0.0
    return float(np.nan_to_num(gap, nan=np.inf, posinf=np.inf).max(initial=0.0))
