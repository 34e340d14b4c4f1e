"""Before any attack: does the model answer, and twice alike."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from models.report import Metric
from security.assessment.checks.answers import AnswersCheck, not_finite, random_answers
from security.assessment.plan.checks import Outcome
from security.assessment.plan.context import Context
from security.assessment.results.result import CheckResult, ScanFinding

__all__ = ["NumberAnswersCheck"]


class NumberAnswersCheck(AnswersCheck):
    """Asks again, as of a classifier; one number for everything is a constant."""

    def conclude(
        self, context: Context, outcomes: Mapping[str, Outcome]
    ) -> CheckResult:
        """What the first answers and their repetition say."""
        numbers = context.job.clean.numbers
        known = np.isfinite(numbers)
        findings = not_finite(known)
        if known.any() and np.ptp(numbers[known]) == 0:
            message = f"all {len(numbers)} rows get one number"
            findings.append(ScanFinding("answer-constant", message))
        details = {"asked_rows": context.job.places.tolist()}
        for outcome in outcomes.values():
            details["repeated"] = dict(outcome.values)
            findings += random_answers(outcome.values)
        return CheckResult(
            self.name,
            status="done" if outcomes else "partial",
            reason="" if outcomes else "no budget left to ask again",
            conditions={"form": "number"},
            metrics={"rows_answered": Metric(float(known.sum()), n=len(known))},
            findings=tuple(findings),
            details=details,
        )
