"""What is proved beside what was attacked: figures, and whether the two agree.

A certificate that an attack refutes is worth less than none: then the result is a check
that failed, an error, and no figure. So is one whose bounds read the graph otherwise
than onnxruntime runs it, or that a linear model's own worst corner does not reach.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.report import Check, Condition, Metric
from security.assessment.checks.evasion.certified import (
    Prover,
    categories_of,
    prover_of,
    space_digest,
)
from security.assessment.checks.evasion.plan import EvasionPlan
from security.assessment.checks.evasion.results import NormResult
from security.assessment.plan.checks import Outcome
from security.assessment.plan.context import Context
from security.assessment.results import intervals
from security.assessment.results.result import ScanFinding
from security.errors import UnboundedModel

__all__ = ["METHOD", "Proofs", "attempt", "certify", "proof_conditions", "prover_in"]

METHOD = "crown"
_MAX_REASON = 200


def prover_in(context: Context) -> tuple[Prover | None, str]:
    """What can be proved of a scan's rows, once per process; or why nothing can."""
    if "prover" not in context.cache:
        try:
            context.cache["prover"] = (prover_of(context.job), "")
        except UnboundedModel as error:
            context.cache["prover"] = (None, str(error)[:_MAX_REASON])
    found: tuple[Prover | None, str] = context.cache["prover"]
    return found


def certify(
    context: Context, outcome: Outcome, places: NDArray[np.int64], plan: EvasionPlan
) -> Outcome:
    """A chunk's outcome, with what is proved of its rows in L-infinity."""
    if plan.norm != "linf":
        return outcome
    nothing = np.zeros((len(places), 0), dtype=bool)
    values, proved = attempt(
        context,
        (plan.stated, plan.curve),
        lambda prover, radii: prover.proved(places, radii),
    )
    return replace(
        outcome,
        values={**outcome.values, **values},
        arrays={**outcome.arrays, "proved": nothing if proved is None else proved},
    )


def attempt(
    context: Context,
    wanted: tuple[Sequence[float], Sequence[float]],
    prove: Callable[[Prover, tuple[float, ...]], NDArray[Any]],
) -> tuple[dict[str, Any], NDArray[Any] | None]:
    """What can be proved of some rows, and what an outcome says of it.

    Args:
        context: of the scan.
        wanted: radii that are stated, and those of a curve, as of `Prover.radii`.
        prove: asks for rows at radii.

    Returns:
        The outcome's values: the radii, or why there are none; and what was proved.
    """
    prover, reason = prover_in(context)
    if prover is not None:
        every = np.arange(len(context.job.rows))
        try:
            radii = prover.radii(every, *wanted)
            return {"certified": list(radii), "no_proof": reason}, prove(prover, radii)
        except UnboundedModel as error:
            reason = str(error)[:_MAX_REASON]
    return {"certified": [], "no_proof": reason}, None


@dataclass(frozen=True)
class Proofs:
    """What a result says of proofs.

    Attributes:
        metrics, conditions, checks, findings: as of a result.
        details: by radius ``[certified, attacked]``; JSON, of no single row.
    """

    metrics: Mapping[str, Metric] = field(default_factory=dict)
    conditions: Mapping[str, Condition] = field(default_factory=dict)
    checks: tuple[Check, ...] = ()
    findings: tuple[ScanFinding, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, context: Context, result: NormResult | None) -> Proofs:
        """Of the L-infinity attacks on a classifier."""
        if result is None or context.job.remote:
            return cls()
        prover, _ = prover_in(context)
        if prover is None or result.no_proof or not result.certified:
            return _none(result.no_proof or "no rows were attacked")
        checks = _checks(context, prover, result)
        wrong = [check for check in checks if not check.passed]
        if wrong:
            found = [
                ScanFinding("certificate-contradicted", f"{c.id}: {c.message}", "linf")
                for c in wrong
            ]
            return replace(
                _none("a check of the bounds failed"), checks=checks, findings=(*found,)
            )
        return cls(
            metrics=_metrics(result),
            conditions=proof_conditions(context),
            checks=checks,
            details={"by_radius": [_pair(result, radius) for radius in _plain(result)]},
        )

    def beside(self, curve: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """A curve of attacks, with the certified share where there is one."""
        known = {
            item["radius"]: item["interval"][0]
            for item in self.details.get("by_radius", ())
        }
        return [
            {**point, "verified_accuracy": known[point["radius"]]}
            if point["radius"] in known
            else {**point}
            for point in curve
        ]


def proof_conditions(context: Context) -> dict[str, Condition]:
    """How was it proved, of which ball."""
    return {
        "certificate": METHOD,
        "certificate_rounding": "single_precision_at_worst",
        "certificate_categories": categories_of(context.job),
        "space_sha256": space_digest(context.job),
    }


def _none(reason: str) -> Proofs:
    return Proofs(
        conditions={"certificate": "none"},
        findings=(ScanFinding("no-certificate", f"nothing is proved: {reason}"),),
        details={"why_none": reason},
    )


def _metrics(result: NormResult) -> dict[str, Metric]:
    found: dict[str, Metric] = {}
    for radius in result.plan.stated:
        metric = intervals.proportion(result.verified(radius), result.rows)
        if radius == result.plan.radius:
            found |= {"verified_accuracy": metric, "verified_accuracy_linf": metric}
        else:
            found[f"verified_accuracy_linf/{radius:g}"] = metric
    return found


def _plain(result: NormResult) -> Sequence[float]:
    """The certified radii that people are told: shares of rows' own ones are not."""
    return result.certified if result.plan.own is None else ()


def _pair(result: NormResult, radius: float) -> dict[str, Any]:
    ends = (result.verified(radius), result.robust(radius))
    return {
        "radius": radius,
        "interval": [end / result.rows for end in ends],
        "n": result.rows,
    }


def _checks(context: Context, prover: Prover, result: NormResult) -> tuple[Check, ...]:
    broken = result.contradicted()
    compared, unlike = prover.differs(result.places)
    made = [
        Check(
            "linf-certified-unbroken",
            not broken,
            f"attacks broke {broken} of {result.rows} rows that were proved to stand",
        ),
        Check(
            "linf-bounds-read-alike",
            not unlike,
            f"bounds read {unlike} of {compared} rows otherwise than they are answered",
        ),
    ]
    reached = prover.reached(result.places, result.plan.radius, context.target)
    if reached is not None:
        made.append(
            Check(
                "linf-bounds-meet",
                reached.holds,
                f"a linear model's bound and worst corner meet within "
                f"{reached.gap:.0e} on {reached.rows} rows; "
                f"{reached.unlike} corners are answered otherwise than it says",
            )
        )
    return tuple(made)
