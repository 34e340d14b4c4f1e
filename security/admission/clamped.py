"""How many training targets lay beyond their public range, as far as a training tells.

In each step of DP-SGD one more coordinate beside the gradient adds up, of the units in
the batch, which share of their targets was clamped (0 or 1 where a unit is a row). The
coordinate has a share of the clipping norm, and the noise of all others, so that the
accounted mechanism covers it and nothing is spent beside it. Here the figure is made
of the sum of these noisy numbers; the gate makes it again. No I/O.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

from models.report import Metric, Report
from security.admission.stated import Found, differ, number

__all__ = [
    "COUNT",
    "EXACT",
    "MOST",
    "NOISE",
    "NOISY",
    "NOISY_SUM",
    "Counting",
    "clamped_contradictions",
]

# Of a report: the metric, its condition and its details; the deviation of its noise.
COUNT, NOISE = "clamped_targets", "clamped_targets_noise"
NOISY_SUM = "clamped_targets_noisy_sum"
# The most of the norm that a configuration may give it.
MOST = 0.5
# What the condition says: how it was counted.
NOISY, EXACT = "noisy_in_mechanism", "all_public_rows"

CONFIDENCE = 0.95
# Of a normal distribution, on either side.
_DEVIATIONS = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)
_SAME = 1e-9  # of numbers that the same formula gave, in a file of decimals


@dataclass(frozen=True)
class Counting:
    """How noisy numbers of clamped targets were made.

    Attributes:
        norm_share: share of the clipping norm that the coordinate has, above 0.
        noise_multiplier: deviation of its noise over the clipping norm.
        sample_rate: chance of each unit to be in a step's batch.
        steps: how many numbers were added up, at least 1.
        units: how many are sampled from.

    >>> every_step = Counting(0.1, 1.5, 1.0, 100, 1000)
    >>> told = every_step.metric(2000.0)
    >>> told.value, round(told.low, 4), round(told.high, 4)
    (0.02, 0.0171, 0.0229)
    """

    norm_share: float
    noise_multiplier: float
    sample_rate: float
    steps: int
    units: int

    @property
    def noise(self) -> float:
        """Standard deviation of the figure's noise, as a share of all units."""
        each = self.noise_multiplier / self.norm_share
        return each / (self.sample_rate * math.sqrt(self.steps) * self.units)

    def metric(self, noisy_sum: float) -> Metric:
        """The share of all units' targets that were clamped, with its interval.

        Noise is known. Batches are random, too: a sum over units of shares from 0 to 1
        has at most the variance of as many whole units, by which the interval's ends
        are those shares that the figure is just that unlikely for.

        Args:
            noisy_sum: of all steps.
        """
        seen = self.sample_rate * self.steps
        found = noisy_sum / seen / self.units
        sampled = (1 - self.sample_rate) / seen / self.units
        half = _DEVIATIONS**2 * sampled / 2
        batches = math.sqrt(max(0.0, found) * sampled + sampled * half / 2)
        wide = _DEVIATIONS * math.hypot(self.noise, batches)
        return Metric(
            _share(found),
            n=self.units,
            low=_share(found + half - wide),
            high=_share(found + half + wide),
            confidence=CONFIDENCE,
        )


def clamped_contradictions(privacy: Report, config: Mapping[str, Any]) -> Found:
    """The figure follows from its noisy sum, and is there where it was asked for.

    Args:
        privacy: of any training: where nothing is asked for, nothing may be told.
        config: the configuration that it carries; empty where it carries none.
    """
    share, private = _asked(config), privacy.conditions.get("mechanism") != "none"
    if not share:
        # Reports of releases that did not count carry configurations without it.
        for name in (COUNT, NOISE, NOISY_SUM):
            tables = (privacy.conditions, privacy.metrics, privacy.details)
            if any(name in table for table in tables):
                yield f"privacy: {name} was not asked for"
        return
    yield from differ(
        "privacy", privacy.conditions, {COUNT: NOISY if private else EXACT}
    )
    if not 0 < share <= MOST:
        yield f"privacy: {COUNT} has a share of the norm that no training has"
    elif COUNT not in privacy.metrics:
        yield f"privacy: {COUNT} is not in the report"
    elif private:
        yield from _noisy(privacy, share)
    else:
        yield from _exact(privacy)


def _asked(config: Mapping[str, Any]) -> float:
    """The configured share of the norm; 0 where nothing is counted."""
    privacy, data = config.get("privacy"), config.get("data")
    if not isinstance(privacy, dict) or not isinstance(data, dict):
        return 0.0
    if not data.get("target"):
        return 0.0
    return number(privacy.get("clamped_share", 0.0))


def _noisy(privacy: Report, share: float) -> Found:
    stated, total = privacy.conditions, number(privacy.details.get(NOISY_SUM))
    noise, rate = (
        number(stated.get(name)) for name in ("noise_multiplier", "sample_rate")
    )
    steps, units = (number(stated.get(name)) for name in ("steps_in_weights", "units"))
    parts = 0 < noise < math.inf and 0 < rate <= 1
    counts = 1 <= steps < math.inf and 1 <= units < math.inf  # NaN compares false
    if not (parts and counts and math.isfinite(total)):
        yield f"privacy: what {COUNT} is made of is not stated"
        return
    made = Counting(share, noise, rate, int(steps), int(units))
    if not _same(privacy.metrics[COUNT], made.metric(total)):
        yield f"privacy: {COUNT} is not what its noisy sum gives"
    found = privacy.metrics.get(NOISE)
    if found is None or not _same(found, Metric(made.noise)):
        yield f"privacy: {NOISE} is not that of the mechanism"


def _exact(privacy: Report) -> Found:
    """A share of whole rows, without noise."""
    found, rows = privacy.metrics[COUNT], sum(item.rows for item in privacy.datasets)
    whole = found.value * rows
    if not (0 <= found.value <= 1 and abs(whole - round(whole)) <= _SAME * (rows + 1)):
        yield f"privacy: {COUNT} is no share of the rows"
    if found.n != rows or found.low is not None:
        yield f"privacy: {COUNT} is not of the rows that were trained on"
    if NOISE in privacy.metrics or NOISY_SUM in privacy.details:
        yield f"privacy: {COUNT} of public rows has no noise"


def _same(one: Metric, other: Metric) -> bool:
    if (one.n, one.confidence) != (other.n, other.confidence):
        return False
    pairs = ((one.value, other.value), (one.low, other.low), (one.high, other.high))
    return all(
        a is b or (a is not None and b is not None and abs(a - b) <= _SAME * abs(b))
        for a, b in pairs
    )


def _share(value: float) -> float:
    return min(1.0, max(0.0, value))
