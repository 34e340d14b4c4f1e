"""Certified accuracy by randomised smoothing (Cohen, Rosenfeld and Kolter 2019).

The certificate is about the smoothed model: the class that the model gives most often
when Gaussian noise is added. It holds against every attack within its L2 radius, with a
stated probability of error. The model as served has no certificate from it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from models.report import Metric
from security.assessment.checks.evasion.plan import plan_for
from security.assessment.plan.checks import Outcome, Unit, row_units
from security.assessment.plan.context import Context
from security.assessment.results import intervals
from security.assessment.results.result import CheckResult

__all__ = ["ALPHA", "SmoothingCheck", "certified_radius"]

Floats = NDArray[np.float64]

# The certificate of one row is wrong with at most this probability.
ALPHA = 0.001
_SELECT = 100
_CHUNK = 25
_CURVE = (0.25, 0.5, 1.0, 1.5, 2.0)


def certified_radius(
    hits: int, draws: int, sigma: float, alpha: float = ALPHA
) -> float:
    """The L2 radius within which the smoothed class cannot change; 0 for none.

    Args:
        hits: draws that gave the class, chosen from other draws.
        draws: how many.
        sigma: of the noise.
        alpha: probability of error; Clopper and Pearson's bound.

    >>> certified_radius(1000, 1000, 0.5) > 1.2, certified_radius(500, 1000, 0.5)
    (True, 0.0)
    """
    bound = intervals.lower_bound(hits, draws, alpha)
    return max(0.0, float(sigma * ndtri(bound))) if bound > 0.5 else 0.0


class SmoothingCheck:
    """How much of the accuracy a smoothed version of the model would certify."""

    name = "smoothing"
    title = "certified accuracy"

    def missing(self, context: Context) -> str | None:
        """Not in the quick profile, and not where questions cost."""
        job = context.job
        if not job.options.effort.smoothing_rows:
            return "not part of this profile"
        if job.remote:
            return "it would spend an endpoint's quota"
        if job.space.integer.any():
            return "whole numbers take no Gaussian noise"
        if job.space.held.all():
            return "no column may change within a radius"
        return None

    def units(self, context: Context) -> list[Unit]:
        """Some rows each."""
        wanted = min(context.job.options.effort.smoothing_rows, len(context.job.rows))
        return row_units(self.name, wanted, size=_CHUNK)

    def run(self, unit: Unit, context: Context) -> Outcome:
        """Certify some rows.

        Raises:
            BudgetError: time ran out.
        """
        job, sigma = context.job, _sigma(context)
        places = range(int(unit.params["first"]), int(unit.params["end"]))
        random = context.random(unit.key)
        radii, classes = [], []
        for place in places:
            context.check_time()
            first = self._counts(context, place, _SELECT, sigma, random)
            chosen = int(np.argmax(first))
            draws = job.options.effort.smoothing_draws
            counts = self._counts(context, place, draws, sigma, random)
            radii.append(certified_radius(int(counts[chosen]), draws, sigma))
            classes.append(chosen)
        right = np.array(classes) == job.labels[list(places)]
        return Outcome(
            {"found": f"{sum(radius > 0 for radius in radii)} rows certified"},
            {"radii": np.array(radii), "right": right},
        )

    def _counts(
        self,
        context: Context,
        place: int,
        draws: int,
        sigma: float,
        random: np.random.Generator,
    ) -> NDArray[np.int64]:
        job = context.job
        row = job.rows[place]
        noise = random.normal(scale=sigma, size=(draws, len(row))) * job.space.scale
        noise[:, job.space.held] = 0.0
        noisy = (row.astype(np.float64) + noise).astype(row.dtype)
        labels = context.target.ask(noisy).labels
        return np.bincount(labels[labels >= 0], minlength=len(job.reading.classes))

    def conclude(
        self, context: Context, outcomes: Mapping[str, Outcome]
    ) -> CheckResult:
        """Certified accuracy by radius."""
        parts = [outcome.arrays for _, outcome in sorted(outcomes.items())]
        radii = np.concatenate([part["radii"] for part in parts])
        right = np.concatenate([part["right"] for part in parts])
        sigma, total = _sigma(context), len(radii)
        curve = [
            {
                "radius": share * sigma,
                **vars(_certified(radii, right, share * sigma)),
            }
            for share in _CURVE
        ]
        return CheckResult(
            self.name,
            conditions={
                "norm": "L2",
                "sigma": sigma,
                "alpha": ALPHA,
                "draws": context.job.options.effort.smoothing_draws,
                "about": "the_smoothed_model",
            },
            metrics={
                "certified_accuracy": _certified(radii, right, 0.5 * sigma),
                "smoothed_accuracy": intervals.proportion(int(right.sum()), total),
            },
            details={"curve": curve},
        )


def _certified(radii: Floats, right: NDArray[np.bool_], radius: float) -> Metric:
    return intervals.proportion(int((right & (radii >= radius)).sum()), len(radii))


def _sigma(context: Context) -> float:
    """Noise as wide as the stated L2 radius."""
    return plan_for(context.job, "l2").smallest
