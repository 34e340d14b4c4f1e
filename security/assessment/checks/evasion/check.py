"""Evasion as a check of a scan: curves, intervals, and whether to believe them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.report import Check, Condition, Metric
from security.assessment.checks.evasion.cascade import (
    LIBRARY_ATTACKS,
    Cascade,
    white_box_of,
)
from security.assessment.checks.evasion.plan import (
    EvasionPlan,
    bearable,
    of_norm,
    part_of,
    plan_for,
    units_of,
)
from security.assessment.checks.evasion.proofs import Proofs, certify
from security.assessment.checks.evasion.reliability import attack_checks
from security.assessment.checks.evasion.results import NormResult, merge
from security.assessment.checks.evasion.views import evasion_views
from security.assessment.checks.evasion.whitebox import is_quantised
from security.assessment.plan.checks import Outcome, Unit
from security.assessment.plan.context import Context, Job
from security.assessment.results import intervals
from security.assessment.results.result import CheckResult, ScanFinding

__all__ = ["EvasionCheck"]

_RANDOM_ROWS = 32
# Below these shares of the rows that are right to begin with, a finding is made.
_BROKEN_BELOW, _WEAK_BELOW = 0.5, 0.9
_EXAMPLES = 8


class EvasionCheck:
    """L-infinity and L2 attacks, white box where the graph converts."""

    name = "evasion"
    title = "evasion"

    def missing(self, context: Context) -> str | None:
        """Not where nothing can be broken."""
        right = context.job.clean.labels == context.job.labels
        if not right.any():
            return "the model has no row right: there is nothing to break"
        several = len(np.unique(context.job.labels)) > 1
        if several and len(np.unique(context.job.clean.labels)) < 2:
            return "the model gives every row one class: there is nothing to break"
        if context.job.space.held.all():
            return "no column may change within a radius"
        return None

    def units(self, context: Context) -> list[Unit]:
        """One per norm and chunk of rows."""
        return units_of(context, _attacked(context))

    def run(self, unit: Unit, context: Context) -> Outcome:
        """Attack one chunk.

        Raises:
            BudgetError: queries or time ran out.
        """
        torch.set_num_threads(1)  # repeatable sums; processes share the work
        places = part_of(unit, context, _attacked(context))
        plan = plan_for(context.job, str(unit.params["norm"]))
        cascade = Cascade(context, places, plan, unit.key)
        if _is_random(context):
            cascade.ledger.confirm_often()
        cascade.run()
        outcome = _outcome(cascade, places, plan)
        return certify(context, outcome, places, plan)

    def conclude(
        self, context: Context, outcomes: Mapping[str, Outcome]
    ) -> CheckResult:
        """Curves, intervals, and whether the attacks can be believed."""
        white, reason = white_box_of(context)
        results = {}
        for norm in context.job.options.effort.norms:
            own = of_norm(outcomes, norm)
            if own:
                plan = plan_for(context.job, norm)
                results[norm] = merge(plan, own)
        checks = [
            check
            for result in results.values()
            for check in attack_checks(
                result,
                white=white is not None,
                quantised=is_quantised(context.job.source.model),
            )
        ]
        proofs = Proofs.of(context, results.get("linf"))
        checks += proofs.checks
        reliable = all(check.passed for check in checks)
        findings = [*_notes(context, white is None, reason), *proofs.findings]
        for result in results.values():
            findings += _unreliable(result, checks)
            for radius in result.plan.stated:
                findings += _findings(context, result, radius)
        return CheckResult(
            self.name,
            reliable=reliable,
            kind="robustness",
            conditions={**_conditions(context, results), **proofs.conditions},
            metrics={**_metrics(white, results), **proofs.metrics},
            checks=tuple(checks),
            findings=tuple(findings),
            details={
                "access": "white box" if white is not None else "black box",
                "why_no_gradient": reason,
                "norms": {n: _norm_details(context, r) for n, r in results.items()},
                "certificate": proofs.details,
                **evasion_views(context, results),
            },
            public={
                "curve": proofs.beside(_curve(context, results)),
                "certificate": proofs.details,
            },
            files={f"adversarial-{n}.npy": r.npy() for n, r in results.items()},
        )


def _attacked(context: Context) -> NDArray[np.int64]:
    """The rows to turn: all that are used, or as many as take a bearable time."""
    return bearable(context, np.arange(len(context.job.rows)))


def _is_random(context: Context) -> bool:
    """Whether the model answers the same rows differently, or alone; asked once."""
    if "random" not in context.cache:
        rows = context.job.rows[:_RANDOM_ROWS]
        with context.aside("evasion/random"):
            parts = [rows] if context.job.remote else rows[:, None]
            again = np.concatenate([context.target.ask(part).scores for part in parts])
        first = context.job.clean.scores[: len(rows)]
        close = np.isclose(again, first, rtol=1e-5, atol=1e-6, equal_nan=True)
        context.cache["random"] = not close.all()
    return bool(context.cache["random"])


def _outcome(cascade: Cascade, places: NDArray[np.int64], plan: EvasionPlan) -> Outcome:
    ledger = cascade.ledger
    right = np.flatnonzero(ledger.correct)
    broken = len(ledger.within(right, plan.radius))
    return Outcome(
        {
            "found": f"{broken} of {len(ledger)} broken",
            "names": list(ledger.names),
            "attacks": dict(ledger.counts()),
            "notes": dict(cascade.notes),
            "finite": ledger.finite,
            "strange": ledger.strange,
        },
        {
            "places": places,
            "own": ledger.own,
            "correct": ledger.correct,
            "distance": ledger.distance,
            "attack": ledger.attack,
            "examples": ledger.examples,
        },
    )


def _metrics(white: Any, results: Mapping[str, NormResult]) -> dict[str, Metric]:
    metrics: dict[str, Metric] = {}
    for norm, result in results.items():
        robust = intervals.proportion(result.robust(result.plan.radius), result.rows)
        metrics[f"robust_accuracy_{norm}"] = robust
        metrics[f"radius_{norm}"] = Metric(result.plan.smallest)
        for radius in {*result.plan.stated} - {result.plan.radius}:
            further = intervals.proportion(result.robust(radius), result.rows)
            metrics[f"robust_accuracy_{norm}/{radius:g}"] = further
        if norm == "linf":  # what a policy reads
            metrics["robust_accuracy"] = robust
            metrics["radius"] = Metric(result.plan.smallest)
            metrics["clean_accuracy"] = intervals.proportion(
                int(result.correct.sum()), result.rows
            )
    if white is not None:
        metrics["parity_difference"] = Metric(white.difference, n=white.compared)
    return metrics


def _conditions(
    context: Context, results: Mapping[str, NormResult]
) -> dict[str, Condition]:
    job, effort = context.job, context.job.options.effort
    white, _ = white_box_of(context)
    names = sorted({name for result in results.values() for name in result.attacks})
    units = "scaled_features" if job.space.units == "range" else "raw_features"
    held = [rule.name for rule, held in zip(job.space.rules, job.space.held) if held]
    return {
        "norm": "Linf",
        "radius": _stated(job, "linf"),
        **({"radius_l2": _stated(job, "l2")} if "l2" in results else {}),
        "units": units,
        "attack": "ensemble",
        "attacks": ",".join(names),
        "attack_library": ",".join(
            ("sealgate", "adversarial-robustness-toolbox")
            if {*names} & LIBRARY_ATTACKS
            else ("sealgate",)
        ),
        "access": "white_box" if white is not None else "black_box",
        "gradient": "none"
        if white is None
        else f"{'twin' if white.twin else 'onnx_graph'}_in_{white.dtype}".replace(
            ".", "_"
        ),
        "iterations": effort.iterations,
        "restarts": effort.climbs,
        "counted": "rechecked_on_endpoint"
        if job.remote
        else "rechecked_on_onnxruntime",
        **({"abstentions": "not_turned"} if context.abstains else {}),
        "worst_case": "per_row_over_attacks",
        "interval": "wilson",
        "targeted": False,
        "immutable_columns": ",".join(held)[:1000] or "none",
        "ranges": job.space.ranges_from.replace(" ", "_"),
        "profile": job.options.profile,
        "seed": job.options.seed,
        "covered_by_dp": False,
    }


def _stated(job: Job, norm: str) -> Condition:
    """The radius that the figure is of, or the column that has each row's."""
    column = job.options.radius_column(norm)
    return plan_for(job, norm).radius if column is None else f"column {column}"


