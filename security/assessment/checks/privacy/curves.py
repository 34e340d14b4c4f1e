"""ROC curves of membership attacks, and the rates at which attackers are judged.

An average over all rows hides that a few are found with certainty; so what counts is
the true positive rate where almost nobody is accused wrongly (Carlini et al. 2022).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.report import Metric
from security.assessment.results import intervals

__all__ = ["MIN_OTHERS_PER_MILLE", "rates", "roc", "roc_point"]

# Below this many non-members, one at 0.1% is a matter of ten rows or fewer.
MIN_OTHERS_PER_MILLE = 10_000
_POINTS = 60

Floats = NDArray[np.float64]


def rates(members: Floats, others: Floats) -> dict[str, Metric]:
    """AUC; true positive rate at 1% and, with rows enough, 0.1% of the others."""
    result = {
        "auc": intervals.auc(members, others),
        "tpr_at_fpr_1pct": roc_point(members, others, 0.01),
    }
    if len(others) >= MIN_OTHERS_PER_MILLE:
        result["tpr_at_fpr_0.1pct"] = roc_point(members, others, 0.001)
    return result


def roc_point(members: Floats, others: Floats, rate: float) -> Metric:
    """True positive rate where at most a share of the others is called a member.

    The threshold lies above enough of the others' scores; with few others none may be
    called a member, and the result is what such a cautious attacker gets.

    >>> roc_point(np.array([0.9, 0.2]), np.array([0.5, 0.1]), 0.01).value
    0.5
    """
    allowed = int(rate * len(others))
    threshold = np.sort(others)[::-1][allowed]
    return intervals.proportion(int((members > threshold).sum()), len(members))


def roc(members: Floats, others: Floats) -> list[list[float]]:
    """Points of the curve, spread evenly over the logarithm of the others' rate."""
    lowest = 1 / len(others)
    points = []
    for rate in np.geomspace(lowest, 1.0, _POINTS):
        allowed = int(np.floor(rate * len(others)))
        threshold = np.sort(others)[::-1][allowed] if allowed < len(others) else -np.inf
        points.append([float(rate), float(np.mean(members > threshold))])
    return points
