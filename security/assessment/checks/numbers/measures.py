"""How far answers are from the truth, each figure with its interval.

All but R squared are in the unit of what is predicted.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.report import Condition, Metric
from security.assessment.plan.context import Context
from security.assessment.results import intervals

__all__ = ["CONDITIONS", "MIN_ROWS", "errors_of", "measure"]

Floats = NDArray[np.float64]

MIN_ROWS = 30
CONDITIONS: dict[str, Condition] = {
    "predicts": "number",
    "covered_by_dp": False,
    "mae_interval": "student of the logarithm",
    "rmse_interval": "student of the logarithm, of the squares",
    "r2_interval": "student of the logarithm, of 1 - r2",
    "median_interval": "order statistics",
    "mean_error_interval": "student",
}


def errors_of(context: Context) -> Floats:
    """Answer minus truth of each row ``(n,)``; NaN where there is no answer."""
    return context.job.clean.numbers - context.job.labels


def measure(errors: Floats, truth: Floats) -> dict[str, Metric]:
    """The errors of rows that have an answer.

    Args:
        errors: ``(n,)``, finite; answer minus truth.
        truth: ``(n,)``.

    Returns:
        Metrics by name; ``r2`` only where the truth varies.
    """
    metrics = {
        "mae": intervals.positive_mean(np.abs(errors)),
        "rmse": intervals.root(intervals.positive_mean(errors**2)),
        "median_absolute_error": intervals.median(np.abs(errors)),
        "mean_error": intervals.mean(errors),
    }
    if np.ptp(truth) > 0:
        metrics["r2"] = _r2(intervals.unexplained(errors, truth))
    return metrics


def _r2(left: Metric) -> Metric:
    ends = {"low": left.high, "high": left.low}
    turned = {name: None if end is None else 1 - end for name, end in ends.items()}
    return Metric(1 - left.value, left.n, **turned, confidence=left.confidence)
