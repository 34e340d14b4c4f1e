"""The number that a model learns to predict: its public range, and on which scale.

A target is clamped to its range, put on its scale and stretched to [0, 1], which is
what a network with one sigmoid learns. All of it is public, and none is computed from
rows: an end of the range that were the largest target would be somebody's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["SCALES", "Target"]

Floats = NDArray[np.float64]

_SCALES: Mapping[str, tuple[Callable[[Floats], Floats], Callable[[Floats], Floats]]] = {
    "linear": (np.positive, np.positive),
    "sqrt": (np.sqrt, np.square),
    "log": (np.log, np.exp),
}
SCALES = tuple(_SCALES)
"""Names of scales: equal steps are equal differences, of roots, or equal factors."""


@dataclass(frozen=True)
class Target:
    """What is publicly known of the number that is predicted.

    Attributes:
        low, high: of its range, in its own unit; what lies beyond is clamped.
        scale: of `SCALES`: a root needs a low that is not negative, a logarithm one
            above 0.

    >>> count = Target(0.0, 400.0, "sqrt")
    >>> count.shares(np.array([100.0, 900.0])).tolist()
    [0.5, 1.0]
    >>> count.values(np.array([0.5])).tolist()
    [100.0]
    """

    low: float
    high: float
    scale: str = "linear"

    @property
    def ends(self) -> tuple[float, float]:
        """The range on the scale."""
        low, high = _SCALES[self.scale][0](np.array([self.low, self.high])).tolist()
        return low, high

    def shares(self, values: Floats) -> Floats:
        """Numbers in their own unit ``(n,)`` to [0, 1], clamped."""
        low, high = self.ends
        scaled = _SCALES[self.scale][0](np.clip(values, self.low, self.high))
        return (scaled - low) / (high - low)

    def beyond(self, values: Floats) -> NDArray[np.bool_]:
        """Which numbers in their own unit ``(n,)`` lie outside: they are clamped."""
        return (values < self.low) | (values > self.high)

    def values(self, shares: Floats) -> Floats:
        """The way back: from [0, 1] to the number's own unit."""
        low, high = self.ends
        found = _SCALES[self.scale][1](low + shares * (high - low))
        return np.clip(found, self.low, self.high)

    def to_object(self) -> dict[str, Any]:
        """As JSON values."""
        return {"low": self.low, "high": self.high, "scale": self.scale}
