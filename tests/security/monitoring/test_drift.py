"""False alarms as often as stated, drift found, seasons told apart, PSI no test."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from security.errors import MonitoringError
from security.monitoring.drift import (
    Counted,
    Finding,
    Reference,
    chi_square_tail,
    compare,
    find_drift,
    season_of,
)
from security.monitoring.layout import Histogram
from security.monitoring.release import About, Release
from security.monitoring.windows import Window, window_named

AGE = Histogram("input/age", "number", 0.0, 10.0)
JOB = Histogram("input/job", "category", -0.5, 3.5, 4)
# Of a normal column within four deviations; nothing is missing or outside.
NORMAL = np.diff(stats.norm.cdf(np.linspace(-4, 4, 11)))
SHARES = np.array([0.0, 0.0, *(NORMAL / NORMAL.sum()), 0.0])


def draw(
    random: np.random.Generator, shares: np.ndarray, rows: int, sigma: float
) -> Counted:
    noise = np.rint(random.normal(0, sigma, len(shares))) if sigma else 0
    return Counted.of(random.multinomial(rows, shares) + noise, sigma)


def moved(deviations: float) -> np.ndarray:
    inner = np.diff(stats.norm.cdf(np.linspace(-4, 4, 11) - deviations))
    return np.array([0.0, 0.0, *(inner / inner.sum()), 0.0])


@pytest.mark.parametrize("degrees", [1, 2, 5, 12, 13])
def test_the_tail_is_scipys(degrees: int) -> None:
    for value in (0.0, 1e-9, 0.5, 5.0, 40.0, 200.0):
        expected = stats.chi2.sf(value, degrees)
        assert chi_square_tail(value, degrees) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("rows", "sigma", "reference_sigma"),
    [(300, 23.5, 0.0), (3000, 23.5, 12.0), (10_000, 45.0, 45.0), (3000, 0.0, 0.0)],
)
def test_false_alarms_are_as_often_as_stated(
    rows: int, sigma: float, reference_sigma: float
) -> None:
    random = np.random.default_rng(1)
    tried, alarms = 1500, 0
    for _ in range(tried):
        against = draw(random, SHARES, 8000, reference_sigma)
        p_value, *_ = compare(AGE, [(draw(random, SHARES, rows, sigma), against)])
        alarms += p_value < 0.01
    # Both tests together have at most twice their level; one in a million runs fails.
    assert stats.binomtest(alarms, tried, 0.01, "greater").pvalue > 1e-6


@pytest.mark.parametrize(
    ("rows", "sigma", "shift"), [(2000, 23.5, 0.25), (4000, 44.9, 0.25)]
)
def test_a_quarter_of_a_deviation_is_found(
    rows: int, sigma: float, shift: float
) -> None:
    """Nine times in ten, where the facts measured 2000 at epsilon 1, 4000 at 0.5."""
    random = np.random.default_rng(2)
    against, found = Counted.of(SHARES * 1e6, 0.0), 0
    for _ in range(200):
        p_value, by, size = compare(
            AGE, [(draw(random, moved(shift), rows, sigma), against)]
        )
        found += p_value < 8.1e-5
        assert size is not None
    # A little less than the 0.9 of one test alone: here two share the level.
    assert found > 150
    assert by == "shift"
    assert size[0] == pytest.approx(0.25 * 10 / 8, abs=6 * size[1])


def test_without_noise_rare_bins_are_joined() -> None:
    """Bins below five expected, at a level where they mislead the chi-square most."""
    random = np.random.default_rng(3)
    against = Counted.of(SHARES * 1e9, 0.0)
    alarms = sum(
        compare(AGE, [(draw(random, SHARES, 300, 0.0), against)])[0] < 1e-3
        for _ in range(2000)
    )
    assert alarms <= 12


def release(window: Window, counts: np.ndarray, sigma: float) -> Release:
    return Release(
        About("drift", "toy", "1.0.0", window),
        window.end,
        subjects=int(counts.sum()),
        counts={AGE.name: tuple(map(int, counts))},
        sigma=sigma,
        details={"histograms": [AGE.to_object()]},
    )


def weeks(
    number: int, shares: np.ndarray, rows: int = 1500, sigma: float = 25.0
) -> list[Release]:
    random, window, made = np.random.default_rng(4), window_named("2026-W40"), []
    for _ in range(number):
        counted = draw(random, shares, rows, sigma)
        made.append(release(window, counted.counts, sigma))
        window = window.next
    return made


REFERENCE = Reference("none", {"": {AGE.name: tuple((SHARES * 1e5).astype(int))}}, 0.0)


def test_the_running_sum_finds_what_a_week_cannot() -> None:
    last, four = find_drift(weeks(6, moved(0.18)), REFERENCE)
    assert (last.windows, four.windows) == (1, 4)
    assert four.p_value < last.p_value
    assert four.alarm
    assert (last.last, four.last) == ("2026-W45", "2026-W45")


def test_a_year_without_drift_has_no_alarm_most_times() -> None:
    year = weeks(52, SHARES)
    alarms = [
        finding.alarm
        for end in range(1, 53)
        for finding in find_drift(year[:end], REFERENCE)
    ]
    assert len(alarms) == 103
    assert sum(alarms) == 0  # of this seed; one year in eight has one


def test_noise_alone_makes_the_stability_index_large_and_is_no_alarm() -> None:
    findings = [
        find_drift([made], REFERENCE)[0]
        for made in weeks(30, SHARES, rows=1000, sigma=23.5)
    ]
    assert np.mean([item.psi > 0.1 for item in findings]) > 0.5
    assert not any(item.alarm for item in findings)


def test_a_reference_by_month_tells_a_season_from_drift() -> None:
    summer, winter = moved(0.6), moved(-0.6)
    parts = {
        f"{month:02}": {AGE.name: tuple((some * 1e5).astype(int))}
        for month in range(1, 13)
        for some in [summer if 4 <= month <= 9 else winter]
    }
    by_month = Reference("month", parts, 0.0)
    random, made = np.random.default_rng(5), []
    for name in ("2026-W37", "2026-W38", "2026-W39", "2026-W40", "2026-W41"):
        window = window_named(name)
        shares = summer if window.middle.month <= 9 else winter
        counts = draw(random, shares, 3000, 25.0).counts
        made.append(release(window, counts, 25.0))
    assert not any(item.alarm for item in find_drift(made, by_month))
    assert any(item.alarm for item in find_drift(made, REFERENCE))


def test_seasons_that_a_window_cannot_have_are_refused() -> None:
    assert season_of(window_named("2026-12-01"), "weekday") == "2"
    for name, season in (("2026-W49", "weekday"), ("2026-12", "year")):
        with pytest.raises(MonitoringError):
            season_of(window_named(name), season)


def test_what_has_no_counts_or_no_reference_is_not_tested() -> None:
    empty = Release(About("drift", "toy", "1", window_named("2026-W40")), 0)
    assert find_drift([empty], REFERENCE) == []
    assert find_drift(weeks(2, SHARES), Reference("none", {}, 0.0)) == []


def test_a_mix_of_categories_is_found_without_a_direction() -> None:
    random = np.random.default_rng(6)
    before = np.array([0, 0, 0.90, 0.05, 0.03, 0.02, 0])
    after = np.array([0, 0, 0.85, 0.10, 0.03, 0.02, 0])
    against = Counted.of(before * 1e6, 0.0)
    p_value, by, shift = compare(JOB, [(draw(random, after, 4000, 23.5), against)])
    assert p_value < 8.1e-5
    assert (by, shift) == ("chi-square", None)


@pytest.mark.parametrize("counts", [[0] * 13, [-5] * 13, [0] * 12 + [1]])
def test_counts_that_noise_made_strange_are_no_error(counts: list[int]) -> None:
    for sigma in (0.0, 25.0):
        for against in (SHARES * 1e5, np.zeros(13), np.full(13, -2.0)):
            p_value, *_ = compare(
                AGE, [(Counted.of(counts, sigma), Counted.of(against, 25.0))]
            )
            assert 0.0 <= p_value <= 1.0


def test_a_finding_is_json() -> None:
    found = Finding("input/age", 1, "2026-W40", 0.5, "shift", (0.1, 0.2), 0.01, False)
    assert found.to_object()["shift"] == [0.1, 0.2]
    assert math.isclose(found.to_object()["psi"], 0.01)
