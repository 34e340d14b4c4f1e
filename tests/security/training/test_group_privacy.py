"""Owners of several rows, sampled row by row: the noise that is found is enough."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from security.errors import TrainingError
from security.training.accounting import (
    MAX_GROUP,
    find_noise_multiplier,
    recompute_epsilon,
)


def exact_delta(
    rate: float, noise: float, group: int, epsilon: float, steps: int = 1
) -> float:
    """Of one step by integration; of several where every row comes in each.

    The definition alone, no accountant: a binomial number of the owner's rows is in the
    batch, and each moves the sum by 1.
    """
    if rate == 1:
        noise /= math.sqrt(steps)
    elif steps > 1:
        raise ValueError("only full batches add up to one Gaussian")
    places = np.linspace(-40 * noise, group + 40 * noise, 400_001)
    without = stats.norm.pdf(places, 0, noise)
    chances = stats.binom(group, rate).pmf(np.arange(group + 1))
    having = sum(
        chance * stats.norm.pdf(places, count, noise)
        for count, chance in enumerate(chances)
    )
    width = places[1] - places[0]
    return float(
        max(
            np.maximum(having - math.exp(epsilon) * without, 0).sum() * width,
            np.maximum(without - math.exp(epsilon) * having, 0).sum() * width,
        )
    )


@pytest.mark.parametrize(
    ("rate", "group", "steps", "epsilon"),
    [(1.0, 3, 4, 1.5)],
)
def test_the_noise_for_groups_is_enough_and_not_far_too_much(
    rate, group, steps, epsilon
):
    asked = {"epsilon": epsilon, "delta": 1e-4, "sample_rate": rate, "steps": steps}
    noise = find_noise_multiplier(**asked, group=group)
    assert exact_delta(rate, noise, group, epsilon, steps) <= 1e-4
    assert exact_delta(rate, 0.93 * noise, group, epsilon, steps) > 1e-4
    assert noise > find_noise_multiplier(**asked)


@pytest.mark.parametrize("seed", [1, 3])
def test_epsilon_for_groups_bounds_the_truth(seed):
    draw = np.random.default_rng(seed)
    group, rate = int(draw.integers(2, 9)), float(draw.uniform(0.02, 0.6))
    noise, delta = float(draw.uniform(2, 8)), 10.0 ** -float(draw.uniform(2, 6))
    epsilon = recompute_epsilon(rate, noise, 1, delta, group=group)
    assert exact_delta(rate, noise, group, epsilon) <= delta * 1.001
    if epsilon > 0.1:
        assert exact_delta(rate, noise, group, 0.95 * epsilon - 0.01) > delta


def test_groups_that_cannot_be_accounted():
    for group in (0, MAX_GROUP + 1, 2.5):
        with pytest.raises(TrainingError, match="rows: 1 to 64"):
            recompute_epsilon(0.1, 1.0, 1, 1e-5, group=group)
