"""What it costs to choose the best of several tries (Papernot and Steinke, ICLR 2022).

The number of tries is drawn from a distribution that does not depend on the data, each
try takes a candidate by lot, and only the best one is released. Neither the number of
tries nor anything of the others may be told: a number that is known would have to be
paid for, try by try.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from security.errors import TrainingError

__all__ = ["DISTRIBUTIONS", "Selection"]

# By name, the shape (eta) of a truncated negative binomial distribution; infinite for
# its limit, Poisson's.
DISTRIBUTIONS = {"geometric": 1.0, "logarithmic": 0.0, "poisson": math.inf}
MAX_TRIES = 100.0
_NEGLIGIBLE = 1e-17  # less than one draw of 53 bits can tell

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Selection:
    """How the best try is found.

    Attributes:
        tries: expected number, above 1, at most 100.
        distribution: of it, one of `DISTRIBUTIONS`.
        score_noise: deviation of the noise on a try's score, of which one unit changes
            at most 1.

    Raises:
        TrainingError: a value out of range, or not finite.

    >>> Selection(tries=8.0, distribution="geometric", score_noise=10.0).gamma
    0.125
    """

    tries: float
    distribution: str
    score_noise: float

    def __post_init__(self) -> None:
        if not 1 < self.tries <= MAX_TRIES:  # NaN compares false
            raise TrainingError(f"{self.tries} expected tries: above 1, at most 100")
        if self.distribution not in DISTRIBUTIONS:
            raise TrainingError(f"no distribution {self.distribution!r} of tries")
        if not 0 < self.score_noise < math.inf:
            raise TrainingError(f"score noise {self.score_noise} is not positive")

    @property
    def shape(self) -> float:
        """Of the distribution."""
        return DISTRIBUTIONS[self.distribution]

    @cached_property
    def gamma(self) -> float:
        """The other parameter of a truncated negative binomial with this mean."""
        low, high = -700.0, 0.0  # of its logarithm; the mean falls with it
        if self.shape == 1:
            return 1 / self.tries
        for _ in range(200):
            middle = (low + high) / 2
            above = _mean(self.shape, math.exp(middle)) > self.tries
            low, high = (middle, high) if above else (low, middle)
        return math.exp(low)

    def count(self, uniform: float) -> int:
        """The number of tries that a uniform number in [0, 1) stands for.

        Poisson's may be 0: then there is nothing to release.
        """
        poisson = math.isinf(self.shape)
        number = 0 if poisson else 1
        share = self._first()
        while uniform >= share and (number < self.tries or share > _NEGLIGIBLE):
            uniform -= share
            number += 1
            share *= self._ratio(number)
        return number

    def bound(self, orders: Sequence[float], once: Floats) -> Floats:
        """Rényi divergence of the release, from that of one try with its score.

        Args:
            orders: ascending, above 1.
            once: divergence of one try at each.
        """
        order = np.asarray(orders, dtype=np.float64)
        if math.isinf(self.shape):
            extra = self._poisson_extra(order, once)
        else:
            # Theorem 2: the order with a hat is free, so the best one is taken.
            hat = (1 - 1 / order) * once - math.log(self.gamma) / order
            extra = np.full(order.shape, (1 + self.shape) * float(np.min(hat)))
        found = once + extra + math.log(self.tries) / (order - 1)
        # Rényi divergence grows with its order: what bounds one bounds those below.
        return np.asarray(np.minimum.accumulate(found[::-1])[::-1])

    def _poisson_extra(self, order: Floats, once: Floats) -> Floats:
        """Theorem 6, with the epsilon that it allows at each order."""
        epsilon = np.log1p(1 / (order - 1))
        # Delta of one try at each such epsilon, by the conversion that Opacus uses.
        exponent = (order - 1)[None, :] * (once[None, :] - epsilon[:, None])
        log_delta = exponent - np.log(order) + (order - 1) * np.log1p(-1 / order)
        delta = np.exp(np.minimum(0.0, log_delta.min(axis=1)))
        return np.asarray(self.tries * delta)

    def _first(self) -> float:
        """Chance of the smallest number."""
        if math.isinf(self.shape):
            return math.exp(-self.tries)
        gamma, shape = self.gamma, self.shape
        if shape == 0:
            return (1 - gamma) / -math.log(gamma)
        return (1 - gamma) * shape / (gamma**-shape - 1)

    def _ratio(self, number: int) -> float:
        """Chance of a number over that of the one before."""
        if math.isinf(self.shape):
            return self.tries / number
        return (1 - self.gamma) * (number - 1 + self.shape) / number


def _mean(shape: float, gamma: float) -> float:
    if gamma >= 1:
        return 1.0
    if shape == 0:
        return (1 / gamma - 1) / -math.log(gamma)
    return shape * (1 - gamma) / (gamma * (1 - gamma**shape))
