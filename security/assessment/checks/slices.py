"""Quality slice by slice: classes, stated groups, bands of each column of a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.report import Metric
from security.assessment.checks import measures
from security.assessment.plan.context import Context
from security.assessment.results import intervals

__all__ = ["bands", "class_aucs", "slice_metrics", "worst_bands"]

Mask = NDArray[np.bool_]

# A column with more distinct values than this is cut into bands of equal size.
_DISTINCT, _BANDS = 6, 3
_MAX_COLUMNS = 200
_SHOWN = 10
_MAX_TEXT = 40


def slice_metrics(context: Context) -> dict[str, Metric]:
    """Accuracy of each class and group; of groups, AUC and calibration error too."""
    job = context.job
    right = job.clean.labels == job.labels
    metrics = {}
    for index, name in enumerate(job.reading.classes):
        own = job.labels == index
        if own.sum() >= measures.MIN_ROWS:
            metrics[f"accuracy/class={name}"] = _share(right, own)
    for attribute, values in job.groups.items():
        for value in np.unique(values):
            own = values == value
            if own.sum() >= measures.MIN_ROWS:
                metrics |= _of_group(context, f"{attribute}={value}", own)
    return metrics


def class_aucs(context: Context) -> dict[str, Metric]:
    """Of more than two classes, each one's AUC against the others, by its score."""
    job = context.job
    known = job.clean.finite & (job.clean.labels >= 0)
    found: dict[str, Metric] = {}
    if job.reading.form == "labels" or len(job.reading.classes) < 3:
        return found
    for index, name in enumerate(job.reading.classes):
        scores = job.clean.scores[known, index]
        metric = _auc(scores, job.labels[known] == index)
        if metric is not None:
            found[f"auc/class={name}"] = metric
    return found


def worst_bands(context: Context) -> dict[str, Any] | None:
    """A table of the slices of columns with the lowest accuracy; None without columns.

    Sorted by the upper end of the interval: what chance does not explain comes first.
    """
    job = context.job
    if not job.column_names:
        return None
    right = job.clean.labels == job.labels
    found = [
        (name, _share(right, own))
        for name, own in bands(context)
        if own.sum() >= measures.MIN_ROWS
    ]
    found.sort(key=lambda pair: (pair[1].high or 0.0, pair[0]))
    rows = [
        [name, metric.n, f"{metric.value:.3f} [{metric.low:.3f}, {metric.high:.3f}]"]
        for name, metric in found[:_SHOWN]
    ]
    return {
        "title": f"Slices with the lowest accuracy, of {len(found)} looked at",
        "columns": ["slice", "rows", "accuracy"],
        "rows": rows,
    }


def _of_group(context: Context, name: str, own: Mask) -> Mapping[str, Metric]:
    job = context.job
    metrics = {f"accuracy/{name}": _share(job.clean.labels == job.labels, own)}
    own = own & job.clean.finite & (job.clean.labels >= 0)
    scores, labels = job.clean.scores[own], job.labels[own]
    if scores.shape[1] == 2 and job.reading.form != "labels":
        metric = _auc(scores[:, 1] - scores[:, 0], labels == 1)
        if metric is not None:
            metrics[f"auc/{name}"] = metric
    if job.reading.form == "probabilities" and own.sum() >= measures.MIN_ROWS:
        metrics[f"calibration_error/{name}"] = measures.calibration_error(
            job.clean.confidence[own], job.clean.labels[own] == labels
        )
    return metrics


def _auc(scores: NDArray[np.float64], positive: Mask) -> Metric | None:
    if min(positive.sum(), (~positive).sum()) < 2:
        return None
    return intervals.auc(scores[positive], scores[~positive])


def bands(context: Context) -> Iterator[tuple[str, Mask]]:
    """Slices of each column of a table: where it is missing, its values or bands.

    Texts that are no categories have neither.
    """
    job, rows = context.job, context.job.rows.astype(np.float64)
    for column, name in enumerate(job.column_names[:_MAX_COLUMNS]):
        values = rows[:, column]
        missing = np.isnan(values)
        yield f"{name} missing", missing
        distinct = np.unique(values[~missing])
        if len(distinct) <= _DISTINCT:
            for value in distinct:
                cell = job.cell(column, value)
                said = f"{cell:g}" if isinstance(cell, float) else cell[:_MAX_TEXT]
                yield f"{name}={said}", values == value
            continue
        if isinstance(job.cell(column, distinct[0]), str):
            continue
        edges = np.quantile(values[~missing], np.linspace(0, 1, _BANDS + 1))
        for low, high in pairwise(edges):
            last = high == edges[-1]
            inside = (values >= low) & ((values <= high) if last else (values < high))
            yield f"{name} {low:.4g} to {high:.4g}", inside


def _share(right: Mask, own: Mask) -> Metric:
    return intervals.proportion(int(right[own].sum()), int(own.sum()))
