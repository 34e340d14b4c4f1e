"""Quality metrics and their intervals, against independent computations."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from security.assessment.checks import measures
from security.assessment.results import intervals
from security.errors import AssessmentError


def measure(probabilities, labels):
    """Of a model that decides by its largest probability."""
    return measures.measure(probabilities, labels, probabilities.argmax(axis=1))


def sample(n=200, seed=0):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, n)
    score = 1 / (1 + np.exp(-generator.normal(2 * labels - 1, 1.5)))
    return np.stack([1 - score, score], axis=1), labels


@pytest.mark.parametrize("seed", range(5))
def test_auc_is_sklearns_and_its_interval_a_bootstraps(seed):
    probabilities, labels = sample(seed=seed)
    score = probabilities[:, 1].round(2)  # with ties
    metric = intervals.auc(score[labels == 1], score[labels == 0])
    assert metric.value == pytest.approx(roc_auc_score(labels, score))
    generator = np.random.default_rng(seed)
    draws = generator.integers(0, len(labels), (500, len(labels)))
    again = [roc_auc_score(labels[draw], score[draw]) for draw in draws]
    low, high = np.quantile(again, [0.025, 0.975])
    assert metric.low == pytest.approx(low, abs=0.02)
    assert metric.high == pytest.approx(high, abs=0.02)


def test_metrics():
    probabilities, labels = sample()
    metrics = measure(probabilities, labels)
    accuracy = float(np.mean(probabilities.argmax(1) == labels))
    assert metrics["accuracy"].value == accuracy
    assert metrics["log_loss"].value == pytest.approx(log_loss(labels, probabilities))
    assert metrics["auc"].value == pytest.approx(
        roc_auc_score(labels, probabilities[:, 1])
    )
    assert all(metric.n == 200 for metric in metrics.values())
    error = metrics["calibration_error"]
    assert 0 <= error.low < error.value < error.high < 0.3


def test_calibration():
    labels = np.repeat([0, 1], 50)
    sure = np.stack([1.0 - labels, labels], axis=1)
    perfect = measure(sure, labels)
    error, area, loss = (
        perfect[name] for name in ("calibration_error", "auc", "log_loss")
    )
    assert (error.value, error.low) == (0, 0)
    assert 0.02 < error.high < 0.06
    assert (area.value, area.high) == (1, 1)
    assert 0.9 < area.low < 0.98
    # Of losses that are all alike nothing can be said: a policy finds no interval.
    assert (loss.value, loss.low) == (pytest.approx(0), None)
    wrong = measure(sure[::-1], labels)
    assert wrong["calibration_error"].value == 1
    assert np.isfinite(wrong["log_loss"].value)


def test_three_classes_have_no_auc():
    labels = np.arange(60) % 3
    metrics = measure(np.eye(3)[labels], labels)
    assert "auc" not in metrics


def test_does_not_claim_privacy():
    assert measures.CONDITIONS["covered_by_dp"] is False


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.arange(29) % 2, "29 rows; quality needs 30"),
        (np.zeros(40, dtype=int), "two classes"),
        (np.eye(40, dtype=int)[0], "two rows or more"),
    ],
)
def test_refuses_to_conclude(labels, message):
    with pytest.raises(AssessmentError, match=message):
        measure(np.full((len(labels), 2), 0.5), labels)
