"""Membership by residuals: who was trained on is predicted closer to the truth.

The loss attack of Yeom et al. (2018) for a regression: a row whose absolute residual is
small is called a member. Where shadows can be made (`shadows`), the likelihood ratio
of LiRA (Carlini et al. 2022) beside it, of the residual with its sign: it knows how a
model errs about a row that it never saw, and about one that it did.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.output_policy import OutputPolicy, scores_left
from models.report import Check, Metric
from security.assessment.checks.numbers.measures import CONDITIONS
from security.assessment.checks.numbers.shadows import (
    ShadowNumbers,
    how_many,
    kind_of,
    shadow_numbers,
)
from security.assessment.checks.privacy import curves, signals
from security.assessment.checks.privacy.membership import (
    MembershipCheck,
    exposure_findings,
    known_of,
    policy_finding,
    roc_chart,
)
from security.assessment.checks.privacy.trained import KnownRows
from security.assessment.plan.checks import Outcome, Unit
from security.assessment.plan.context import Context
from security.assessment.results.result import CheckResult, ScanFinding

__all__ = ["ResidualCheck"]

Floats = NDArray[np.float64]

_TARGET = "membership/target"
_PER_UNIT = 4
_RATES = ("auc", "tpr_at_fpr_1pct")


class ResidualCheck(MembershipCheck):
    """Residuals of the rows that were trained on, and of others."""

    def units(self, context: Context) -> list[Unit]:
        """The answers about all of them, then shadows, some at a time."""
        units = [Unit(self.name, _TARGET, weight=0.3)]
        if kind_of(context, known_of(context)):
            units += [
                Unit(self.name, f"membership/shadows-{first}", {"first": first})
                for first in range(0, how_many(context), _PER_UNIT)
            ]
        return units

    def run(self, unit: Unit, context: Context) -> Outcome:
        """Ask about them, or train some shadows.

        Raises:
            BudgetError: an endpoint's queries are spent.
        """
        known = known_of(context)
        if "first" in unit.params:
            first, seed = unit.params["first"], context.seed(unit.key)
            made = shadow_numbers(context, known, first, _PER_UNIT, seed=seed)
            return Outcome({}, {"included": made.included, "shadows": made.numbers})
        numbers = context.target.ask(known.rows).numbers
        if context.leaving.decimals is None:
            return Outcome({}, {"numbers": numbers})
        return Outcome(
            {}, {"numbers": _left(context, numbers), "whole_numbers": numbers}
        )

    def conclude(
        self, context: Context, outcomes: Mapping[str, Outcome]
    ) -> CheckResult:
        """How well members are told from others; the worst attack is the stated one."""
        if _TARGET not in outcomes:
            return CheckResult(
                self.name, status="skipped", reason="no budget was left for the target"
            )
        known, shadows = known_of(context), _shadows(outcomes)
        given = outcomes[_TARGET].arrays
        left = ShadowNumbers(shadows.included, _left(context, shadows.numbers))
        scores, finite = _scores(given["numbers"], known, left)
        metrics, series = _measured(scores, known)
        findings = exposure_findings(metrics, known)
        if "whole_numbers" in given and not context.job.remote:
            every, _ = _scores(given["whole_numbers"], known, shadows)
            found, _ = _measured(every, known)
            metrics |= {f"all_scores_{name}": found[name] for name in _RATES}
            findings = (*findings, policy_finding(str(context.leaving), metrics))
        return _result(
            context,
            known,
            metrics,
            findings,
            series,
            finite=finite,
            made=len(shadows.included),
        )


def _result(
    context: Context,
    known: KnownRows,
    metrics: Mapping[str, Metric],
    findings: tuple[ScanFinding, ...],
    series: list[dict[str, Any]],
    *,
    finite: bool,
    made: int,
) -> CheckResult:
    names = [str(item["name"]) for item in series]
    kind, members = kind_of(context, known), int(known.member.sum())
    counts = {"members": members, "others": len(known.member) - members}
    return CheckResult(
        ResidualCheck.name,
        kind="membership",
        datasets=known.datasets,
        conditions={
            "predicts": CONDITIONS["predicts"],
            "access": "black_box",
            "output_policy": str(context.leaving),
            "attacks": ", ".join(names),
            "stated_attack": max(names, key=lambda name: metrics[f"{name}_auc"].value),
            "false_positive_rate": 0.01,
            "auc_interval": "newcombe",
            "tpr_interval": "wilson",
            "shadow_models": made,
            **({"shadows": kind} if len(names) > 1 else {}),
            "seed": context.job.options.seed,
            "covered_by_dp": False,
        },
        metrics=metrics,
        checks=(Check("finite", finite, "every residual is a number"),),
        findings=findings,
        details={
            "charts": [roc_chart(series)],
            "untested": [] if len(names) > 1 else [_UNTESTED],
        },
        public=dict.fromkeys(names, counts),
    )


def _shadows(outcomes: Mapping[str, Outcome]) -> ShadowNumbers:
    parts = [item.arrays for item in outcomes.values() if "shadows" in item.arrays]
    if not parts:
        return ShadowNumbers(np.zeros((0, 0), bool), np.zeros((0, 0)))
    return ShadowNumbers(
        np.concatenate([part["included"] for part in parts]),
        np.concatenate([part["shadows"] for part in parts]),
    )


def _left(context: Context, numbers: Floats) -> Floats:
    """What leaves of numbers; of shadows alike, since attackers round theirs."""
    decimals = context.leaving.decimals
    if decimals is None:
        return numbers
    return scores_left(OutputPolicy(decimals=decimals), numbers)


def _scores(
    numbers: Floats, known: KnownRows, shadows: ShadowNumbers
) -> tuple[dict[str, Floats], bool]:
    """Scores of each row by attack, and whether every residual is a number."""
    residuals = numbers - known.labels
    finite = np.isfinite(residuals)
    # Nothing is learned from no answer: it counts as the largest residual.
    largest = np.max(np.abs(residuals), where=finite, initial=0)
    own = np.where(finite, residuals, largest)
    scores = {"residual": -np.abs(own)}
    held = shadows.included.sum(axis=0) if len(shadows.included) else np.zeros(1)
    if held.min() >= 1 and (len(shadows.included) - held).min() >= 1:
        theirs = shadows.numbers - known.labels
        scores["lira"] = signals.likelihood_ratio(own, theirs, shadows.included)
    return scores, bool(finite.all())


def _measured(
    scores: Mapping[str, Floats], known: KnownRows
) -> tuple[dict[str, Metric], list[dict[str, Any]]]:
    """Each attack's rates and curve; and the worst rates, which are the stated ones."""
    metrics: dict[str, Metric] = {}
    series = []
    for name, values in scores.items():
        members, others = values[known.member], values[~known.member]
        for rate, metric in curves.rates(members, others).items():
            metrics[f"{name}_{rate}"] = metric
        series.append({"name": name, "points": curves.roc(members, others)})
    for rate in _RATES:
        own = [metrics[f"{name}_{rate}"] for name in scores]
        metrics[rate] = max(own, key=lambda metric: metric.value)
    return metrics, series


_UNTESTED = (
    "Membership by shadow models: they need the training's configuration, or a model "
    "of trees."
)
