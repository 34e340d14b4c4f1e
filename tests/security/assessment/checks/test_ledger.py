"""The nearest rows of other classes, without ordering all of them."""

from __future__ import annotations

import numpy as np
import pytest

from security.assessment.checks.evasion.ledger import _nearest


@pytest.mark.parametrize("count", [1, 3, 10, 11, 40])
@pytest.mark.parametrize("missing", [0, 3, 9, 11])
def test_the_nearest_are_the_first_of_all_in_order(count, missing):
    random = np.random.default_rng(count)
    for _ in range(50):
        pool = random.integers(0, 4, (11, 2)).astype(float)  # ties, mostly
        pool[:missing, 0] = np.nan
        z = random.integers(0, 4, 2).astype(float)
        gaps = np.abs(pool - z).max(axis=1)
        wanted = pool[np.argsort(gaps, kind="stable")[:count]]
        assert np.array_equal(_nearest(pool.T, z, count), wanted, equal_nan=True)
