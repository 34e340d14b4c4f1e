"""Canary trainings, judged: does the mechanism leak more than its claim allows?

All bounds hold together: the chance that any of them is wrong is `LEVEL`, shared out
among them. A mechanism that keeps its claim is accused no more often than that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from models.report import Metric
from security.assessment.checks.privacy import bounds
from security.assessment.checks.privacy.bounds import Curve, Rates

__all__ = [
    "KINDS",
    "LEVEL",
    "MIN_TRAININGS",
    "AuditedMechanism",
    "Scores",
    "Trainings",
    "Verdict",
    "judge_kind",
    "one_run",
]

LEVEL = 0.01
MIN_TRAININGS = 100
# Short of clipping and far beyond it.
KINDS = ("gradient", "huge")
# Two kinds, two thresholds each, a bound on either rate.
_BOUNDS = 8

Floats = NDArray[np.float64]


class Scores(Protocol):
    """How planted each canary looked ``(n,)``, and whether it was ``(n,)``."""

    @property
    def scores(self) -> Floats:
        """Higher where a canary looks planted."""
        ...

    @property
    def planted(self) -> NDArray[np.bool_]:
        """Whether it was."""
        ...


class Trainings(Protocol):
    """What trains with canaries; see `security.training.canaries`."""

    @property
    def side_by_side(self) -> bool:
        """Whether many trainings run at once."""
        ...

    @property
    def numbers(self) -> int:
        """Numbers of noise in one training."""
        ...

    def several(self, kind: str, trainings: int, seed: int) -> Scores:
        """Train so often, every second time with a canary."""
        ...

    def once(self, seed: int) -> Scores:
        """One training with many canaries."""
        ...


@dataclass(frozen=True, eq=False)
class AuditedMechanism:
    """What is audited, and what it claims.

    Attributes:
        trainings: of the mechanism as configured.
        epsilon, delta: claimed.
        curve: everything that the configured mechanism allows.
        steps: of one training.
        conditions: of the mechanism, for the report.
        sha256: of what is trained, and how: an interrupted scan goes on with the same.
    """

    trainings: Trainings
    epsilon: float
    delta: float
    curve: Curve = field(repr=False)
    steps: int
    conditions: Mapping[str, Any]
    sha256: str = ""


@dataclass(frozen=True)
class Verdict:
    """Of one kind of canary.

    Attributes:
        kind: of `KINDS`.
        counting, gaussian: rates at either threshold.
        epsilon_counting: lower bound for any mechanism.
        epsilon_gaussian: lower bound if the two worlds are Gaussians apart; exact for
            full batches, an approximation where batches are sampled.
        allowed: the highest true positive rate that the claimed mechanism allows at
            the Gaussian threshold's false one.
        reasons: why this contradicts the claim; none where it does not.
    """

    kind: str
    counting: Rates
    gaussian: Rates
    epsilon_counting: float
    epsilon_gaussian: float
    allowed: float
    reasons: tuple[str, ...]

    @property
    def words(self) -> str:
        """The verdict in words."""
        return "contradicts the claim" if self.reasons else "no evidence against it"

    def metrics(self) -> dict[str, Metric]:
        """Both bounds, by name."""
        return {
            f"epsilon_at_least_{self.kind}_{name}": Metric(
                value=value, n=rates.trained + rates.clean
            )
            for name, value, rates in (
                ("counting", self.epsilon_counting, self.counting),
                ("gaussian", self.epsilon_gaussian, self.gaussian),
            )
        }

    def row(self) -> list[str | float]:
        """For a table."""
        found, clean = self.gaussian, self.gaussian.clean
        return [
            self.kind,
            found.trained + clean,
            f"{found.found} of {found.trained}",
            f"{found.accused} of {clean}",
            found.low,
            self.allowed,
            self.epsilon_counting,
            self.epsilon_gaussian,
            self.words,
        ]


def judge_kind(
    audited: AuditedMechanism, kind: str, scores: Floats, planted: NDArray[np.bool_]
) -> Verdict:
    """Judge the trainings of one kind of canary, at least `MIN_TRAININGS`."""
    counting, gaussian = bounds.judge(
        scores, planted, delta=audited.delta, level=LEVEL / _BOUNDS
    )
    by_counting = bounds.epsilon_by_counting(counting, audited.delta)
    shift = bounds.mean_shift(gaussian)
    allowed = audited.curve.most(gaussian.high)
    reasons = []
    if by_counting > audited.epsilon:
        reasons.append(
            f"epsilon is at least {by_counting:.2f}, claimed are {audited.epsilon:g}"
        )
    if gaussian.low > allowed:
        reasons.append(
            f"at least {gaussian.low:.3f} of the canaries are found where at most "
            f"{gaussian.high:.3f} of the others are accused; the claimed mechanism "
            f"allows {allowed:.3f}"
        )
    return Verdict(
        kind,
        counting,
        gaussian,
        epsilon_counting=by_counting,
        epsilon_gaussian=bounds.epsilon_of_mean(shift, audited.delta),
        allowed=allowed,
        reasons=tuple(reasons),
    )


def one_run(
    audited: AuditedMechanism, scores: Floats, planted: NDArray[np.bool_]
) -> tuple[Metric, str]:
    """The bound from one training, and what it rests on. Weak: it accuses nobody."""
    bound, guesses, right = bounds.one_run_epsilon(
        scores, planted, audited.delta, level=LEVEL
    )
    words = f"{right} of {guesses} guesses right, {len(scores)} canaries"
    return Metric(value=bound, n=len(scores)), words
