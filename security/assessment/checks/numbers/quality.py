"""Quality of a model that predicts a number: its errors, by slice, on unusual rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.report import Metric
from security.assessment.checks.coverage import coverage_of
from security.assessment.checks.numbers.measures import (
    CONDITIONS,
    MIN_ROWS,
    errors_of,
    measure,
)
from security.assessment.checks.quality import QualityCheck, unusual_rows
from security.assessment.checks.slices import bands
from security.assessment.plan.checks import Outcome, Unit
from security.assessment.plan.context import Context
from security.assessment.results import intervals
from security.assessment.results.result import CheckResult, ScanFinding

__all__ = ["NumberQualityCheck"]

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
_SHOWN, _TENTHS = 10, 10


class NumberQualityCheck(QualityCheck):
    """How far the answers are from the truth, and what unusual rows do to them."""

    def run(self, unit: Unit, context: Context) -> Outcome:
        """Ask about changed copies of some rows, a column at a time.

        Raises:
            BudgetError: an endpoint's queries are spent.
        """
        places, chosen, kinds = unusual_rows(unit, context)
        values = {}
        for kind, rows in kinds:
            given = context.target.ask(rows).numbers
            shape = len(chosen), len(places)
            moved = np.abs(given.reshape(shape) - context.job.clean.numbers[places])
            failed = ~np.isfinite(moved)
            values[kind] = {
                "asked": given.size,
                "failed": int(failed.sum()),
                "columns": [int(column) for column in chosen],
                "failed_by_row": failed.mean(axis=0).tolist(),
                "moved_by_column": np.where(failed, 0.0, moved).mean(axis=1).tolist(),
            }
        return Outcome(values)

    def conclude(
        self, context: Context, outcomes: Mapping[str, Outcome]
    ) -> CheckResult:
        """Metrics of all rows and of slices, and the unusual rows."""
        job, errors = context.job, errors_of(context)
        known = np.isfinite(errors)
        enough = int(known.sum()) >= MIN_ROWS
        whole = bool(outcomes) or job.answered
        metrics: dict[str, Metric] = {}
        if enough:
            metrics = measure(errors[known], job.labels[known])
            metrics |= _by_group(context, errors)
        findings: list[ScanFinding] = []
        tables = []
        for outcome in outcomes.values():
            more, found, table = _unusual(context, outcome)
            metrics |= more
            findings += found
            tables.append(table)
        covered = coverage_of(context)
        findings += covered.findings
        tables += covered.tables
        tables += [] if not job.column_names else [_worst(context, errors)]
        few = f"{int(known.sum())} rows have an answer; quality needs {MIN_ROWS}"
        return CheckResult(
            self.name,
            status="done" if whole and enough else "partial",
            reason=few if not enough else ("" if whole else "no budget was left"),
            kind="quality",
            conditions={
                **CONDITIONS,
                **covered.conditions,
                "split": "holdout" if job.compared else "as_given",
            },
            metrics=metrics | covered.metrics,
            findings=tuple(findings),
            details={
                "tables": tables,
                "charts": [_calibration(context)] if enough else [],
                "asked_rows": job.places.tolist(),
            },
            public={"rows": len(errors), "rows_answered": int(known.sum())},
        )


def _by_group(context: Context, errors: Floats) -> dict[str, Metric]:
    """The mean absolute error of each stated group that is large enough."""
    found = {}
    for attribute, values in context.job.groups.items():
        for value in np.unique(values):
            own = np.abs(errors[(values == value) & np.isfinite(errors)])
            if len(own) >= MIN_ROWS:
                found[f"mae/{attribute}={value}"] = intervals.positive_mean(own)
    return found


def _worst(context: Context, errors: Floats) -> dict[str, Any]:
    """The slices of columns with the largest errors, by the interval's lower end."""
    found = []
    for name, own in bands(context):
        lengths = np.abs(errors[own & np.isfinite(errors)])
        if len(lengths) >= MIN_ROWS:
            found.append((name, intervals.positive_mean(lengths)))
    found.sort(key=lambda pair: (-(pair[1].low or 0.0), pair[0]))
    rows = [
        [name, metric.n, f"{metric.value:.4g} [{metric.low:.4g}, {metric.high:.4g}]"]
        for name, metric in found[:_SHOWN]
        if metric.low is not None
    ]
    return {
        "title": f"Slices with the largest error, of {len(found)} looked at",
        "columns": ["slice", "rows", "mean absolute error"],
        "rows": rows,
    }


def _unusual(
    context: Context, outcome: Outcome
) -> tuple[dict[str, Metric], list[ScanFinding], dict[str, Any]]:
    metrics, findings, rows = {}, [], []
    names = context.job.column_names
    for kind, item in outcome.values.items():
        shares = np.array(item["failed_by_row"], dtype=np.float64)
        metric = intervals.bounded_mean(shares, 0.0, 1.0)
        metrics[f"{kind}_failed"] = metric
        for place in np.argsort(item["moved_by_column"])[::-1][:_SHOWN]:
            column = item["columns"][place]
            name = names[column] if names else f"[{column}]"
            rows.append([kind, name, item["moved_by_column"][place]])
        if item["failed"]:
            findings.append(
                ScanFinding(
                    f"quality-{kind.replace('_', '-')}",
                    f"{item['failed']} of {item['asked']} rows with one "
                    f"{kind.replace('_', ' ')} value get no usable answer",
                    "",
                    metric,
                )
            )
    table = {
        "title": "How far one unusual value moves the answer, on average",
        "columns": ["value", "column", "mean change"],
        "rows": rows,
    }
    return metrics, findings, table


def _calibration(context: Context) -> dict[str, Any]:
    """The mean truth of each tenth of the rows, by what is answered about them."""
    truth, given = context.job.labels, context.job.clean.numbers
    order = np.argsort(given, kind="stable")
    points = []
    for part in np.array_split(order[np.isfinite(given[order])], _TENTHS):
        metric = intervals.mean(truth[part])
        ends = [metric.value if e is None else e for e in (metric.low, metric.high)]
        points.append([float(given[part].mean()), metric.value, *ends])
    return {
        "title": "Truth by answer, of each tenth of the rows; dashed: as it should be",
        "x": "answer, mean",
        "y": "truth, mean",
        "diagonal": True,
        "series": [{"name": "", "points": points}],
    }
