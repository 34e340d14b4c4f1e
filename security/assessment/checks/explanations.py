"""What the model's answers rest on: global importance of the columns, by SHAP.

Shapley values of the probability (or score) of the class that the model gave, by
permutation sampling over the model's answers, so for any target. Lundberg and Lee, "A
Unified Approach to Interpreting Model Predictions" (2017).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.report import Metric
from security.assessment.plan.checks import Outcome, Unit
from security.assessment.plan.context import Context
from security.assessment.results import intervals
from security.assessment.results.result import CheckResult

__all__ = ["ExplanationCheck"]

_ROWS = 40
_BACKGROUND = 20
_MAX_COLUMNS = 256
_SHOWN = 20


class ExplanationCheck:
    """Mean absolute Shapley value of each column."""

    name = "explanations"
    title = "what answers rest on"

    def missing(self, context: Context) -> str | None:
        """Files with not too many columns: each row costs two questions per column."""
        columns = context.job.rows.shape[1]
        if context.job.remote:
            return "an endpoint's quota is better spent on attacks"
        if columns > _MAX_COLUMNS:
            return f"{columns} columns; at most {_MAX_COLUMNS} are explained"
        if len(context.job.rows) < _ROWS + _BACKGROUND:
            return f"fewer than {_ROWS + _BACKGROUND} rows"
        return None

    def units(self, context: Context) -> list[Unit]:
        """One unit."""
        return [Unit(self.name, "explanations/shap", weight=1.0)]

    def run(self, unit: Unit, context: Context) -> Outcome:
        """Explain some rows against a background of others."""
        with warnings.catch_warnings():
            # Its plots, which are not used, announce what matplotlib will change.
            warnings.simplefilter("ignore")
            import shap  # noqa: PLC0415  (seconds)

        job = context.job
        random = context.random(unit.key)
        order = random.permutation(len(job.rows))
        chosen, background = order[:_ROWS], order[_ROWS : _ROWS + _BACKGROUND]
        given = job.clean.labels[chosen]
        columns = job.rows.shape[1]

        def ask(rows: NDArray[Any]) -> NDArray[np.float64]:
            scores = context.target.ask(rows.astype(job.rows.dtype)).scores
            return np.nan_to_num(scores, posinf=0.0, neginf=0.0)

        explainer = shap.PermutationExplainer(
            ask,
            shap.maskers.Independent(job.rows[background].astype(np.float64)),
            seed=context.seed(unit.key) % 2**32,
        )
        explained = explainer(
            job.rows[chosen].astype(np.float64),
            max_evals=2 * columns + 1,
            silent=True,
        )
        # Of a single score, or number, the library leaves out the last axis.
        values = explained.values.reshape(_ROWS, columns, -1)
        own = np.abs(values[np.arange(_ROWS), :, given])
        return Outcome({"rows": _ROWS}, {"importance": own})

    def conclude(
        self, context: Context, outcomes: Mapping[str, Outcome]
    ) -> CheckResult:
        """The columns by importance."""
        (outcome,) = outcomes.values()
        values = outcome.arrays["importance"]
        order = np.argsort(-values.mean(axis=0), kind="stable")[:_SHOWN]
        names = context.job.column_names
        metrics: dict[str, Metric] = {}
        rows = []
        for column in order:
            name = names[column] if names else f"[{column}]"
            metric = intervals.mean(values[:, column])
            metrics[f"importance/{name}"] = metric
            rows.append([name, f"{metric.value:.4f}{_interval(metric)}"])
        whose = "the answer" if context.job.reading.number else "the given class"
        table = {
            "title": f"Mean absolute Shapley value of {whose}",
            "columns": ["column", "importance"],
            "rows": rows,
        }
        return CheckResult(
            self.name,
            conditions={
                "method": "shap_permutation",
                "rows": _ROWS,
                "background_rows": _BACKGROUND,
            },
            metrics=metrics,
            details={"tables": [table]},
        )


def _interval(metric: Metric) -> str:
    """In a table; a column that changes nothing has none."""
    return "" if metric.low is None else f" [{metric.low:.4f}, {metric.high:.4f}]"
