"""Intervals: against published tables, other libraries, and by simulated coverage."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import beta, binom, binomtest, norm, rankdata
from statsmodels.stats.proportion import confint_proportions_2indep

from models.report import Metric
from security.assessment.results import intervals

# Newcombe (1998), "Interval estimation for the difference between independent
# proportions", table II, method 10 (score, without continuity correction).
NEWCOMBE = [
    ((56, 70), (48, 80), (0.0524, 0.3339)),
    ((9, 10), (3, 10), (0.1705, 0.8090)),
    ((6, 7), (2, 7), (0.0582, 0.8062)),
    ((5, 56), (0, 29), (-0.0381, 0.1926)),
    ((0, 10), (0, 20), (-0.1611, 0.2775)),
    ((0, 10), (0, 10), (-0.2775, 0.2775)),
    ((10, 10), (0, 20), (0.6791, 1.0000)),
    ((10, 10), (0, 10), (0.6075, 1.0000)),
]


def test_quantiles_and_ranks_are_those_of_scipys_distributions():
    for n in (1, 2, 7, 30, 100, 1001, 20_000):
        assert intervals._binomial_quantile(0.025, n) == binom.ppf(0.025, n, 0.5)
        for hits in {1, n // 2, n} - {0}:
            own = intervals.lower_bound(hits, n, 0.05)
            assert own == pytest.approx(beta.ppf(0.05, hits, n - hits + 1), rel=1e-12)
    values = np.random.default_rng(0).integers(0, 20, 200) / 7
    assert np.array_equal(intervals._ranks(values), rankdata(values))


@pytest.mark.parametrize("area", [0.5, 0.731, 0.999, 1 - 1e-11])
@pytest.mark.parametrize("sizes", [(1, 1), (20, 300), (15_000, 7500)])
def test_the_end_of_an_area_is_the_root(area, sizes):
    def beyond(true):
        shape = (1 - true) / (2 - true) + true / (1 + true)
        more = sum(sizes) / 2 - 1
        variance = true * (1 - true) * (1 + more * shape) / np.prod(sizes)
        return (area - true) ** 2 - norm.ppf(0.975) ** 2 * variance

    wanted = brentq(beyond, area + 1e-12, 1.0)
    assert intervals._auc_high(area, *sizes) == pytest.approx(wanted, abs=1e-11)


@given(total=st.integers(1, 500), data=st.data())
@settings(max_examples=100, deadline=None)
def test_wilson_is_scipys(total, data):
    hits = data.draw(st.integers(0, total))
    metric = intervals.proportion(hits, total)
    wanted = binomtest(hits, total).proportion_ci(0.95, method="wilson")
    assert metric.low == pytest.approx(wanted.low, abs=1e-9)
    assert metric.high == pytest.approx(wanted.high, abs=1e-9)
    assert metric.low <= metric.value <= metric.high
    assert metric.low < metric.high


@pytest.mark.parametrize(("first", "second", "wanted"), NEWCOMBE)
def test_a_difference_is_newcombes(first, second, wanted):
    parts = [intervals.proportion(*first), intervals.proportion(*second)]
    metric = intervals.largest_difference(parts)
    low, high = confint_proportions_2indep(*first, *second, method="newcomb")
    assert (low, high) == pytest.approx(wanted, abs=2e-4)
    # A difference without a sign: an interval around 0 is folded there.
    assert metric.low == pytest.approx(max(0.0, low), abs=1e-9)
    assert metric.high == pytest.approx(max(high, -low), abs=1e-9)
    assert metric.n == first[1] + second[1]
    assert metric.low < metric.high


def test_a_ratio_is_near_the_score_interval():
    # statsmodels has Koopman's; both are right, to within what such methods differ.
    for first, second in (((30, 100), (60, 100)), ((200, 900), (300, 900))):
        parts = [intervals.proportion(*first), intervals.proportion(*second)]
        metric = intervals.smallest_ratio(parts)
        wanted = confint_proportions_2indep(
            *first, *second, method="score", compare="ratio"
        )
        assert (metric.low, metric.high) == pytest.approx(wanted, abs=0.01)


@given(
    counts=st.lists(
        st.integers(1, 400).flatmap(
            lambda total: st.tuples(st.integers(0, total), st.just(total))
        ),
        min_size=2,
        max_size=6,
    )
)
@settings(max_examples=100, deadline=None)
def test_no_comparison_is_certain_of_anything(counts):
    level = intervals.confidence_of_pairs(len(counts))
    parts = [intervals.proportion(*count, level) for count in counts]
    values = [hits / total for hits, total in counts]
    made = {intervals.largest_difference(parts): max(values) - min(values)}
    if max(values) > 0:
        made[intervals.smallest_ratio(parts)] = min(values) / max(values)
    for metric, value in made.items():
        assert metric.value == pytest.approx(value)
        assert 0 <= metric.low <= metric.value <= metric.high <= 1
        assert metric.low < metric.high


SHARES = [(0.02, 0.05), (0.5, 0.5), (0.3, 0.6), (0.97, 0.9), (0.2, 0.3, 0.4, 0.4)]


@pytest.mark.parametrize("shares", SHARES)
def test_comparisons_hold_the_truth_in_95_of_100_samples(shares):
    random = np.random.default_rng(0)
    sizes = 40 * np.arange(1, len(shares) + 1)
    level, draws = intervals.confidence_of_pairs(len(shares)), 400
    inside = np.zeros(2)
    for _ in range(draws):
        hits = random.binomial(sizes, shares)
        parts = [
            intervals.proportion(int(hit), int(size), level)
            for hit, size in zip(hits, sizes)
        ]
        gap = intervals.largest_difference(parts)
        inside[0] += gap.low <= np.ptp(shares) + 1e-12 and np.ptp(shares) <= gap.high
        truth = min(shares) / max(shares)
        if hits.any():
            ratio = intervals.smallest_ratio(parts)
            inside[1] += ratio.low <= truth <= ratio.high
        else:
            inside[1] += 1
    # 380 of 400; below 366 would happen once in a thousand times.
    assert (inside >= 366).all()


@pytest.mark.parametrize("area", [0.5, 0.9, 0.97])
def test_the_area_is_in_its_interval_in_95_of_100_samples(area):
    random, apart = np.random.default_rng(0), np.sqrt(2) * norm.ppf(area)
    inside = 0
    for _ in range(300):
        metric = intervals.auc(random.normal(apart, 1, 30), random.normal(0, 1, 100))
        inside += metric.low <= area <= metric.high
    assert inside >= 272


def test_a_perfect_area_is_no_certainty():
    ends = [intervals.auc(np.ones(n), np.zeros(n)) for n in (2, 30, 200)]
    assert [metric.high for metric in ends] == [1, 1, 1]
    lows = [metric.low for metric in ends]
    assert lows == sorted(lows)
    assert lows[0] < 0.5
    assert 0.85 < lows[1] < 0.95
    worst = intervals.auc(np.zeros(30), np.ones(30))
    assert (worst.value, worst.low) == (0, 0)
    assert worst.high == pytest.approx(1 - lows[1])


@pytest.mark.parametrize("rare", [0.0, 0.03, 0.5])
def test_means_within_a_range_hold_the_truth(rare):
    random, inside = np.random.default_rng(0), 0
    for _ in range(400):
        values = np.where(random.random(50) < rare, 1.0, random.uniform(-0.1, 0.1, 50))
        metric = intervals.bounded_mean(values, -1.0, 1.0)
        assert metric.low < metric.value < metric.high
        inside += metric.low <= rare <= metric.high
    assert inside >= 366


def test_values_that_are_all_alike():
    one = intervals.bounded_mean(np.zeros(30), -1.0, 1.0)
    assert one.high == pytest.approx(-one.low) == pytest.approx(0.114, abs=0.002)
    assert intervals.mean(np.zeros(30)) == Metric(0.0, n=30)
    assert intervals.mean(np.array([0.5])) == Metric(0.5, n=1)


@pytest.mark.parametrize("overconfidence", [0.0, 0.2])
def test_a_calibration_error_holds_the_truth(overconfidence):
    random, inside = np.random.default_rng(0), 0
    expected = np.array([0.55, 0.65, 0.75, 0.85, 0.95])
    truth = overconfidence * (expected - 0.5)
    for _ in range(300):
        totals = np.maximum(1, random.multinomial(200, np.full(5, 0.2)))
        hits = random.binomial(totals, expected - truth)
        metric = intervals.mean_gap(hits, totals, expected)
        inside += metric.low <= truth.mean() <= metric.high
    assert inside >= 272


@pytest.mark.parametrize("rows", [30, 100])
def test_intervals_of_errors_cover(rows):
    random = np.random.default_rng(0)
    names = ("mae", "rmse", "median", "left")
    true = {"mae": np.sqrt(2 / np.pi), "rmse": 1.0, "median": 0.6745, "left": 0.2}
    hits = dict.fromkeys(names, 0)
    for _ in range(600):
        errors, cause = random.normal(size=rows), random.normal(size=rows) * 2
        made = {
            "mae": intervals.positive_mean(np.abs(errors)),
            "rmse": intervals.root(intervals.positive_mean(errors**2)),
            "median": intervals.median(np.abs(errors)),
            "left": intervals.unexplained(errors, cause + errors),
        }
        for name, metric in made.items():
            assert metric.low < metric.value < metric.high
            hits[name] += metric.low <= true[name] <= metric.high
    # Of squares in 30 rows a little too little, which docs/assessment.md says.
    for name, least in zip(names, (0.93, 0.9, 0.93, 0.89)):
        assert hits[name] / 600 >= least, (name, hits[name] / 600)


def test_errors_that_are_all_alike_have_no_interval():
    same = np.full(50, 2.0)
    for metric in (
        intervals.positive_mean(same),
        intervals.root(intervals.positive_mean(same**2)),
        intervals.median(same),
    ):
        assert metric.value == 2.0
        assert metric.low is None


def test_groups_whose_errors_differ_are_told_apart():
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(300):
        parts = [
            intervals.positive_mean(np.abs(scale * random.normal(size=60)))
            for scale in (1.0, 2.0)
        ]
        metric = intervals.largest_difference(parts)
        covered += metric.low <= np.sqrt(2 / np.pi) <= metric.high
    assert covered / 300 > 0.92
