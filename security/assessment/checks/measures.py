"""How good the model is on rows it never saw, each number with its interval."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.report import Condition, Metric
from security.assessment.results import intervals
from security.errors import AssessmentError

__all__ = ["CONDITIONS", "MIN_ROWS", "calibration_error", "measure"]

# Below this, an interval of accuracy spans more than a third of the scale.
MIN_ROWS = 30
_BINS = 10

CONDITIONS: dict[str, Condition] = {
    "split": "holdout",
    # The held-out rows are people's too: publishing these numbers tells a little about
    # them, and the training's epsilon does not count it.
    "covered_by_dp": False,
    "accuracy_interval": "wilson",
    "auc_interval": "newcombe",
    "calibration_bins": _BINS,
    "calibration_interval": "wilson, by bin",
    "log_loss_interval": "student",
}


def measure(
    probabilities: NDArray[np.float64],
    labels: NDArray[np.int64],
    predicted: NDArray[np.int64],
) -> dict[str, Metric]:
    """Accuracy, AUC, log loss and calibration error.

    Args:
        probabilities: ``(n, classes)``, by the model as served.
        labels: ``(n,)``, the truth.
        predicted: ``(n,)``, what the model decides.

    Returns:
        Metrics by name; ``auc`` only for two classes, the second being positive.

    Raises:
        AssessmentError: too few rows to conclude, or only one class among them.
    """
    if len(labels) < MIN_ROWS:
        raise AssessmentError(f"{len(labels)} rows; quality needs {MIN_ROWS} or more")
    if np.min(np.unique(labels, return_counts=True)[1]) < 2 or np.ptp(labels) == 0:
        raise AssessmentError("quality needs two rows or more of two classes or more")
    rows = np.arange(len(labels))
    true, given = probabilities[rows, labels], probabilities[rows, predicted]
    metrics = {
        "accuracy": intervals.proportion(int((predicted == labels).sum()), len(labels)),
        "log_loss": intervals.mean(-np.log(np.maximum(true, 1e-15))),
        "calibration_error": calibration_error(given, predicted == labels),
    }
    if probabilities.shape[1] == 2:
        score = probabilities[:, 1]
        metrics["auc"] = intervals.auc(score[labels == 1], score[labels == 0])
    return metrics


def calibration_error(
    confidence: NDArray[np.float64], correct: NDArray[np.bool_]
) -> Metric:
    """Expected calibration error: |accuracy - confidence|, over bins of confidence.

    The figure leans upwards, as chance makes gaps too: only what lies below the lower
    end of its interval is more than that.

    Args:
        confidence: ``(n,)``, the probability of the given class.
        correct: ``(n,)``.
    """
    bins = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    totals = np.bincount(bins, minlength=_BINS)
    hits = np.bincount(bins, weights=correct, minlength=_BINS).astype(np.int64)
    sums = np.bincount(bins, weights=confidence, minlength=_BINS)
    used = totals > 0
    return intervals.mean_gap(hits[used], totals[used], sums[used] / totals[used])
