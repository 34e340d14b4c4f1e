"""The network as steps: affine maps, ReLU and curves, on flat rows.

Each step goes forward (intervals through it), backward (coefficients of a linear bound
through it) and says by how much single precision may miss its own result: for a sum of
k products, in whatever order a kernel adds, by at most gamma = k u / (1 - k u) of the
sum of their sizes (Higham, Accuracy and Stability of Numerical Algorithms, section
3.1). Bounds take that as a change that anybody may make there, so that they hold for
what a server computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from security.bounds.boxes import UNARY, UNEVEN
from security.bounds.curves import Lines, curve_lines

__all__ = [
    "SINGLE",
    "Bend",
    "Curve",
    "Dense",
    "Join",
    "Pick",
    "Relu",
    "Scale",
    "Source",
    "Step",
    "Sum",
]

Floats = NDArray[np.float64]
Ends = tuple[Floats, Floats]

SINGLE = 2.0**-24
"""Half the distance from 1 to the next float of single precision."""
_LARGEST = float(np.finfo(np.float32).max)
# Below it, a product has fewer digits, or is 0.
_TINY = 2.0**-126


@dataclass(frozen=True, eq=False)
class Source:
    """Where the network begins: a box for each row ``(n, width)``.

    Attributes:
        low, high: its ends.
    """

    low: Floats = field(repr=False)
    high: Floats = field(repr=False)
    sources: tuple[int, ...] = ()

    @property
    def width(self) -> int:
        """Values of a row."""
        return int(self.low.shape[1])


@dataclass(frozen=True, eq=False)
class Dense:
    """``weight @ row + bias``; convolutions too, written out.

    Attributes:
        weight: ``(width, width of the source)``.
        bias: ``(width,)``.
        terms: products that the operator adds up for one value.
    """

    sources: tuple[int, ...]
    weight: Floats = field(repr=False)
    bias: Floats = field(repr=False)
    terms: int

    @property
    def width(self) -> int:
        """Values of a row."""
        return len(self.bias)

    def forward(self, given: Sequence[Ends]) -> Ends:
        """Intervals through it."""
        ((low, high),) = given
        middle = (low + high) / 2 @ self.weight.T + self.bias
        reach = (high - low) / 2 @ np.abs(self.weight).T
        return middle - reach, middle + reach

    def backward(self, found: Floats) -> tuple[list[Floats], Floats]:
        """Coefficients of the sources, and what stands alone ``(n, specs)``."""
        return [found @ self.weight], found @ self.bias

    def rounding(self, given: Sequence[Ends]) -> Floats:
        """What one evaluation of it may be off by ``(n, width)``."""
        count = self.terms + 2
        gamma = count * SINGLE / (1 - count * SINGLE)
        size = largest(given[0]) @ np.abs(self.weight).T + np.abs(self.bias)
        return gamma * _finite(size) + count * _TINY


@dataclass(frozen=True, eq=False)
class Scale:
    """``factor * row + shift``, value by value.

    Attributes:
        size: of what the shift was added up from, where that may be much larger.
    """

    sources: tuple[int, ...]
    factor: Floats = field(repr=False)
    shift: Floats = field(repr=False)
    size: Floats | None = field(default=None, repr=False)

    @property
    def width(self) -> int:
        """Values of a row."""
        return len(self.factor)

    def forward(self, given: Sequence[Ends]) -> Ends:
        """Intervals through it."""
        first, second = (end * self.factor for end in given[0])
        low, high = np.minimum(first, second), np.maximum(first, second)
        return low + self.shift, high + self.shift

    def backward(self, found: Floats) -> tuple[list[Floats], Floats]:
        """Coefficients of the source, and what stands alone."""
        return [found * self.factor], found @ self.shift

    def rounding(self, given: Sequence[Ends]) -> Floats:
        """What a product and a sum, or what was folded into them, may be off by."""
        size = largest(given[0]) * np.abs(self.factor) + np.abs(self.shift)
        if self.size is None:
            return 4 * SINGLE * _finite(size) + 2 * _TINY
        # A root, a quotient and a product more.
        return 8 * SINGLE * _finite(size + self.size) + 2 * _TINY


@dataclass(frozen=True, eq=False)
class Pick:
    """Values of a row in another order, some of them, or some of them twice.

    Attributes:
        places: ``(width,)``, where each comes from.
        before: width of the source.
    """

    sources: tuple[int, ...]
    places: NDArray[np.int64] = field(repr=False)
    before: int

    @property
    def width(self) -> int:
        """Values of a row."""
        return len(self.places)

    def forward(self, given: Sequence[Ends]) -> Ends:
        """Intervals through it."""
        low, high = given[0]
        return low[:, self.places], high[:, self.places]

    def backward(self, found: Floats) -> tuple[list[Floats], Floats]:
        """Coefficients of the source, and nothing that stands alone."""
        made = np.zeros((*found.shape[:2], self.before))
        if len(np.unique(self.places)) == len(self.places):
            made[:, :, self.places] = found
        else:
            where: Any = (slice(None), slice(None), self.places)
            np.add.at(made, where, found)
        return [made], np.zeros(found.shape[:2])

    def rounding(self, given: Sequence[Ends]) -> None:
        """Nothing is rounded."""


@dataclass(frozen=True, eq=False)
class Join:
    """Several rows, one behind another.

    Attributes:
        widths: of each.
    """

    sources: tuple[int, ...]
    widths: tuple[int, ...]

    @property
    def width(self) -> int:
        """Values of a row."""
        return sum(self.widths)

    def forward(self, given: Sequence[Ends]) -> Ends:
        """Intervals through it."""
        lows, highs = zip(*given, strict=True)
        return np.concatenate(lows, axis=1), np.concatenate(highs, axis=1)

    def backward(self, found: Floats) -> tuple[list[Floats], Floats]:
        """Coefficients of the sources, and nothing that stands alone."""
        cuts = np.cumsum(self.widths)[:-1]
        return np.split(found, cuts, axis=2), np.zeros(found.shape[:2])

    def rounding(self, given: Sequence[Ends]) -> None:
        """Nothing is rounded."""


@dataclass(frozen=True, eq=False)
class Sum:
    """Several rows added up, or one less another.

    Attributes:
        signs: 1 or -1, of each.
        wide: width of a row.
    """

    sources: tuple[int, ...]
    signs: tuple[int, ...]
    wide: int

    @property
    def width(self) -> int:
        """Values of a row."""
        return self.wide

    def forward(self, given: Sequence[Ends]) -> Ends:
        """Intervals through it."""
        pairs = zip(self.signs, given, strict=True)
        turned = [e if sign > 0 else (-e[1], -e[0]) for sign, e in pairs]
        low = np.sum([ends[0] for ends in turned], axis=0)
        return low, np.sum([ends[1] for ends in turned], axis=0)

    def backward(self, found: Floats) -> tuple[list[Floats], Floats]:
        """Coefficients of the sources, and nothing that stands alone."""
        return [sign * found for sign in self.signs], np.zeros(found.shape[:2])

    def rounding(self, given: Sequence[Ends]) -> Floats:
        """What the sums may be off by."""
        size = np.sum([largest(ends) for ends in given], axis=0)
        return len(given) * SINGLE * _finite(size) + _TINY


@dataclass(frozen=True, eq=False)
class Relu:
    """What is above 0; of what is below, ``leak`` times it.

    Attributes:
        leak: 0 for plain ReLU; at least 0, below 1.
        wide: width of a row.
    """

    sources: tuple[int, ...]
    leak: float
    wide: int

    @property
    def width(self) -> int:
        """Values of a row."""
        return self.wide

    def forward(self, given: Sequence[Ends]) -> Ends:
        """Intervals through it."""
        low, high = (np.where(end > 0, end, self.leak * end) for end in given[0])
        return low, high

    def rounding(self, given: Sequence[Ends]) -> Floats | None:
        """What a product with the leak may be off by; else nothing is rounded."""
        return 2 * SINGLE * largest(given[0]) + _TINY if self.leak else None

    def lines(self, ends: Ends) -> Lines:
        """Two lines that hold it between them in ``[low, high]``: CROWN's, adaptive.

        That below goes through 0, with slope 1 where more of the interval is above 0,
        else the leak.
        """
        low, high = ends
        over, under = low >= 0, high <= 0
        gap = np.where(over | under, 1.0, high - low)
        above = (high - self.leak * low) / gap
        above = np.where(over, 1.0, np.where(under, self.leak, above))
        below = np.where(over | (~under & (high >= -low)), 1.0, self.leak)
        shift = np.where(over | under, 0.0, high - above * high)
        return below, above, np.zeros_like(low), shift

    def open(self, ends: Ends) -> NDArray[np.bool_]:
        """Where closer ends would make closer lines: on both sides of 0."""
        return (ends[0] < 0) & (ends[1] > 0)


@dataclass(frozen=True, eq=False)
class Curve:
    """The logistic function or tanh, value by value.

    Attributes:
        operator: "Sigmoid" or "Tanh".
        wide: width of a row.
    """

    sources: tuple[int, ...]
    operator: str
    wide: int

    @property
    def width(self) -> int:
        """Values of a row."""
        return self.wide

    def forward(self, given: Sequence[Ends]) -> Ends:
        """Intervals through it: it rises."""
        function, _ = UNARY[self.operator]
        low, high = function(given[0])
        return low, high

    def rounding(self, given: Sequence[Ends]) -> Floats:
        """What a kernel may be off by, as of the same operator on intervals."""
        _, rounds = UNARY[self.operator]
        size = rounds * largest(self.forward(given)) + UNEVEN.get(self.operator, 0)
        return 2 * SINGLE * size + _TINY

    def lines(self, ends: Ends) -> Lines:
        """Two lines that hold it between them."""
        return curve_lines(self.operator, *ends)

    def open(self, ends: Ends) -> NDArray[np.bool_]:
        """Where closer ends would make closer lines: everywhere."""
        return np.asarray(ends[0] < ends[1])


Bend = Relu | Curve
"""What is not affine: it is held between two lines."""
Step = Source | Dense | Scale | Pick | Join | Sum | Bend


def largest(ends: Ends) -> Floats:
    """The largest size of what lies between."""
    return np.asarray(np.maximum(np.abs(ends[0]), np.abs(ends[1])))


def _finite(size: Floats) -> Floats:
    """The same; NaN where sums of such a size may overflow in single precision."""
    return np.where(size < _LARGEST, size, np.nan)
