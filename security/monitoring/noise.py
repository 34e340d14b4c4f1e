"""Gaussian noise on integers, from a table and the operating system's generator.

The noise is a normal variable rounded to the nearest integer. What it is added to are
integers, so that the sum is a rounded sum, which is computed from the Gaussian
mechanism's output: its guarantee holds exactly, for any vector and any composition
(Balle and Wang 2018; Dong, Roth and Su 2022). Of the discrete Gaussian of Canonne,
Kamath and Steinke (2020) the same is known for one count only, and for more a bound
that costs a tenth of the budget; the variance here is larger by 1/12.

No floating-point number is drawn, so none can give the count away (Mironov 2012): each
draw looks 64 random bits up in a table of cumulated probabilities, which are computed
in whole numbers.
"""

from __future__ import annotations

import functools
import math
import os

import numpy as np
from numpy.typing import NDArray

from security.errors import MonitoringError

__all__ = ["MAX_SIGMA", "RoundedGaussian", "rounded_gaussian"]

_BITS = 64
# Of the whole numbers that probabilities are computed in.
_FRACTION = 96
_ONE = 1 << _FRACTION
MAX_SIGMA = 4096.0
# math.pi has 53 bits; these are 64 digits (OEIS A000796).
_PI = 3141592653589793238462643383279502884197169399375105820974944592
_ROOT_OF_PI = math.isqrt((_PI << 2 * _FRACTION) // 10**63)


class RoundedGaussian:
    """Draws of round(N(0, sigma²)).

    Attributes:
        sigma: of the normal variable.
        total_variation: how far one draw's distribution is from the ideal one at most.
    """

    def __init__(self, sigma: float) -> None:
        """Make the table: a few milliseconds for each hundred of its atoms.

        Raises:
            MonitoringError: sigma is not within 0.2 to 4096.
        """
        if not 0.2 <= sigma <= MAX_SIGMA:
            raise MonitoringError(f"noise of deviation {sigma:g} cannot be drawn")
        self.sigma = sigma
        # P(X > k + 1/2) for k = 0, 1, … in units of 2^-64, while it is one at least.
        upper: list[int] = []
        while tail := _tail(len(upper) + 0.5, sigma) >> (_FRACTION - _BITS):
            upper.append(tail)
        self._reach = len(upper)
        # P(X <= k) for k = -reach … reach - 1: the outermost atoms hold their tails.
        cumulated = [*reversed(upper), *((1 << _BITS) - tail for tail in upper)]
        self._table = np.array(cumulated, dtype=np.uint64)
        # Each of these is rounded once, by less than 2^-64, and is part of two atoms,
        # half of whose errors count; then the tails that were moved inwards.
        self.total_variation = (len(cumulated) + 2) * 2.0**-_BITS

    def __repr__(self) -> str:
        return f"<RoundedGaussian sigma={self.sigma:g}>"

    def sample(self, count: int) -> NDArray[np.int64]:
        """Independent draws, shape ``(count,)``."""
        words = np.frombuffer(os.urandom(8 * count), dtype=np.uint64)
        found = np.searchsorted(self._table, words, side="right")
        return found.astype(np.int64) - self._reach


@functools.lru_cache(maxsize=64)
def rounded_gaussian(sigma: float) -> RoundedGaussian:
    """As `RoundedGaussian`, whose table is made once.

    >>> int(abs(rounded_gaussian(3.0).sample(1000)).max()) < 40
    True
    """
    return RoundedGaussian(sigma)


def _tail(bound: float, sigma: float) -> int:
    """P(N(0, sigma²) > bound), in units of 2^-96, exact to a few hundred of them.

    By the series of Abramowitz and Stegun 7.1.6, whose terms are all positive:
    erf z = 2/sqrt(pi) e^(-z²) sum of 2^n z^(2n+1) / (2n+1)!!, n = 0, 1, …
    """
    over, under = bound.as_integer_ratio()
    width, unit = sigma.as_integer_ratio()
    # z² of z = bound / (sigma sqrt 2).
    square = ((over * unit) ** 2 << _FRACTION) // (2 * (under * width) ** 2)
    term = total = math.isqrt(square << _FRACTION)
    odd = 3
    while term:
        term = (2 * term * square // odd) >> _FRACTION
        total += term
        odd += 2
    erf = (2 * total << 2 * _FRACTION) // (_exp(square) * _ROOT_OF_PI)
    return max(0, _ONE - erf) // 2


def _exp(value: int) -> int:
    """e^value, both in units of 2^-96, exact to a few parts in 2^96."""
    halvings = max(0, value.bit_length() - _FRACTION + 8)
    guard = 32 + 2 * halvings
    one = _ONE << guard
    small = (value << guard) >> halvings
    term = total = one
    step = 1
    while term:
        term = term * small // one // step
        total += term
        step += 1
    for _ in range(halvings):
        total = total * total // one
    return total >> guard
