"""How far a predicted number can move at most, beside how far attacks moved it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.report import Check, Condition, Metric
from security.assessment.checks.evasion.certified import Prover
from security.assessment.checks.evasion.plan import EvasionPlan, of_norm
from security.assessment.checks.evasion.proofs import (
    attempt,
    proof_conditions,
    prover_in,
)
from security.assessment.checks.numbers.found import Found, radii_of
from security.assessment.plan.checks import Outcome
from security.assessment.plan.context import Context
from security.assessment.results.result import ScanFinding

__all__ = ["ChangeProofs", "bounded"]

Floats = NDArray[np.float64]


def bounded(
    context: Context, outcome: Outcome, places: NDArray[np.int64], plan: EvasionPlan
) -> Outcome:
    """A chunk's outcome, with the most that its answers can move in L-infinity."""
    if plan.norm != "linf":
        return outcome
    nothing = np.zeros((0, len(places)))
    values, most = attempt(
        context,
        (plan.stated, radii_of(plan)),
        lambda prover, radii: prover.changes(places, radii),
    )
    return replace(
        outcome,
        values={**outcome.values, **values},
        arrays={**outcome.arrays, "most": nothing if most is None else most},
    )


@dataclass(frozen=True)
class ChangeProofs:
    """What a result says of the most that answers can move.

    Attributes:
        metrics, conditions, checks, findings: as of a result.
        details: by radius ``[attacked, most]`` of the largest change; JSON.
    """

    metrics: Mapping[str, Metric] = field(default_factory=dict)
    conditions: Mapping[str, Condition] = field(default_factory=dict)
    checks: tuple[Check, ...] = ()
    findings: tuple[ScanFinding, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls, context: Context, found: Found | None, outcomes: Mapping[str, Outcome]
    ) -> ChangeProofs:
        """Of the L-infinity search."""
        if found is None or context.job.remote:
            return cls()
        own = of_norm(outcomes, "linf")
        radii = {tuple(item.values["certified"]) for item in own}
        reasons = [item.values["no_proof"] for item in own if item.values["no_proof"]]
        prover, _ = prover_in(context)
        if prover is None or reasons or len(radii) != 1 or radii == {()}:
            return _none((reasons or ["no rows were attacked"])[0])
        stated = radii.pop()
        most = np.concatenate([item.arrays["most"] for item in own], axis=1)
        if not np.isfinite(most).all():
            return _none("the answers have no bound for some rows")
        return _of_bounds(context, prover, found, dict(zip(stated, most, strict=True)))


def _none(reason: str) -> ChangeProofs:
    return ChangeProofs(
        conditions={"certificate": "none"},
        findings=(ScanFinding("no-certificate", f"nothing is proved: {reason}"),),
        details={"why_none": reason},
    )


def _of_bounds(
    context: Context, prover: Prover, found: Found, most: Mapping[float, Floats]
) -> ChangeProofs:
    beyond = {
        radius: int((found.changes(radius) > bound).sum())
        for radius, bound in most.items()
    }
    compared, unlike = prover.differs(found.places)
    checks = (
        Check(
            "linf-change-within-bounds",
            not sum(beyond.values()),
            f"attacks moved {sum(beyond.values())} answers further than was proved "
            f"possible, of {len(found.places)} at {len(most)} radii",
        ),
        Check(
            "linf-bounds-read-alike",
            not unlike,
            f"bounds read {unlike} of {compared} rows otherwise than they are answered",
        ),
    )
    wrong = [check for check in checks if not check.passed]
    if wrong:
        made = [
            ScanFinding("certificate-contradicted", f"{c.id}: {c.message}", "linf")
            for c in wrong
        ]
        none = _none("a check of the bounds failed")
        return replace(none, checks=checks, findings=tuple(made))
    stated = Metric(float(most[found.plan.radius].max()), n=len(found.places))
    return ChangeProofs(
        metrics={"largest_change_bound": stated, "largest_change_bound_linf": stated},
        conditions=proof_conditions(context),
        checks=checks,
        details={
            "by_radius": [
                {
                    "radius": radius,
                    "interval": [
                        float(found.changes(radius).max()),
                        float(most_.max()),
                    ],
                    "n": len(most_),
                }
                for radius, most_ in most.items()
            ]
        },
    )
