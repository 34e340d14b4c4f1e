"""What Gaussian queries on all rows cost together, exactly.

A query whose answer one row changes by at most 1, with noise of deviation s, is
1/s-Gaussian differentially private, and k of them are sqrt(k)/s-GDP, with equality
(Dong, Roth and Su 2022, corollary 3.3): nothing is approximated, as it is where rows
are sampled, for which `accounting` does not use GDP.
"""

from __future__ import annotations

import math

from scipy import optimize, special

from security.errors import TrainingError
from security.training import accounting
from security.training.accounting import Mechanism

__all__ = ["delta_gdp", "epsilon_gdp", "find_noise"]

_DIGITS = 4
_MOST_EPSILON = 1e4
# By how much noise grows until the second accountant, which rounds up, agrees.
_GROWTH = 1.0005
_TRIES = 200


def delta_gdp(mu: float, epsilon: float) -> float:
    """The smallest delta of a mu-GDP mechanism at an epsilon.

    >>> round(delta_gdp(1.0, 1.0), 4)
    0.1269
    """
    near, far = mu / 2 - epsilon / mu, -mu / 2 - epsilon / mu
    tail = math.exp(min(epsilon + float(special.log_ndtr(far)), 0.0))
    return max(0.0, float(special.ndtr(near)) - tail)


def epsilon_gdp(mechanism: Mechanism, delta: float) -> float:
    """The smallest epsilon of queries on all rows, at a delta.

    Raises:
        TrainingError: rows are sampled, or no epsilon is finite.

    >>> round(epsilon_gdp(Mechanism(1.0, 10.0, 100), 1e-5), 2)
    4.38
    """
    if mechanism.sample_rate != 1:
        raise TrainingError("GDP is exact only where every query sees all rows")
    mu = math.sqrt(mechanism.steps) / mechanism.noise_multiplier
    return epsilon_of(mu, delta)


def epsilon_of(mu: float, delta: float) -> float:
    """The smallest epsilon of a mu-GDP mechanism, at a delta."""
    if delta_gdp(mu, 0.0) <= delta:
        return 0.0
    if delta_gdp(mu, _MOST_EPSILON) > delta:
        raise TrainingError("this mechanism has no finite epsilon at this delta")
    found = optimize.brentq(lambda e: delta_gdp(mu, e) - delta, 0.0, _MOST_EPSILON)
    return float(found)


def find_noise(epsilon: float, delta: float, steps: int) -> float:
    """The smallest noise, by four digits, whose epsilon stays at or below a target.

    Both by GDP and by PLD, which rounds up.

    Raises:
        TrainingError: no noise is enough.
    """

    def beyond(mu: float) -> float:
        return delta_gdp(mu, epsilon) - delta

    mu = float(optimize.brentq(beyond, 1e-9, 1e3, xtol=1e-12))
    noise = math.sqrt(steps) / mu
    for _ in range(_TRIES):
        noise = math.ceil(noise * 10**_DIGITS) / 10**_DIGITS
        mechanism = Mechanism(1.0, noise, steps)
        second = accounting.recompute_epsilon(1.0, noise, steps, delta)
        if max(epsilon_gdp(mechanism, delta), second) <= epsilon:
            return noise
        noise *= _GROWTH
    raise TrainingError(f"no noise reaches epsilon {epsilon:g} in {steps} queries")
