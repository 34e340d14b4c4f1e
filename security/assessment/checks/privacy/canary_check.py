"""Canaries as a check of a scan: thousands of trainings against the claimed epsilon."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.report import Metric
from security.assessment.checks.privacy import curves
from security.assessment.checks.privacy.canaries import (
    KINDS,
    LEVEL,
    MIN_TRAININGS,
    AuditedMechanism,
    Verdict,
    judge_kind,
    one_run,
)
from security.assessment.plan.checks import Outcome, Unit
from security.assessment.plan.context import Context
from security.assessment.results import intervals
from security.assessment.results.result import CheckResult, ScanFinding

__all__ = ["COLUMNS", "CanaryCheck", "planned"]

COLUMNS = (
    "canary",
    "trainings judged",
    "found",
    "accused",
    "true rate at least",
    "allowed by the claim",
    "epsilon at least, by counting",
    "epsilon at least, Gaussian",
    "verdict",
)
_TRAININGS = {"quick": 400, "standard": 1000, "thorough": 2000}
_LONG_SHARE = 5  # of the huge canaries one in so many is enough
_PER_UNIT = 250
# Numbers of noise, and steps one after another: some minutes of one core.
_MAX_NUMBERS = 2_000_000_000
_MAX_STEPS = 200_000


class CanaryCheck:
    """Plants canaries in trainings of the configured mechanism."""

    name = "canaries"
    title = "whether the training keeps its epsilon"

    def missing(self, context: Context) -> str | None:
        """A private training's configuration, and the time for it."""
        audited = _audited(context)
        if "training" not in context.job.extras:
            return "the training's configuration is not given (--training CONFIG.toml)"
        if audited is None:
            return "the training claims no epsilon, or has no gradients to plant one in"
        options = context.job.options
        if options.profile != "thorough" and self.name not in options.checks:
            return "thousands of trainings: --profile thorough, or --check canaries"
        if planned(audited, options.profile)["gradient"] < MIN_TRAININGS:
            return f"{MIN_TRAININGS} trainings of this size would take too long"
        return None

    def units(self, context: Context) -> list[Unit]:
        """Some trainings each; then the one with many canaries."""
        audited = _known(context)
        units = []
        for kind, total in planned(audited, context.job.options.profile).items():
            for first in range(0, total, _PER_UNIT):
                count = min(_PER_UNIT, total - first)
                units.append(
                    Unit(
                        self.name,
                        f"canaries/{kind}-{first:05}",
                        {"kind": kind, "count": count},
                        weight=2.0,
                    )
                )
        return [*units, Unit(self.name, "canaries/one-run", {"kind": "one-run"})]

    def run(self, unit: Unit, context: Context) -> Outcome:
        """Train."""
        trainings, kind = _known(context).trainings, unit.params["kind"]
        seed = context.seed(unit.key)
        if kind == "one-run":
            watched = trainings.once(seed)
        else:
            watched = trainings.several(kind, unit.params["count"], seed)
        arrays = {"scores": watched.scores, "planted": watched.planted}
        return Outcome({"kind": kind}, arrays)

    def conclude(
        self, context: Context, outcomes: Mapping[str, Outcome]
    ) -> CheckResult:
        """A verdict per kind of canary."""
        audited = _known(context)
        verdicts, charts = [], []
        metrics: dict[str, Metric] = {}
        for kind in KINDS:
            scores, planted = _joined(outcomes, kind)
            if len(scores) >= MIN_TRAININGS:
                verdict = judge_kind(audited, kind, scores, planted)
                verdicts.append(verdict)
                metrics |= verdict.metrics()
                charts.append(_chart(audited, kind, scores, planted))
        rows = [verdict.row() for verdict in verdicts]
        if "canaries/one-run" in outcomes:
            scores, planted = _joined(outcomes, "one-run")
            metric, words = one_run(audited, scores, planted)
            metrics["epsilon_at_least_one_run"] = metric
            rows.append(["one run", 1, words, "", "", "", metric.value, "", "weak"])
        return CheckResult(
            self.name,
            status="done" if verdicts else "skipped",
            reason="" if verdicts else "no budget was left",
            conditions=_conditions(audited, verdicts),
            metrics=metrics,
            findings=tuple(_findings(verdicts)),
            details={
                "charts": charts,
                "tables": [
                    {
                        "title": f"Epsilon {audited.epsilon:g} at delta "
                        f"{audited.delta:g} is claimed",
                        "columns": list(COLUMNS),
                        "rows": rows,
                    }
                ],
                "untested": _untested(audited),
            },
        )