def _notes(context: Context, black: bool, reason: str) -> list[ScanFinding]:
    found = []
    if black and not context.job.remote:
        found.append(ScanFinding("no-gradient", f"black-box attacks only: {reason}"))
    if context.job.space.ranges_from == "data":
        found.append(ScanFinding("ranges-from-data", "ranges are those of these rows"))
    return found


def _unreliable(result: NormResult, checks: Sequence[Check]) -> list[ScanFinding]:
    norm, radius = result.plan.norm, result.plan.radius
    failed = [c for c in checks if not c.passed and c.id.startswith(norm)]
    where = f"{norm} {result.plan.say(radius)}"
    found = [
        ScanFinding("evasion-unreliable", f"{check.id}: {check.message}", where)
        for check in failed
    ]
    if result.strange:
        message = f"{result.strange} rows made by attacks get no usable answer"
        found.append(ScanFinding("answer-not-finite", message, where))
    return found


def _findings(context: Context, result: NormResult, radius: float) -> list[ScanFinding]:
    """What one stated radius shows."""
    right, robust = int(result.correct.sum()), result.robust(radius)
    where = f"{result.plan.norm} {result.plan.say(radius)}"
    found = []
    share = robust / right
    rule = "evasion-broken" if share < _BROKEN_BELOW else "evasion-weak"
    if share < _WEAK_BELOW:
        message = (
            f"{right - robust} of {right} rows that are right are turned within "
            f"{where}; robust accuracy {robust / result.rows:.3f}"
        )
        metric = intervals.proportion(robust, result.rows)
        evidence = {"worst": result.closest(_EXAMPLES, context.job.places)}
        found.append(ScanFinding(rule, message, where, metric, evidence=evidence))
    return found


def _curve(context: Context, results: Mapping[str, NormResult]) -> list[dict[str, Any]]:
    """The L-infinity curve, as a model card shows it."""
    result = results.get("linf")
    if result is None or result.plan.own is not None:
        return []
    whole = 1.0 if context.job.space.units == "range" else np.inf
    points = ((min(radius, whole), radius) for radius in result.plan.curve)
    return [
        {
            "radius": stated,
            "robust_accuracy": result.robust(radius) / result.rows,
            "n": result.rows,
        }
        for stated, radius in points
        if np.isfinite(stated)
    ]


def _norm_details(context: Context, result: NormResult) -> dict[str, Any]:
    job = context.job
    curve = [
        {
            "radius": radius if np.isfinite(radius) else "whole range",
            **vars(intervals.proportion(result.robust(radius), result.rows)),
        }
        for radius in (0.0, *result.plan.curve)
    ]
    return {
        "radius": result.plan.radius,
        "radii": list(result.plan.stated),
        "curve": curve,
        "attacks": result.attacks,
        "notes": result.notes,
        "rows": result.per_row(job.places, job.labels),
    }
