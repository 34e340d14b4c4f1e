"""Robustness of a predicted number: how far it moves when the input moves a little.

Of each row the highest and the lowest answer within a radius are searched. Stated are
the largest change of the answer, the error at worst, and the share of rows whose answer
stays within a tolerance: the data configuration's, or the mean absolute error that the
model has anyway.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.report import Condition, Metric
from security.assessment.checks.evasion.cascade import white_box_of
from security.assessment.checks.evasion.plan import (
    EvasionPlan,
    bearable,
    of_norm,
    part_of,
    plan_for,
    units_of,
)
from security.assessment.checks.numbers.bounded import ChangeProofs, bounded
from security.assessment.checks.numbers.found import (
    NORM_NAMES,
    Found,
    radii_of,
    tolerance_of,
)
from security.assessment.checks.numbers.search import search
from security.assessment.plan.checks import Outcome, Unit
from security.assessment.plan.context import Context
from security.assessment.results import intervals
from security.assessment.results.result import CheckResult, ScanFinding

__all__ = ["ChangeCheck"]

Floats = NDArray[np.float64]


class ChangeCheck:
    """L-infinity and L2, white box where the graph converts."""

    name = "evasion"
    title = "change of the answer within a radius"

    def missing(self, context: Context) -> str | None:
        """Not where nothing can move."""
        numbers = context.job.clean.numbers
        known = numbers[np.isfinite(numbers)]
        if len(known) < 2 or np.ptp(known) == 0:
            return "the model gives every row one number: there is nothing to move"
        if context.job.space.held.all():
            return "no column may change within a radius"
        return None

    def units(self, context: Context) -> list[Unit]:
        """One per norm and chunk of rows."""
        return units_of(context, _attacked(context))

    def run(self, unit: Unit, context: Context) -> Outcome:
        """Search one chunk.

        Raises:
            BudgetError: queries or time ran out.
        """
        torch.set_num_threads(1)  # repeatable sums; processes share the work
        places = part_of(unit, context, _attacked(context))
        plan = _plan(context, str(unit.params["norm"]))
        found, levels, notes = search(context, places, plan, radii_of(plan), unit.key)
        names = sorted(found.tried)
        outcome = Outcome(
            {
                "names": names,
                "attacks": {
                    name: {"tried": found.tried[name], "moved": found.moved[name]}
                    for name in names
                },
                "notes": notes,
                "finite": found.finite,
                "strange": found.strange,
            },
            {"places": places, "levels": levels, "examples": found.examples},
        )
        return bounded(context, outcome, places, plan)

    def conclude(
        self, context: Context, outcomes: Mapping[str, Outcome]
    ) -> CheckResult:
        """Changes by radius, with intervals, and whether to believe them."""
        white, reason = white_box_of(context)
        results = {}
        for norm in context.job.options.effort.norms:
            own = of_norm(outcomes, norm)
            if own:
                results[norm] = Found.of(context, _plan(context, norm), own)
        proofs = ChangeProofs.of(context, results.get("linf"), outcomes)
        checks = [check for item in results.values() for check in item.checks()]
        checks += proofs.checks
        findings = [*_notes(context, reason), *proofs.findings]
        for item in results.values():
            findings += item.findings()
        return CheckResult(
            self.name,
            reliable=all(check.passed for check in checks),
            kind="robustness",
            conditions={**_conditions(context, results), **proofs.conditions},
            metrics={**_metrics(white, results), **proofs.metrics},
            checks=tuple(checks),
            findings=tuple(findings),
            details={
                "access": "white box" if white is not None else "black box",
                "why_no_gradient": reason,
                "norms": {norm: item.details() for norm, item in results.items()},
                "certificate": proofs.details,
                "charts": [item.chart() for item in results.values()],
                "tables": [_by_radius(results), _by_attack(results)],
                "examples_title": "The largest changes",
                "examples": [e for item in results.values() for e in item.examples()],
            },
            public={"curve": _curve(results), "certificate": proofs.details},
            files={f"adversarial-{n}.npy": item.npy() for n, item in results.items()},
        )


def _attacked(context: Context) -> NDArray[np.int64]:
    """Rows that have an answer, or as many as take a bearable time."""
    return bearable(context, np.flatnonzero(np.isfinite(context.job.clean.numbers)))


def _plan(context: Context, norm: str) -> EvasionPlan:
    """As of evasion; the whole range says nothing of a number."""
    plan = plan_for(context.job, norm)
    return replace(plan, curve=tuple(item for item in plan.curve if np.isfinite(item)))


def _metrics(white: Any, results: Mapping[str, Found]) -> dict[str, Metric]:
    metrics: dict[str, Metric] = {}
    for norm, found in results.items():
        radius = found.plan.radius
        own = _of_radius(found, radius)
        metrics |= {f"{name}_{norm}": item for name, item in own.items()}
        metrics[f"radius_{norm}"] = Metric(radius)
        if norm == "linf":  # what a policy reads
            metrics |= own
            metrics["radius"] = Metric(radius)
            metrics["tolerance"] = Metric(tolerance_of(found.context))
            metrics["clean_mae"] = intervals.positive_mean(
                np.abs(found.clean - found.truth)
            )
    if white is not None:
        metrics["parity_difference"] = Metric(white.difference, n=white.compared)
    return metrics


def _of_radius(found: Found, radius: float) -> dict[str, Metric]:
    changes = found.changes(radius)
    mean = intervals.positive_mean(changes)
    spread = float(np.std(found.context.job.labels))
    ends = (mean.value, mean.low, mean.high)
    value, low, high = (None if e is None else e / spread for e in ends)
    return {
        "stable_share": found.stable(radius),
        "mean_largest_change": mean,
        "relative_change": Metric(value or 0.0, mean.n, low, high, mean.confidence),
        "largest_change": Metric(float(changes.max()), n=len(changes)),
        "attacked_mae": intervals.positive_mean(found.errors(radius)),
    }


def _conditions(context: Context, results: Mapping[str, Found]) -> dict[str, Condition]:
    job, effort = context.job, context.job.options.effort
    white, _ = white_box_of(context)
    ranged = job.space.units == "range"
    stated = job.config.tolerance is not None
    names = sorted({name for item in results.values() for name in item.attacks})
    held = [rule.name for rule, fixed in zip(job.space.rules, job.space.held) if fixed]
    return {
        "predicts": "number",
        "norm": "Linf",
        "radius": plan_for(job, "linf").radius,
        **({"radius_l2": results["l2"].plan.radius} if "l2" in results else {}),
        "units": "scaled_features" if ranged else "raw_features",
        "attack": "largest_change",
        "attacks": ",".join(names),
        "attack_library": "sealgate",
        "access": "black_box" if white is None else "white_box",
        "iterations": effort.iterations,
        "counted": "rechecked_on_endpoint"
        if job.remote
        else "rechecked_on_onnxruntime",
        "tolerance_from": "data_configuration" if stated else "clean_mae",
        "relative_to": "standard deviation of the truth",
        "interval": "wilson; of changes student of the logarithm",
        "immutable_columns": ",".join(held)[:1000] or "none",
        "ranges": job.space.ranges_from.replace(" ", "_"),
        "profile": job.options.profile,
        "seed": job.options.seed,
        "covered_by_dp": False,
    }


def _notes(context: Context, reason: str) -> list[ScanFinding]:
    found = []
    if reason and not context.job.remote:
        found.append(ScanFinding("no-gradient", f"black-box attacks only: {reason}"))
    if context.job.space.ranges_from == "data":
        found.append(ScanFinding("ranges-from-data", "ranges are those of these rows"))
    return found


def _curve(results: Mapping[str, Found]) -> list[dict[str, Any]]:
    """The L-infinity curve, as a model card shows it."""
    found = results.get("linf")
    if found is None:
        return []
    return [
        {
            "radius": radius,
            "stable_share": found.stable(radius).value,
            "mean_largest_change": float(found.changes(radius).mean()),
            "n": len(found.places),
        }
        for radius in found.radii
    ]


def _by_radius(results: Mapping[str, Found]) -> dict[str, Any]:
    rows = [
        [
            NORM_NAMES[norm],
            f"{radius:g}",
            float(found.changes(radius).mean()),
            float(found.changes(radius).max()),
            float(found.errors(radius).mean()),
            found.stable(radius).value,
        ]
        for norm, found in results.items()
        for radius in found.radii
    ]
    return {
        "title": "Largest changes of the answer by radius",
        "columns": [
            *("norm", "radius", "mean", "largest", "error at worst, mean"),
            "share within the tolerance",
        ],
        "rows": rows,
    }


def _by_attack(results: Mapping[str, Found]) -> dict[str, Any]:
    return {
        "title": "Attacks: rows asked, at all radii, and answers moved further",
        "columns": ["norm", "attack", "asked", "moved"],
        "rows": [
            [NORM_NAMES[norm], name, counts["tried"], counts["moved"]]
            for norm, found in results.items()
            for name, counts in found.attacks.items()
        ],
    }
