"""Targets beyond their public range: how many, as the evidence and the command tell it.

They are counted by the mechanism itself, with its noise (`mechanism`); of public rows
without.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from models.data.datasets import AnyDataset
from models.report import Condition, Metric
from security.admission.clamped import COUNT, EXACT, NOISE, NOISY, NOISY_SUM, Counting
from security.training.accounting import Mechanism
from security.training.config_sections import TrainingConfig
from security.training.trainer import Outcome

__all__ = [
    "clamped_condition",
    "clamped_details",
    "clamped_exactly",
    "clamped_metrics",
    "counting_of",
    "tell_clamped",
    "tell_exactly",
]

Progress = Callable[..., None]


def counting_of(
    config: TrainingConfig, mechanism: Mechanism, *, steps: int, units: int
) -> Counting:
    """How a training counts.

    Args:
        config: that counts.
        mechanism: of its steps.
        steps: behind the weights.
        units: that are sampled from.
    """
    noise, rate = mechanism.noise_multiplier, mechanism.sample_rate
    return Counting(config.clamped_share, noise, rate, steps, units)


def clamped_metrics(
    config: TrainingConfig, mechanism: Mechanism, outcome: Outcome
) -> dict[str, Metric]:
    """The figure with its interval, and the deviation of its noise."""
    if outcome.clamped is None:
        return {}
    steps, units = outcome.record.steps, outcome.units
    made = counting_of(config, mechanism, steps=steps, units=units)
    return {COUNT: made.metric(outcome.clamped), NOISE: Metric(made.noise)}


def clamped_exactly(config: TrainingConfig, rows: AnyDataset) -> dict[str, Metric]:
    """The figure of public rows, each by itself."""
    if not config.clamped_share or rows.target is None:
        return {}
    beyond = rows.target.beyond(np.asarray(rows.labels))
    return {COUNT: Metric(float(beyond.mean()), n=len(rows))}


def clamped_condition(config: TrainingConfig) -> Mapping[str, Condition]:
    """How it was counted, if it was."""
    if not config.clamped_share:
        return {}
    return {COUNT: NOISY if config.private else EXACT}


def clamped_details(outcome: Outcome) -> Mapping[str, Any]:
    """What the figure is made of, so that the gate can make it again."""
    return {} if outcome.clamped is None else {NOISY_SUM: outcome.clamped}


def tell_clamped(
    config: TrainingConfig, mechanism: Mechanism, outcome: Outcome, told: Progress
) -> None:
    """The figure, for people."""
    found = clamped_metrics(config, mechanism, outcome).get(COUNT)
    if found is not None and found.low is not None and found.high is not None:
        told(
            "targets",
            1.0,
            f"about {found.value:.2%} beyond their range and clamped, {found.low:.2%} "
            f"to {found.high:.2%} with the noise",
        )


def tell_exactly(config: TrainingConfig, rows: AnyDataset, told: Progress) -> None:
    """The same of public rows."""
    for found in clamped_exactly(config, rows).values():
        told("targets", 1.0, f"{found.value:.2%} beyond their range and clamped")
