"""Membership scores: higher where a row looks more like one that was trained on.

- `loss`: the probability of the true class (Yeom et al. 2018);
- `lira`: the likelihood ratio of the target's confidence, under Gaussians fitted to
  the shadows that had the row and those that had not (Carlini et al. 2022, online);
- `rmia`: how often the target favours the row over others, relative to shadows that
  had it and had it not (Zarifzadeh, Liu, Shokri 2024, gamma = 1).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from security.assessment.checks.privacy.shadows import Shadows

__all__ = ["confidences", "likelihood_ratio", "lira", "loss", "rmia"]

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]
# From this many shadows on each side, a variance per row is better than one for all
# (Carlini et al., section VI.C).
_OWN_VARIANCE = 32
_TINY = 1e-12


def loss(probabilities: Floats, labels: Labels) -> Floats:
    """The target's probability of each row's class ``(n,)``."""
    return np.asarray(probabilities[np.arange(len(labels)), labels], np.float64)


def confidences(logits: NDArray[np.floating], labels: Labels) -> Floats:
    """``log(p / (1 - p))`` of the true class, ``(…, n)``, without rounding p first."""
    values = np.asarray(logits, np.float64)
    rows = np.arange(len(labels))
    own = values[..., rows, labels]
    others = values.copy()
    others[..., rows, labels] = -np.inf
    top = others.max(axis=-1)
    rest = top + np.log(np.exp(others - top[..., None]).sum(axis=-1))
    return np.asarray(own - rest)


def lira(target: Floats, shadows: Shadows, labels: Labels) -> Floats:
    """The log likelihood ratio of each row ``(n,)``.

    Args:
        target: the target's `confidences` ``(n,)``.
        shadows: of the same rows.
        labels: ``(n,)``.
    """
    known = confidences(shadows.logits, labels)
    return likelihood_ratio(target, known, shadows.included)


def likelihood_ratio(
    target: Floats, known: Floats, included: NDArray[np.bool_]
) -> Floats:
    """The log likelihood ratio of each row ``(n,)``, from any figure of it.

    Args:
        target: the target's figure of each row ``(n,)``.
        known: each shadow's ``(models, n)``.
        included: ``(models, n)``: which rows each was trained on.
    """
    result = np.zeros(len(target))
    for sign, which in ((1.0, included), (-1.0, ~included)):
        mean, spread = _gaussian(known, which)
        result += sign * (-0.5 * ((target - mean) / spread) ** 2 - np.log(spread))
    return result


def rmia(target: Floats, shadows: Shadows, labels: Labels) -> Floats:
    """The share of other rows that each row dominates ``(n,)``.

    Args:
        target: the target's probability of the true class ``(n,)``.
        shadows: of the same rows.
        labels: ``(n,)``.
    """
    known = 1 / (1 + np.exp(-np.clip(confidences(shadows.logits, labels), -60, 60)))
    inside = np.where(shadows.included, known, 0.0).sum(axis=0)
    outside = np.where(shadows.included, 0.0, known).sum(axis=0)
    had = np.maximum(shadows.included.sum(axis=0), 1)
    had_not = np.maximum((~shadows.included).sum(axis=0), 1)
    # P(x): over models with and without the row, in equal parts.
    usual = 0.5 * (inside / had + outside / had_not)
    ratio = target / np.maximum(usual, _TINY)
    order = np.sort(ratio)
    return np.asarray(np.searchsorted(order, ratio, side="left") / len(ratio))


def _gaussian(known: Floats, which: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Mean and standard deviation of each row's confidence over models ``(n,)``."""
    counts = np.maximum(which.sum(axis=0), 1)
    values = np.where(which, known, 0.0)
    mean = values.sum(axis=0) / counts
    square = np.where(which, (known - mean) ** 2, 0.0).sum(axis=0)
    if which.sum(axis=0).min() >= _OWN_VARIANCE:
        spread = np.sqrt(square / counts)
    else:
        spread = np.full(len(mean), np.sqrt(square.sum() / counts.sum()))
    return mean, np.maximum(spread, 1e-6)
