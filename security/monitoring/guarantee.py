"""What releases cost a subject: rho adds up, and epsilon is read from the sum.

One subject moves what one release is made of by at most ``s`` in Euclidean length, if
it is added or removed. With noise of deviation sigma that release has
rho = s²/(2 sigma²) (zero-concentrated privacy, Bun and Steinke 2016), and what several
have adds up, also where one is chosen after another was seen. All of them together are
one Gaussian mechanism with mu = sqrt(2 rho) (Dong, Roth and Su 2022, corollary 3.3),
whose epsilon at a delta is exact (Balle and Wang 2018, theorem 8).
"""

from __future__ import annotations

import math

from security.errors import MonitoringError

__all__ = ["delta_of", "epsilon_of", "rho_of", "sigma_of"]

_STEPS = 200


def delta_of(rho: float, epsilon: float) -> float:
    """The delta at which releases of a total rho have an epsilon.

    >>> round(delta_of(0.5, 1.0), 6)
    0.126937
    """
    if rho <= 0.0:
        return 0.0
    mu = math.sqrt(2.0 * rho)
    upper = _normal(mu / 2.0 - epsilon / mu)
    lower = _log_normal(-mu / 2.0 - epsilon / mu)
    return max(0.0, upper - math.exp(min(0.0, epsilon + lower)))


def epsilon_of(rho: float, delta: float) -> float:
    """The epsilon of releases of a total rho, at a delta; never too low.

    >>> round(epsilon_of(0.028, 1e-6), 2)
    1.0

    Raises:
        MonitoringError: rho is negative, or delta no probability above 0.
    """
    if not (0.0 <= rho < math.inf and 0.0 < delta < 1.0):
        raise MonitoringError("no guarantee of such a rho and delta")
    if delta_of(rho, 0.0) <= delta:
        return 0.0
    low, high = 0.0, 1.0
    while delta_of(rho, high) > delta:
        low, high = high, 2.0 * high
    for _ in range(_STEPS):
        middle = (low + high) / 2.0
        low, high = (middle, high) if delta_of(rho, middle) > delta else (low, middle)
    return high


def rho_of(epsilon: float, delta: float) -> float:
    """The largest rho that has an epsilon at a delta; never too high.

    >>> round(rho_of(8.0, 1e-6), 3)
    1.173

    Raises:
        MonitoringError: epsilon or delta is not positive.
    """
    if not (0.0 < epsilon < math.inf and 0.0 < delta < 1.0):
        raise MonitoringError("no budget of such an epsilon and delta")
    # By Bun and Steinke (2016), proposition 1.3, epsilon is at least rho.
    low, high = 0.0, epsilon + 1.0
    while delta_of(high, epsilon) <= delta:
        high *= 2.0
    for _ in range(_STEPS):
        middle = (low + high) / 2.0
        over = delta_of(middle, epsilon) > delta
        low, high = (low, middle) if over else (middle, high)
    return low


def sigma_of(rho: float, sensitivity: float) -> float:
    """The noise's deviation for a release of a Euclidean sensitivity to have a rho.

    >>> sigma_of(0.125, 2.0)
    4.0

    Raises:
        MonitoringError: one of them is not positive.
    """
    if not (0.0 < rho < math.inf and 0.0 < sensitivity < math.inf):
        raise MonitoringError("no noise for such a rho and sensitivity")
    return sensitivity / math.sqrt(2.0 * rho)


def _normal(value: float) -> float:
    """The distribution function of the standard normal."""
    return 0.5 * math.erfc(-value / math.sqrt(2.0))


def _log_normal(value: float) -> float:
    """Its logarithm; below -37 the leading term of Mills' ratio, which is above it."""
    if value > -37.0:
        return math.log(_normal(value))
    return -value * value / 2.0 - math.log(-value * math.sqrt(2.0 * math.pi))
