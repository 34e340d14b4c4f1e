"""Confidence intervals, two-sided, all at one stated level."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, rankdata

from models.report import Metric

__all__ = ["CONFIDENCE", "auc", "mean", "proportion"]

CONFIDENCE = 0.95
_Z = float(norm.ppf(0.5 + CONFIDENCE / 2))


class _Interval(NamedTuple):
    low: float
    high: float


def proportion(hits: int, total: int) -> Metric:
    """A share with Wilson's interval, which stays honest near 0 and 1.

    >>> metric = proportion(95, 100)
    >>> round(metric.low, 3), round(metric.high, 3)
    (0.888, 0.978)
    """
    share = hits / total
    spread = _Z * math.sqrt(share * (1 - share) / total + _Z**2 / (4 * total**2))
    centre = share + _Z**2 / (2 * total)
    scale = 1 + _Z**2 / total
    # Clamped: at 0 and 1 rounding may put an end a hair on the wrong side.
    low = max(0.0, min(share, (centre - spread) / scale))
    high = min(1.0, max(share, (centre + spread) / scale))
    return _metric(share, total, _Interval(low, high))


def mean(values: NDArray[np.float64]) -> Metric:
    """A mean with the normal interval."""
    centre = float(np.mean(values))
    spread = _Z * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return _metric(centre, len(values), _Interval(centre - spread, centre + spread))


def auc(positive: NDArray[np.float64], negative: NDArray[np.float64]) -> Metric:
    """Area under the ROC curve with DeLong's interval, computed from ranks.

    Args:
        positive: scores of positives, higher for more likely positive; at least two.
        negative: scores of negatives; at least two.

    Sun and Xu, "Fast implementation of DeLong's algorithm" (2014).
    """
    ahead = len(positive), len(negative)
    both = rankdata(np.concatenate([positive, negative]))
    # Each positive's share of negatives below it, and the reverse; ties count half.
    above = (both[: ahead[0]] - rankdata(positive)) / ahead[1]
    below = 1 - (both[ahead[0] :] - rankdata(negative)) / ahead[0]
    area = float(above.mean())
    variance = np.var(above, ddof=1) / ahead[0] + np.var(below, ddof=1) / ahead[1]
    spread = _Z * math.sqrt(variance)
    interval = _Interval(max(0.0, area - spread), min(1.0, area + spread))
    return _metric(area, sum(ahead), interval)


def _metric(value: float, n: int, interval: _Interval) -> Metric:
    return Metric(
        value=value,
        n=n,
        low=interval.low,
        high=interval.high,
        confidence=CONFIDENCE,
    )
