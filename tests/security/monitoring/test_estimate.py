"""Accuracy without labels: right where only inputs move, blind to the rest."""

from __future__ import annotations

import numpy as np
import pytest

from security.monitoring.estimate import ScoreBins, estimated_accuracy
from security.monitoring.layout import Histogram

# Of the wrong rows, noise and window apart: what an estimate is held to.
SIGMA = 23.5


def drawn(
    random: np.random.Generator, count: int, sureness: float
) -> tuple[np.ndarray, np.ndarray]:
    """Calibrated scores of two classes, and whether each answer is right."""
    top = 0.5 + 0.5 * random.beta(sureness, 1.0, count)
    scores = np.stack([top, 1.0 - top], axis=1)
    return scores, random.random(count) < top


def bins_of(scores: np.ndarray, right: np.ndarray) -> ScoreBins:
    bins = ScoreBins.of_rows(scores, right)
    assert bins is not None
    return bins


def noisy(random: np.random.Generator, scores: np.ndarray, sigma: float) -> list[int]:
    exact = bins_of(scores, np.zeros(len(scores), bool)).rows
    return [round(n + e) for n, e in zip(exact, random.normal(0, sigma, len(exact)))]


def test_where_only_scores_move_the_truth_is_in_the_interval() -> None:
    random = np.random.default_rng(1)
    bins = bins_of(*drawn(random, 4000, 3.0))
    inside, errors, tried = 0, [], 200
    for _ in range(tried):
        scores, _ = drawn(random, 3000, random.uniform(0.5, 5.0))
        found = estimated_accuracy(bins, noisy(random, scores, SIGMA), SIGMA)
        assert found is not None
        truth = float(scores.max(axis=1).mean())
        errors.append(abs(found.value - truth))
        assert found.low is not None
        assert found.high is not None
        inside += found.low <= truth <= found.high
    assert inside / tried > 0.9
    assert np.mean(errors) < 0.015


def test_a_changed_relation_to_the_labels_is_not_seen() -> None:
    random = np.random.default_rng(2)
    bins = bins_of(*drawn(random, 4000, 3.0))
    scores, right = drawn(random, 5000, 3.0)
    found = estimated_accuracy(bins, noisy(random, scores, 0.0), 0.0)
    assert found is not None
    flipped = right ^ (random.random(len(right)) < 0.3)
    # The truth has fallen by more than ten points; the estimate cannot know.
    assert right.mean() - flipped.mean() > 0.1
    assert found.value - flipped.mean() > 0.1


def test_a_bin_without_rows_is_as_accurate_as_all() -> None:
    bins = ScoreBins(0.0, 1.0, (0, 100, 0), (0, 80, 0))
    found = estimated_accuracy(bins, [0, 0, 1000], 0.0)
    assert found is not None
    assert found.value == pytest.approx(0.8)
    assert found.high is not None
    assert found.low is not None
    # Nothing is known of it, and the interval says so.
    assert found.high - found.low > 0.4


def test_events_without_a_score_count_for_nothing() -> None:
    bins = ScoreBins(0.0, 1.0, (0, 100, 100), (0, 50, 100))
    some = estimated_accuracy(bins, [0, 500, 500], 0.0)
    assert some == estimated_accuracy(bins, [9000, 500, 500], 0.0)


@pytest.mark.parametrize("counts", [[0, 3, 2], [50, 0, 0], [0, -40, 30], [0, 100, 20]])
def test_what_noise_hides_is_not_estimated(counts: list[int]) -> None:
    bins = ScoreBins(0.0, 1.0, (0, 100, 100), (0, 50, 100))
    assert estimated_accuracy(bins, counts, SIGMA) is None


GOOD = {"low": 0.0, "high": 1.0, "rows": [0, 5, 5], "right": [0, 5, 0]}


@pytest.mark.parametrize(
    "changes",
    [
        {"rows": [0, 5]},
        {"rows": [0, 0, 0], "right": [0, 0, 0]},
        {"right": [0, 6, 0]},
        {"right": [0, -1, 0]},
        {"right": [0, True, 0]},
        {"rows": "055"},
        {"rows": [0.0, 5.0, 5.0]},
        {"rows": [1] * 1000, "right": [0] * 1000},
        {"low": 1.0},
        {"low": None},
        {"high": float("inf")},
        {"high": float("nan")},
    ],
)
def test_bins_that_cannot_be_are_none(changes: dict[str, object]) -> None:
    assert ScoreBins.from_details({"score_bins": GOOD}) is not None
    assert ScoreBins.from_details({"score_bins": GOOD | changes}) is None


@pytest.mark.parametrize("details", [{}, {"score_bins": None}, {"score_bins": [1]}])
def test_evidence_without_bins_has_none(details: dict[str, object]) -> None:
    assert ScoreBins.from_details(details) is None


def test_bins_fit_the_very_histogram_that_servers_count() -> None:
    random = np.random.default_rng(3)
    bins = bins_of(*drawn(random, 100, 3.0))
    own = Histogram("answer/score", "score", bins.low, bins.high, len(bins.rows) - 3)
    assert bins.fits(own)
    assert not bins.fits(Histogram("answer/score", "score", 0.25, 1.0, 10))
    assert not bins.fits(Histogram("answer/score", "score", bins.low, bins.high, 20))


def test_too_many_classes_have_no_bins() -> None:
    scores = np.full((2, 300), 1 / 300)
    assert ScoreBins.of_rows(scores, np.array([True, False])) is None
