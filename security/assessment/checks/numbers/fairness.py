"""Fairness of errors: one group of people is predicted worse, or always too high."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from security.assessment.checks import rates
from security.assessment.checks.fairness import (
    FairnessCheck,
    crossings,
    figures,
    named,
    rates_table,
    small_groups,
)
from security.assessment.checks.numbers.measures import CONDITIONS, errors_of
from security.assessment.checks.rates import MIN_GROUP, Attribute, Fairness
from security.assessment.plan.checks import Outcome
from security.assessment.plan.context import Context
from security.assessment.results.result import CheckResult, ScanFinding

__all__ = ["NumberFairnessCheck"]

# As of rates: four fifths. Of biases: half of what the model is off by anyway.
_RATIO, _BIAS = 0.8, 0.5


class NumberFairnessCheck(FairnessCheck):
    """Compares the errors of groups of the held-out rows."""

    def missing(self, context: Context) -> str | None:
        """Groups must be stated, and some rows have an answer."""
        if not context.job.groups:
            return "no sensitive columns are stated (`sensitive` in --data-config)"
        if not np.isfinite(errors_of(context)).any():
            return "no row has an answer"
        return None

    def conclude(
        self, context: Context, outcomes: Mapping[str, Outcome]
    ) -> CheckResult:
        """Findings where a gap is larger than chance would make it."""
        errors = errors_of(context)
        known = np.isfinite(errors)
        samples = rates.of_errors(errors[known])
        columns = {name: item[known] for name, item in context.job.groups.items()}
        results = [
            rates.measure(Attribute.of(parts, columns), samples)
            for parts in crossings(context)
        ]
        usual = float(np.abs(errors[known]).mean())
        return CheckResult(
            self.name,
            kind="fairness",
            conditions={
                "predicts": CONDITIONS["predicts"],
                "min_group": MIN_GROUP,
                "mae_interval": CONDITIONS["mae_interval"],
                "mean_error_interval": CONDITIONS["mean_error_interval"],
                "difference_interval": "newcombe",
                "ratio_interval": "donner_zou",
                "several_groups": "bonferroni over pairs",
            },
            metrics=figures(results),
            findings=tuple(
                found for item in results for found in _findings(item, usual)
            ),
            details={"tables": [rates_table(item, tuple(samples)) for item in results]},
        )


def _findings(item: Fairness, usual: float) -> Iterator[ScanFinding]:
    """Gaps that chance does not explain; `usual` is the mean absolute error of all."""
    yield from small_groups(item)
    ratio = item.ratios.get("mae")
    if ratio is not None and ratio.high is not None and ratio.high < _RATIO:
        least, most = item.extremes["mae"]
        yield ScanFinding(
            "fairness-gap",
            f"the error of {named(most)} is {1 / max(ratio.value, 1e-9):.2f} times "
            f"that of {named(least)}",
            f"{item.attribute}/mae",
            ratio,
        )
    gap = item.differences.get("mean_error")
    if gap is not None and gap.low is not None and gap.low > _BIAS * usual:
        least, most = item.extremes["mean_error"]
        yield ScanFinding(
            "fairness-gap",
            f"answers about {named(most)} lie {gap.value:.4g} higher against the truth "
            f"than those about {named(least)}",
            f"{item.attribute}/mean_error",
            gap,
        )
