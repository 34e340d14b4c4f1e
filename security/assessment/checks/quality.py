"""Quality: accuracy, AUC, calibration; per slice; and on rows that are not as usual."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.report import Metric
from security.assessment.checks import measures
from security.assessment.checks.coverage import coverage_of
from security.assessment.checks.slices import (
    class_aucs,
    slice_metrics,
    worst_bands,
)
from security.assessment.plan.checks import Outcome, Unit
from security.assessment.plan.context import Context
from security.assessment.results import intervals
from security.assessment.results.result import CheckResult, ScanFinding
from security.errors import AssessmentError
from security.monitoring.estimate import ScoreBins

__all__ = ["QualityCheck", "unusual_rows"]

_PROBED_ROWS = 40
_PROBED_COLUMNS = 40
_CALIBRATION = 0.1
_BINS = 10
_WORST = 10


class QualityCheck:
    """How good the answers are, and what becomes of them on unusual rows."""

    name = "quality"
    title = "quality"

    def missing(self, context: Context) -> str | None:
        """Always applies."""
        return None

    def units(self, context: Context) -> list[Unit]:
        """One unit: rows with missing values, and with values beyond the ranges."""
        if context.job.answered:
            return []
        return [Unit(self.name, "quality/unusual", weight=0.5)]

    def run(self, unit: Unit, context: Context) -> Outcome:
        """Ask about changed copies of some rows, a column at a time.

        Raises:
            BudgetError: an endpoint's queries are spent.
        """
        places, chosen, kinds = unusual_rows(unit, context)
        values = {}
        for kind, rows in kinds:
            answers = context.target.ask(rows)
            usual = np.tile(context.job.clean.labels[places], len(chosen))
            shape = len(chosen), len(places)
            failed = ((~answers.finite) | (answers.labels < 0)).reshape(shape)
            changed = (answers.labels != usual).reshape(shape)
            values[kind] = {
                "asked": len(usual),
                "failed": int(failed.sum()),
                "columns": [int(c) for c in chosen],
                "changed_by_column": changed.sum(axis=1).tolist(),
                "failed_by_row": failed.mean(axis=0).tolist(),
                "changed_by_row": changed.mean(axis=0).tolist(),
            }
        return Outcome(values)

    def conclude(
        self, context: Context, outcomes: Mapping[str, Outcome]
    ) -> CheckResult:
        """Metrics as `assess` measures them, slices, and the unusual rows."""
        job = context.job
        whole = bool(outcomes) or job.answered
        known = job.clean.finite & (job.clean.labels >= 0)
        metrics, reason = _metrics(context, known)
        findings = _uncalibrated(metrics)
        tables = [_confusion(context)]
        for outcome in outcomes.values():
            more, found, table = _unusual_result(context, outcome)
            metrics |= more
            findings += found
            tables.append(table)
        covered = coverage_of(context)
        findings += covered.findings
        tables += covered.tables
        bands = worst_bands(context)
        tables += [] if bands is None else [bands]
        charts = [_reliability(context, known)] if not reason else []
        return CheckResult(
            self.name,
            status="done" if whole and "accuracy" in metrics else "partial",
            reason=reason or ("" if whole else "no budget was left"),
            kind="quality",
            conditions={
                **measures.CONDITIONS,
                **covered.conditions,
                "answers": job.reading.form,
                # Whether they are rows that the training never saw: compared, or told.
                "split": "holdout" if job.compared else "as_given",
            },
            metrics=metrics
            | class_aucs(context)
            | slice_metrics(context)
            | covered.metrics,
            findings=tuple(findings),
            details={
                "tables": tables,
                "charts": charts,
                "asked_rows": job.places.tolist(),
                "wrong_rows": job.places[job.clean.labels != job.labels].tolist(),
            },
            public={
                "rows_by_class": {
                    name: int((job.labels == place).sum())
                    for place, name in enumerate(job.reading.classes)
                },
                **_score_bins(context),
            },
        )


def unusual_rows(
    unit: Unit, context: Context
) -> tuple[NDArray[np.int64], NDArray[np.int64], list[tuple[str, NDArray[Any]]]]:
    """Places of some rows, some columns, and per kind copies of the rows.

    The copies have one unusual value each: first all rows with the first column
    changed, then all with the second one, and so on.
    """
    job, random = context.job, context.random(unit.key)
    chosen = np.sort(random.permutation(job.fractions)[:_PROBED_COLUMNS])
    places = np.sort(random.permutation(len(job.rows))[:_PROBED_ROWS])
    if job.remote:
        chosen, places = chosen[:5], places[:8]
    kinds = []
    for kind, values_of in _unusual(context, len(places)) if len(chosen) else ():
        rows = [_with(job.rows[places], place, values_of(place)) for place in chosen]
        kinds.append((kind, np.concatenate(rows)))
    return places, chosen, kinds


def _metrics(
    context: Context, known: NDArray[np.bool_]
) -> tuple[dict[str, Metric], str]:
    job = context.job
    # Of all rows, by the model's own decision: one without an answer is not right.
    right = int((job.clean.labels == job.labels).sum())
    metrics = {"accuracy": intervals.proportion(right, len(job.labels))}
    if context.abstains:
        told = ~context.abstained
        metrics["abstention"] = intervals.proportion(int((~told).sum()), len(told))
        metrics["answered_accuracy"] = intervals.proportion(right, int(told.sum()))
    if job.reading.form == "probabilities":
        try:
            made = measures.measure(
                job.clean.scores[known], job.labels[known], job.clean.labels[known]
            )
        except AssessmentError as error:
            return metrics if context.abstains else {}, str(error)
        return made | metrics, ""
    scores, labels = job.clean.scores[known], job.labels[known]
    two = job.reading.form == "scores" and scores.shape[1] == 2
    if two and len(np.unique(labels)) == 2:
        margin = scores[:, 1] - scores[:, 0]
        metrics["auc"] = intervals.auc(margin[labels == 1], margin[labels == 0])
    form = f"answers are {job.reading.form}: no calibration can be measured"
    return metrics, form


def _uncalibrated(metrics: Mapping[str, Metric]) -> list[ScanFinding]:
    error = metrics.get("calibration_error")
    if error is None or error.value <= _CALIBRATION:
        return []
    message = f"confidence is off by {error.value:.2f} on average"
    return [ScanFinding("quality-calibration", message, "", error)]


def _unusual(context: Context, count: int) -> list[tuple[str, Any]]:
    """Kinds of unusual values, each with the values of a column for some rows.

    Out of range is one whole range above, and for every second row below.
    """
    space = context.job.space
    low, high = np.asarray(space.low, float), np.asarray(space.high, float)

    def beyond(column: int) -> NDArray[np.float64]:
        span = high[column] - low[column]
        above = np.arange(count) % 2 == 0
        return np.where(above, high[column] + span, low[column] - span)

    kinds: list[tuple[str, Any]] = []
    if context.job.rows.dtype.kind == "f":
        kinds.append(("missing", lambda _: float("nan")))
        kinds.append(("out_of_range", beyond))
    return kinds


def _with(rows: NDArray[Any], column: int, value: Any) -> NDArray[Any]:
    changed = rows.copy()
    changed[:, column] = value
    return changed


def _unusual_result(
    context: Context, outcome: Outcome
) -> tuple[dict[str, Metric], list[ScanFinding], dict[str, Any]]:
    metrics, findings, rows = {}, [], []
    names = context.job.column_names
    for kind, item in outcome.values.items():
        for what in ("failed", "changed"):
            # The copies of one row are alike: the sample is of rows, not of questions.
            shares = np.array(item[f"{what}_by_row"], dtype=np.float64)
            metrics[f"{kind}_{what}"] = intervals.bounded_mean(shares, 0.0, 1.0)
        order = np.argsort(item["changed_by_column"])[::-1][:_WORST]
        per_column = item["asked"] // max(1, len(item["columns"]))
        for place in order:
            column = item["columns"][place]
            name = names[column] if names else f"[{column}]"
            rows.append([kind, name, item["changed_by_column"][place], per_column])
        if item["failed"]:
            findings.append(
                ScanFinding(
                    f"quality-{kind.replace('_', '-')}",
                    f"{item['failed']} of {item['asked']} rows with one "
                    f"{kind.replace('_', ' ')} value get no usable answer",
                    "",
                    metrics[f"{kind}_failed"],
                )
            )
    table = {
        "title": "Rows whose class one unusual value changes",
        "columns": ["value", "column", "changed", "of"],
        "rows": rows,
    }
    return metrics, findings, table


def _score_bins(context: Context) -> dict[str, Any]:
    """How accurate rows of each score are, for who has scores without labels."""
    job = context.job
    if job.reading.form != "probabilities" or job.clean.scores.shape[1] < 2:
        return {}
    bins = ScoreBins.of_rows(job.clean.scores, job.clean.labels == job.labels)
    return {} if bins is None else {"score_bins": bins.to_object()}


def _confusion(context: Context) -> dict[str, Any]:
    job = context.job
    classes = job.reading.classes[:_BINS]
    rows = [
        [name, *(
            int(((job.labels == index) & (job.clean.labels == other)).sum())
            for other in range(len(classes))
        )]
        for index, name in enumerate(classes)
    ]  # fmt: skip
    return {
        "title": "Confusion: true class by row, answer by column",
        "columns": ["", *classes],
        "rows": rows,
        "matrix": True,
    }


def _reliability(context: Context, known: NDArray[np.bool_]) -> dict[str, Any]:
    job = context.job
    confidence = job.clean.confidence[known]
    right = (job.clean.labels == job.labels)[known]
    bins = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    points = []
    for index in np.unique(bins):
        own = bins == index
        share = intervals.proportion(int(right[own].sum()), int(own.sum()))
        points.append(
            [float(confidence[own].mean()), share.value, share.low, share.high]
        )
    return {
        "title": "Calibration: accuracy by confidence",
        "x": "confidence",
        "y": "accuracy",
        "y_low": 0.0,
        "y_high": 1.0,
        "diagonal": True,
        "series": [{"name": "", "points": points}],
    }
