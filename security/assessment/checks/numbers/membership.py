"""Membership by residuals: who was trained on is predicted closer to the truth.

The loss attack of Yeom et al. (2018) for a regression: a row whose absolute residual is
small is called a member.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from models.output_policy import OutputPolicy, scores_left
from models.report import Check
from security.assessment.checks.numbers.measures import CONDITIONS
from security.assessment.checks.privacy import curves
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
from security.assessment.results.result import CheckResult

__all__ = ["ResidualCheck"]


class ResidualCheck(MembershipCheck):
    """Absolute residuals of the rows that were trained on, and of others."""

    def units(self, context: Context) -> list[Unit]:
        """One unit: the answers about all of them."""
        del context
        return [Unit(self.name, "membership/target", weight=0.3)]

    def run(self, unit: Unit, context: Context) -> Outcome:
        """Ask about them.

        Raises:
            BudgetError: an endpoint's queries are spent.
        """
        del unit
        known = known_of(context)
        numbers = context.target.ask(known.rows).numbers
        decimals = context.leaving.decimals
        if decimals is None:
            return Outcome({}, {"numbers": numbers})
        left = scores_left(OutputPolicy(decimals=decimals), numbers)
        return Outcome({}, {"numbers": left, "whole_numbers": numbers})

    def conclude(
        self, context: Context, outcomes: Mapping[str, Outcome]
    ) -> CheckResult:
        """How well members are told from others."""
        known = known_of(context)
        (outcome,) = outcomes.values()
        scores, finite = _scores(outcome.arrays["numbers"], known)
        members, others = scores[known.member], scores[~known.member]
        rates = curves.rates(members, others)
        metrics = rates | {f"residual_{name}": item for name, item in rates.items()}
        findings = exposure_findings(rates, known)
        if "whole_numbers" in outcome.arrays and not context.job.remote:
            whole, _ = _scores(outcome.arrays["whole_numbers"], known)
            found = curves.rates(whole[known.member], whole[~known.member])
            metrics |= {f"all_scores_{name}": item for name, item in found.items()}
            findings = (*findings, policy_finding(str(context.leaving), metrics))
        series = [{"name": "residual", "points": curves.roc(members, others)}]
        return CheckResult(
            self.name,
            kind="membership",
            datasets=known.datasets,
            conditions={
                "predicts": CONDITIONS["predicts"],
                "access": "black_box",
                "output_policy": str(context.leaving),
                "attacks": "residual",
                "stated_attack": "residual",
                "false_positive_rate": 0.01,
                "auc_interval": "newcombe",
                "tpr_interval": "wilson",
                "shadow_models": 0,
                "seed": context.job.options.seed,
                "covered_by_dp": False,
            },
            metrics=metrics,
            checks=(Check("finite", finite, "every residual is a number"),),
            findings=findings,
            details={"charts": [roc_chart(series)], "untested": [_UNTESTED]},
            public={"residual": {"members": len(members), "others": len(others)}},
        )


def _scores(
    numbers: NDArray[np.float64], known: KnownRows
) -> tuple[NDArray[np.float64], bool]:
    """Scores by row, and whether every residual is a number."""
    residuals = np.abs(numbers - known.labels)
    finite = np.isfinite(residuals)
    # Nothing is learned from no answer: it counts as the largest residual.
    largest = np.max(residuals, where=finite, initial=0)
    return -np.where(finite, residuals, largest), bool(finite.all())


_UNTESTED = (
    "Membership by shadow models: of a model that predicts a number none are made."
)
