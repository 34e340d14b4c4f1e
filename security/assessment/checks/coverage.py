"""How often intervals and sets of classes hold the truth, as the manifest states.

Measured on rows that cannot have calibrated (`models.conformal.is_calibrating`), of
the very outputs that are served. It is marginal: of all rows together, if they are
exchangeable with those that are asked about later. The table of parts shows where it
is less; nothing promises anything of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.conformal import MIN_EVALUATED, Conformal, residuals
from models.conforming import Conforming
from models.manifest import Manifest, Tensor
from models.report import Condition, Metric
from sealgate.protocol.datatypes import DATATYPES
from sealgate.protocol.tensors import Array
from security.assessment.calibration import (
    evaluated_rows,
    left_answers,
    rows_digest,
    split_of,
    values_of,
)
from security.assessment.plan.context import Context, Job
from security.assessment.results import intervals
from security.assessment.results.result import ScanFinding

__all__ = ["Coverage", "coverage_of"]

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
# Deviations below what is stated that chance does not explain: once in 700 times.
_CLEAR = 3.0
_PARTS, _MAX_CLASSES = 5, 20


@dataclass(frozen=True)
class Coverage:
    """What is added to a quality report.

    Attributes:
        metrics, conditions, findings, tables: of it; all empty of a model without.
    """

    metrics: dict[str, Metric] = field(default_factory=dict)
    conditions: dict[str, Condition] = field(default_factory=dict)
    findings: tuple[ScanFinding, ...] = ()
    tables: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, eq=False)
class _Rows:
    """The rows that measure.

    Attributes:
        covered: ``(n,)``.
        truth, answers: ``(n,)``; of classes their places.
        places: of the rows in the job.
        metrics: beside coverage.
    """

    covered: Mask
    truth: Floats
    answers: Floats
    places: NDArray[np.int64]
    metrics: dict[str, Metric]


def coverage_of(context: Context) -> Coverage:
    """Of a bundle whose manifest has a quantile for the output that is assessed."""
    job, manifest = context.job, context.job.source.manifest
    if manifest is None or manifest.conformal is None or job.answered:
        return Coverage()
    own = manifest.conformal
    found = [item for item in manifest.outputs if item.spec.name == own.output]
    if own.output != job.reading.output or own.of_classes is job.reading.number:
        return Coverage()
    chosen = evaluated_rows(job, own)
    if int(chosen.sum()) < MIN_EVALUATED:
        message = (
            f"{int(chosen.sum())} rows had no part in the calibration; coverage needs "
            f"{MIN_EVALUATED}"
        )
        return Coverage(findings=(ScanFinding("coverage-not-measured", message),))
    if own.of_classes:
        decided = values_of(job, context.target, manifest)
        rows = _of_classes(job, manifest, found[0], chosen, decided)
    else:
        rows = _of_numbers(job, manifest, found[0], chosen)
    stated = intervals.proportion(int(rows.covered.sum()), len(rows.covered))
    return Coverage(
        metrics={"coverage": stated, **rows.metrics, **_by_group(job, rows)},
        conditions={
            **_conditions(own, rows_digest(job, chosen)),
            "calibration_split": split_of(job, own),
        },
        findings=tuple(_findings(own, stated)),
        tables=(_table(job, own, rows),),
    )


def _of_numbers(job: Job, manifest: Manifest, answer: Tensor, chosen: Mask) -> _Rows:
    own = _stated(manifest)
    raw = job.clean.numbers[chosen].astype(DATATYPES[answer.spec.datatype])
    shaped = raw.reshape(-1, *[1] * (len(answer.spec.shape) - 1))
    low, high = (
        item.reshape(-1).astype(np.float64)
        for item in manifest.release.answer(own.names, {own.output: shaped})
    )
    truth = job.labels[chosen].astype(np.float64)
    covered = (low <= truth) & (truth <= high)
    usable = np.isfinite(high - low)
    metrics = {}
    if usable.any():
        widths = (high - low)[usable]
        scaled = residuals(high[usable], low[usable], own.scale)
        metrics["interval_width"] = intervals.positive_mean(widths)
        metrics["interval_width_scaled"] = intervals.positive_mean(scaled)
    answers = raw.reshape(-1).astype(np.float64)
    return _Rows(covered, truth, answers, np.flatnonzero(chosen), metrics)


def _of_classes(
    job: Job,
    manifest: Manifest,
    answer: Tensor,
    chosen: Mask,
    decided: Mapping[str, Array],
) -> _Rows:
    known = Conforming(_stated(manifest), manifest.outputs)
    given = left_answers(job, answer, manifest.output_policy)[chosen]
    inside = known.conformal.sets(given)
    truth = job.labels[chosen].astype(np.int64)
    covered = inside[np.arange(len(truth)), truth]
    sizes = inside.sum(axis=1)
    best = inside.argmax(axis=1)
    # As served: nothing is answered where the model decides for another class.
    own = {name: item[chosen] for name, item in decided.items()}
    answered = ~known.abstaining(given, own)
    hits, many = int((answered & (best == truth)).sum()), int(answered.sum())
    classes = inside.shape[1]
    metrics = {
        "set_size": intervals.bounded_mean(sizes.astype(np.float64), 0.0, classes),
        "abstention": intervals.proportion(len(truth) - many, len(truth)),
    }
    if many:
        metrics["answered_accuracy"] = intervals.proportion(hits, many)
    answers = job.clean.labels[chosen].astype(np.float64)
    return _Rows(
        covered, truth.astype(np.float64), answers, np.flatnonzero(chosen), metrics
    )


def _stated(manifest: Manifest) -> Conformal:
    if manifest.conformal is None:
        raise TypeError("the manifest states no coverage")
    return manifest.conformal


def _by_group(job: Job, rows: _Rows) -> dict[str, Metric]:
    """The coverage of each stated group that is large enough."""
    found = {}
    for attribute, values in job.groups.items():
        own = values[rows.places]
        for value in np.unique(own):
            hits = rows.covered[own == value]
            if len(hits) >= MIN_EVALUATED:
                name = f"coverage/{attribute}={value}"
                found[name] = intervals.proportion(int(hits.sum()), len(hits))
    return found


def _conditions(own: Conformal, digest: str) -> dict[str, Condition]:
    return {
        "coverage_stated": own.coverage,
        "coverage_holds": "marginal, over exchangeable rows",
        "coverage_interval": "wilson",
        "coverage_rows_sha256": digest,
        "calibration_rows_sha256": own.rows_sha256,
        "calibration_share": own.split_share,
        "calibration_private": own.epsilon is not None,
        **({} if own.epsilon is None else {"calibration_epsilon": own.epsilon}),
        **({} if own.delta is None else {"calibration_delta": own.delta}),
        **({} if own.waiver is None else {"calibration_waiver": own.waiver}),
        "conformal_sha256": own.sha256,
    }


def _findings(own: Conformal, found: Metric) -> Iterator[ScanFinding]:
    """Coverage below what is stated, beyond what both samples explain."""
    share = own.coverage * (1 - own.coverage)
    deviation = math.sqrt(share / own.rows + share / (found.n or 1))
    if found.value < own.coverage - _CLEAR * deviation:
        yield ScanFinding(
            "coverage-below",
            f"{found.value:.1%} of {found.n} rows are inside, and {own.coverage:.1%} "
            "are stated: these are not such rows as it was calibrated on",
            "",
            found,
        )


def _table(job: Job, own: Conformal, rows: _Rows) -> dict[str, Any]:
    """Coverage by class, or by fifths of the answer."""
    if own.of_classes:
        names = job.reading.classes[:_MAX_CLASSES]
        parts = [
            (name, np.flatnonzero(rows.truth == at)) for at, name in enumerate(names)
        ]
        what = "true class"
    else:
        order = np.argsort(rows.answers, kind="stable")
        known = order[np.isfinite(rows.answers[order])]
        parts = [
            (f"{rows.answers[part[0]]:.4g} to {rows.answers[part[-1]]:.4g}", part)
            for part in np.array_split(known, _PARTS)
            if len(part)
        ]
        what = "answer"
    return {
        "title": f"Coverage by {what}: only that of all rows is promised",
        "columns": [what, "rows", "inside"],
        "rows": [
            [name, len(part), float(rows.covered[part].mean())]
            for name, part in parts
            if len(part)
        ],
    }
