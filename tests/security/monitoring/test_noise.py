"""The table has the probabilities that it states, and epsilon is a second library's."""

from __future__ import annotations

import itertools
import math

import mpmath
import numpy as np
import pytest
from dp_accounting import dp_event
from dp_accounting.pld import PLDAccountant
from scipy import stats

from security.errors import MonitoringError
from security.monitoring.guarantee import delta_of, epsilon_of, rho_of, sigma_of
from security.monitoring.noise import RoundedGaussian, rounded_gaussian
from tests.support.released import known_noise


def atoms(noise: RoundedGaussian) -> list[int]:
    """The probability of each atom, in units of 2^-64, as the table gives it."""
    table = [0, *noise._table.tolist(), 1 << 64]
    return [high - low for low, high in itertools.pairwise(table)]


@pytest.mark.parametrize("sigma", [0.5, 3.0, 23.5])
def test_each_atom_has_its_probability(sigma: float) -> None:
    """To 40 digits, by mpmath."""
    noise = RoundedGaussian(sigma)
    found = atoms(noise)
    reach = len(found) // 2
    with mpmath.workdps(40):

        def below(bound: mpmath.mpf) -> mpmath.mpf:
            return mpmath.ncdf(bound / mpmath.mpf(sigma))

        half = mpmath.mpf(1) / 2
        ideal = [below(k + half) - below(k - half) for k in range(-reach, reach + 1)]
        given = [mpmath.mpf(item) / 2**64 for item in found]
        tails = 2 * below(-reach - half)
        distance = (mpmath.fsum(map(abs, map(mpmath.fsub, given, ideal))) + tails) / 2
    assert 0 < distance <= noise.total_variation < 1e-16


def test_draws_are_as_the_table_says() -> None:
    noise = rounded_gaussian(4.2)
    with known_noise(1):
        drawn = noise.sample(1 << 18)
    values, counts = np.unique(drawn, return_counts=True)
    likely = {k - len(atoms(noise)) // 2: p for k, p in enumerate(atoms(noise))}
    expected = np.array([likely[int(value)] / 2**64 for value in values]) * len(drawn)
    enough = expected > 10
    statistic = float(((counts - expected)[enough] ** 2 / expected[enough]).sum())
    # A true sampler fails it for one seed of a million, and this is none of those.
    assert statistic < stats.chi2.isf(1e-6, int(enough.sum()) - 1)
    assert rounded_gaussian(4.2) is noise


@pytest.mark.parametrize("sigma", [0.0, -1.0, 1e9, math.nan])
def test_other_deviations_are_refused(sigma: float) -> None:
    with pytest.raises(MonitoringError):
        RoundedGaussian(sigma)


def recomputed(rho: float, delta: float) -> float:
    accountant = PLDAccountant()
    accountant.compose(dp_event.GaussianDpEvent(1 / math.sqrt(2 * rho)))
    return float(accountant.get_epsilon(delta))


@pytest.mark.parametrize(
    ("rho", "delta"), [(1e-5, 1e-6), (0.0077, 1e-9), (0.028, 1e-6), (1.17, 1e-6)]
)
def test_epsilon_is_what_dp_accounting_says(rho: float, delta: float) -> None:
    assert epsilon_of(rho, delta) == pytest.approx(
        recomputed(rho, delta), rel=2e-3, abs=2e-4
    )
    assert delta_of(rho, epsilon_of(rho, delta)) <= delta


def test_a_years_releases_compose_as_dp_accounting_says() -> None:
    """Of several models, with different noise and numbers of histograms."""
    releases = [(40, 31, 60.0), (12, 11, 31.5), (53, 1, 25.0)]
    accountant = PLDAccountant()
    for times, histograms, sigma in releases:
        event = dp_event.GaussianDpEvent(sigma / math.sqrt(histograms))
        accountant.compose(event, times)
    rho = sum(times * some / (2 * sigma**2) for times, some, sigma in releases)
    expected = accountant.get_epsilon(1e-6)
    assert epsilon_of(rho, 1e-6) == pytest.approx(expected, rel=2e-3)


def test_the_year_of_eight_leaves_what_was_measured() -> None:
    year = rho_of(8.0, 1e-6)
    assert epsilon_of(year, 1e-6) == pytest.approx(8.0, abs=1e-9)
    left = [round(epsilon_of(year / n, 1e-6), 2) for n in (12, 52, 365)]
    assert left == [1.97, 0.89, 0.31]
    assert sigma_of(0.028, math.sqrt(31)) == pytest.approx(23.5, abs=0.05)


@pytest.mark.parametrize(("rho", "delta"), [(-1.0, 0.1), (1.0, 0.0), (math.nan, 0.1)])
def test_no_guarantee_of_nonsense(rho: float, delta: float) -> None:
    with pytest.raises(MonitoringError):
        epsilon_of(rho, delta)
    with pytest.raises(MonitoringError):
        rho_of(rho, delta)
