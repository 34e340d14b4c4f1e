"""Epsilon: three accountants, impossible arguments, published figures."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.accountants import GaussianAccountant

from security.errors import TrainingError
from security.training import accounting
from security.training.accounting import (
    AGREEMENT_SLACK,
    Mechanism,
    Spent,
    check_delta,
    compose,
    default_delta,
    epsilon_prv,
    epsilon_rdp,
    find_noise_multiplier,
    recompute_epsilon,
)

rates = st.sampled_from([0.01, 0.1, 0.5, 1.0])
noises = st.floats(1.0, 8.0)
steps = st.integers(1, 200)
deltas = st.sampled_from([1e-3, 1e-5])
few = settings(max_examples=6, deadline=None)


def test_one_gaussian_release():
    # Balle and Wang 2018, theorem 8: the exact delta of one Gaussian mechanism.
    noise, epsilon = 2.0, 1.0

    def normal(value: float) -> float:
        return math.erfc(-value / math.sqrt(2)) / 2

    delta = normal(1 / (2 * noise) - epsilon * noise) - math.exp(epsilon) * normal(
        -1 / (2 * noise) - epsilon * noise
    )
    assert recompute_epsilon(1.0, noise, 1, delta) == pytest.approx(epsilon, abs=2e-3)
    assert epsilon_prv(Mechanism(1.0, noise, 1), delta) == pytest.approx(
        epsilon, abs=0.02
    )


@pytest.mark.filterwarnings("ignore:GDP accounting is experimental:UserWarning")
def test_why_opacus_gdp_accountant_is_not_used():
    accountant = GaussianAccountant()
    accountant.history = [(1.0, 0.142, 14)]
    understated = accountant.get_epsilon(1e-3)
    assert recompute_epsilon(0.142, 1.0, 14, 1e-3) > 1.1 * understated
    assert epsilon_prv(Mechanism(0.142, 1.0, 14), 1e-3) > 1.1 * understated


@given(rate=rates, noise=noises, count=steps, delta=deltas)
@few
def test_accountants_agree(rate, noise, count, delta):
    mechanism = Mechanism(rate, noise, count)
    claim = epsilon_prv(mechanism, delta)
    again = recompute_epsilon(rate, noise, count, delta)
    assert abs(claim - again) <= AGREEMENT_SLACK
    assert epsilon_rdp(mechanism, delta) >= again - 1e-6


@given(rate=rates, noise=noises, count=steps, delta=deltas)
@few
def test_epsilon_grows_with_steps_and_falls_with_noise(rate, noise, count, delta):
    once = recompute_epsilon(rate, noise, count, delta)
    assert recompute_epsilon(rate, noise, count * 2, delta) >= once
    assert recompute_epsilon(rate, noise * 2, count, delta) <= once
    assert recompute_epsilon(min(1.0, rate * 2), noise, count, delta) >= once - 1e-9
    assert recompute_epsilon(rate, noise, count, delta / 10) >= once


@pytest.mark.parametrize(
    ("epsilon", "rate", "count"), [(1.0, 1.0, 50), (3.0, 0.5, 20), (8.0, 0.05, 20)]
)
def test_noise_reaches_the_target_and_no_more(epsilon, rate, count):
    noise = find_noise_multiplier(
        epsilon=epsilon, delta=1e-3, sample_rate=rate, steps=count
    )
    assert epsilon_prv(Mechanism(rate, noise, count), 1e-3) <= epsilon
    assert epsilon_prv(Mechanism(rate, noise * 0.99, count), 1e-3) > epsilon
    assert recompute_epsilon(rate, noise, count, 1e-3) <= epsilon


@pytest.mark.parametrize("epsilon", [0, -1, math.nan, math.inf])
def test_impossible_targets(epsilon):
    with pytest.raises(TrainingError, match="epsilon"):
        find_noise_multiplier(epsilon=epsilon, delta=1e-3, sample_rate=0.5, steps=1)


def test_targets_below_the_accountants_error():
    with pytest.raises(TrainingError, match="no noise reaches"):
        find_noise_multiplier(epsilon=1e-3, delta=1e-3, sample_rate=1.0, steps=1)


@pytest.mark.parametrize("rate", [0, -0.1, 1.01, math.nan, math.inf])
def test_impossible_rates(rate):
    with pytest.raises(TrainingError, match="sampling rate"):
        recompute_epsilon(rate, 1.0, 1, 1e-3)


@pytest.mark.parametrize("noise", [0, -1, math.nan, math.inf])
def test_impossible_noise(noise):
    with pytest.raises(TrainingError, match="noise multiplier"):
        recompute_epsilon(0.5, noise, 1, 1e-3)


@pytest.mark.parametrize("count", [0, -1, 1.5])
def test_impossible_steps(count):
    with pytest.raises(TrainingError, match="steps"):
        recompute_epsilon(0.5, 1.0, count, 1e-3)


@pytest.mark.parametrize("delta", [0, 1, -1, math.nan, math.inf])
def test_impossible_deltas(delta):
    for call in (
        lambda: recompute_epsilon(0.5, 1.0, 1, delta),
        lambda: epsilon_prv(Mechanism(0.5, 1.0, 1), delta),
        lambda: epsilon_rdp(Mechanism(0.5, 1.0, 1), delta),
        lambda: check_delta(delta, 10),
    ):
        with pytest.raises(TrainingError, match="delta"):
            call()


def test_delta_below_one_over_n():
    check_delta(0.0099, 100)
    with pytest.raises(TrainingError, match="not below 1/n"):
        check_delta(0.01, 100)


@given(st.integers(2, 10**9))
def test_default_delta(rows):
    delta = default_delta(rows)
    assert 0.9 * rows**-1.1 < delta <= rows**-1.1 * (1 + 1e-12)
    assert float(f"{delta:.1e}") == delta
    if rows > 2:
        check_delta(delta, rows)


def test_default_delta_needs_rows():
    with pytest.raises(TrainingError, match="1 rows"):
        default_delta(1)


def test_a_steps_divergence_is_computed_once(monkeypatch):
    """Whatever number of steps a ledger adds up, and however often."""
    asked, compute = [], accounting.rdp.compute_rdp

    def counted(**given):
        asked.append(given["steps"])
        return compute(**given)

    monkeypatch.setattr(accounting.rdp, "compute_rdp", counted)
    taken = [Spent(1.0, 7.1259, 3), Spent(1.0, 7.1259, 5)]
    spent = compose(taken, 1e-3)
    assert compose(taken[::-1], 1e-3) == pytest.approx(spent)
    assert asked == [1]
    assert spent == pytest.approx(epsilon_rdp(Mechanism(1.0, 7.1259, 8), 1e-3))