def planned(audited: AuditedMechanism, profile: str) -> dict[str, int]:
    """How many trainings of each kind of canary a profile affords; even numbers."""
    trainings, most = audited.trainings, _TRAININGS[profile]
    if trainings.side_by_side:
        most = min(most, _MAX_NUMBERS // trainings.numbers)
    else:
        most = min(most, _MAX_STEPS // audited.steps)
    few = min(most, max(most // _LONG_SHARE, 2 * MIN_TRAININGS))
    return {"gradient": most - most % 2, "huge": few - few % 2}


def _audited(context: Context) -> AuditedMechanism | None:
    known = context.job.extras.get("mechanism")
    return known if isinstance(known, AuditedMechanism) else None


def _known(context: Context) -> AuditedMechanism:
    audited = _audited(context)
    if audited is None:
        raise TypeError("not planned without a mechanism")
    return audited


def _joined(
    outcomes: Mapping[str, Outcome], kind: str
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    own = [item.arrays for item in outcomes.values() if item.values["kind"] == kind]
    if not own:
        return np.zeros(0), np.zeros(0, bool)
    return (
        np.concatenate([item["scores"] for item in own]),
        np.concatenate([item["planted"] for item in own]),
    )


def _conditions(audited: AuditedMechanism, verdicts: list[Verdict]) -> dict[str, Any]:
    against = any(verdict.reasons for verdict in verdicts)
    return {
        **audited.conditions,
        "claimed_epsilon": audited.epsilon,
        "claimed_delta": audited.delta,
        "verdict": "contradicts the claim" if against else "no evidence against it",
        "confidence": 1 - LEVEL,
        "confidence_is": "of all bounds together",
        "attacker": "sees every noisy gradient, knows all other rows, plants a unit of "
        "any gradient",
        "gaussian_bound": "exact for full batches; for sampled ones an approximation, "
        "and the verdict compares with the mechanism's whole curve",
        "threshold": "chosen on a quarter of the trainings, judged on the others",
        "randomness": "seeded; the operating system's generator is not audited",
        "one_run": "weak evidence at this scale; no verdict rests on it",
    }


def _chart(
    audited: AuditedMechanism,
    kind: str,
    scores: NDArray[np.float64],
    planted: NDArray[np.bool_],
) -> dict[str, Any]:
    trained = int(planted.sum())
    found = []
    for rate, share in curves.roc(scores[planted], scores[~planted]):
        around = intervals.proportion(round(share * trained), trained)
        found.append([rate, share, around.low or 0.0, around.high or 1.0])
    limit = [[point[0], audited.curve.most(point[0])] for point in found]
    return {
        "title": f"{kind} canary, shares found with 95% intervals; both axes "
        "logarithmic; dashed: guessing",
        "x": "trainings without that are accused",
        "y": "canaries found",
        "log_x": True,
        "log_y": True,
        "diagonal": True,
        "series": [
            {"name": "found", "points": found},
            {"name": "allowed by the claim", "points": limit},
        ],
    }


def _findings(verdicts: list[Verdict]) -> list[ScanFinding]:
    return [
        ScanFinding(
            "canary-beyond-claim",
            f"canaries contradict the claimed epsilon: {reason}",
            verdict.kind,
            verdict.metrics()[f"epsilon_at_least_{verdict.kind}_gaussian"],
        )
        for verdict in verdicts
        for reason in verdict.reasons[:1]
    ]


def _untested(audited: AuditedMechanism) -> list[str]:
    lines = [
        "Canaries audit the mechanism of this installation under the given "
        "configuration; not the run that made the model.",
        "The noisy loss and adversarial steps, where a training has them, are not "
        "looked at by canaries.",
    ]
    if not audited.trainings.side_by_side:
        lines.append(
            "This network's trainings run one after another: there are fewer of them."
        )
    return lines
