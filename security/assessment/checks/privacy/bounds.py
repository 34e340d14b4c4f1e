"""Lower bounds on epsilon from what an attacker told apart.

Two ways from a true and a false positive rate. By definition alone: under (epsilon,
delta) no attacker has more of the one for so little of the other (Jagielski, Ullman
and Oprea 2020); it holds for any mechanism, and needs thousands of trainings. Or
against the whole curve that the claimed mechanism allows: for full batches a
Gaussian's, so that one point tells its mean (Nasr et al. 2023).

A threshold is chosen on some trainings and judged on the others, so that the intervals
are Clopper's and Pearson's whatever the choice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from security.assessment.results.intervals import lower_bound

__all__ = [
    "Curve",
    "Rates",
    "epsilon_by_counting",
    "epsilon_of_mean",
    "judge",
    "mean_shift",
    "one_run_epsilon",
]

Floats = NDArray[np.float64]
_CALIBRATION = 4  # one training in so many chooses the threshold
_THRESHOLDS = 101
_MAX_EPSILON = 50.0


@dataclass(frozen=True)
class Rates:
    """What an attacker got, with one-sided bounds on either rate.

    Attributes:
        found, trained: canaries called planted, of those that were.
        accused, clean: the same of trainings without.
        low: bound on the true positive rate, from below.
        high: bound on the false positive rate, from above.
    """

    found: int
    trained: int
    accused: int
    clean: int
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Curve:
    """What the claimed mechanism allows: delta for each epsilon, rounded up.

    Attributes:
        epsilons, deltas: ``(n,)``.
    """

    epsilons: Floats
    deltas: Floats

    def most(self, false_rate: float) -> float:
        """The highest true positive rate at a false one.

        >>> round(Curve(np.array([0.0]), np.array([0.1])).most(0.2), 3)
        0.3
        """
        growth = np.exp(self.epsilons)
        first = growth * false_rate + self.deltas
        second = 1 - (1 - false_rate - self.deltas) / growth
        return float(min(1.0, first.min(), second.min()))


def judge(
    scores: Floats, planted: NDArray[np.bool_], *, delta: float, level: float
) -> tuple[Rates, Rates]:
    """Rates at two thresholds: the best for counting, and the best for a Gaussian.

    Args:
        scores: ``(n,)``, of independent trainings.
        planted: ``(n,)``.
        delta: of the claim.
        level: chance of each of the four bounds to be wrong.
    """
    first = np.zeros(len(scores), bool)
    for which in (planted, ~planted):
        first[np.flatnonzero(which)[::_CALIBRATION]] = True
    small = scores[first & planted], scores[first & ~planted]
    large = scores[~first & planted], scores[~first & ~planted]
    grid = np.linspace(scores[first].min(), scores[first].max(), _THRESHOLDS)

    def at(threshold: float, groups: tuple[Floats, Floats]) -> Rates:
        shares = tuple(float(np.mean(group >= threshold)) for group in groups)
        return _rates(shares, groups, level)

    counting = max(grid, key=lambda t: _by_counting(at(t, small), delta))
    # Few trainings choose: for this bound, smoothed by two equal Gaussians.
    gaussian = max(
        grid, key=lambda t: mean_shift(_rates(_smooth(small, t), large, level))
    )
    return at(counting, large), at(gaussian, large)


def epsilon_by_counting(rates: Rates, delta: float) -> float:
    """A lower bound on epsilon at a delta, for any mechanism; not below 0."""
    return max(0.0, _by_counting(rates, delta))


def mean_shift(rates: Rates) -> float:
    """A lower bound on the distance of the two worlds, in deviations of a Gaussian."""
    if rates.low <= 0 or rates.high >= 1:
        return -math.inf
    return float(special.ndtri(rates.low) - special.ndtri(rates.high))


def epsilon_of_mean(shift: float, delta: float) -> float:
    """Epsilon at a delta of a Gaussian mechanism (Balle and Wang 2018).

    >>> round(epsilon_of_mean(1.0, 1e-3), 2)
    3.14
    """
    from scipy.optimize import brentq  # noqa: PLC0415  (a moment, and only of canaries)

    if shift <= 0:
        return 0.0

    def excess(epsilon: float) -> float:
        first = special.ndtr(shift / 2 - epsilon / shift)
        # Multiplied as logarithms: e^epsilon alone may be too large for a double.
        second = math.exp(epsilon + special.log_ndtr(-shift / 2 - epsilon / shift))
        return float(first - second - delta)

    if excess(0.0) <= 0:
        return 0.0
    # e^(m^2/2 + m z) bounds it: beyond, the first term alone is below delta.
    high = shift**2 / 2 + shift * float(-special.ndtri(delta)) + 1e-9
    return float(brentq(excess, 0.0, high))


def one_run_epsilon(
    scores: Floats, planted: NDArray[np.bool_], delta: float, *, level: float
) -> tuple[float, int, int]:
    """A lower bound on epsilon from one training with many canaries.

    The most and the least suspicious are guessed planted and not; if the training is
    (epsilon, delta) private, as many right guesses are as unlikely as coins that show
    heads with e^epsilon / (1 + e^epsilon) (Steinke, Nasr and Jagielski 2023). How many
    are guessed is chosen among four, each at a fourth of the level.

    Args:
        scores: ``(m,)``.
        planted: ``(m,)``, each by its own fair coin.
        delta: of the claim.
        level: chance of the bound to be wrong.

    Returns:
        The bound, the guesses it rests on, and how many were right.
    """
    order = np.argsort(scores, kind="stable")
    shares = (0.05, 0.125, 0.25, 0.5)
    results = []
    for share in shares:
        each = max(1, int(share * len(scores)))
        right = int(planted[order[-each:]].sum() + (~planted[order[:each]]).sum())
        bound = _one_run_bound(
            len(scores), 2 * each, right, delta=delta, level=level / len(shares)
        )
        results.append((bound, 2 * each, right))
    return max(results)


def _one_run_bound(
    canaries: int, guesses: int, right: int, *, delta: float, level: float
) -> float:
    from scipy.stats import binom  # noqa: PLC0415  (a second, and only of canaries)

    def chance(epsilon: float) -> float:
        """Of so many right guesses, at most."""
        coin = 1 / (1 + math.exp(-epsilon))
        counts = np.arange(right + 1)
        # beyond[i] is P(right - i <= coins), which delta moves guesses into.
        beyond = binom.sf(counts - 1, guesses, coin)[::-1]
        gained = (beyond[1:] - beyond[0]) / np.arange(1, right + 1)
        most = float(gained.max(initial=0.0))
        return float(min(1.0, beyond[0] + 2 * canaries * delta * most))

    if chance(0.0) >= level:
        return 0.0
    low, high = 0.0, _MAX_EPSILON
    if chance(high) < level:
        return high
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (middle, high) if chance(middle) < level else (low, middle)
    return low


def _by_counting(rates: Rates, delta: float) -> float:
    both = (
        (rates.low - delta, rates.high),
        (1 - rates.high - delta, 1 - rates.low),
    )
    return max(math.log(a / b) if a > 0 < b else -math.inf for a, b in both)


def _smooth(groups: tuple[Floats, Floats], threshold: float) -> tuple[float, float]:
    """The share of either group above a threshold, as if they were Gaussians."""
    spread = max(float(np.sqrt((groups[0].var() + groups[1].var()) / 2)), 1e-12)
    first, second = (
        float(special.ndtr((scores.mean() - threshold) / spread)) for scores in groups
    )
    return first, second


def _rates(
    shares: Sequence[float], groups: tuple[Floats, Floats], level: float
) -> Rates:
    """Rates with their bounds, from shares of groups of some size."""
    trained, clean = (len(group) for group in groups)
    found, accused = round(shares[0] * trained), round(shares[1] * clean)
    return Rates(
        found=found,
        trained=trained,
        accused=accused,
        clean=clean,
        low=lower_bound(found, trained, level),
        high=1 - lower_bound(clean - accused, clean, level),
    )
