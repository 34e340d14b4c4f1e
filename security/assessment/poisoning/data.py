"""The rows that a model was trained on, as the model takes them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.data.held_out import Holdout
from security.assessment.privacy.membership import TrainingRows
from security.assessment.scan.context import Context, class_indices
from security.assessment.scan.target import fit_rows

__all__ = ["TrainingData", "row_digest", "training_data"]


@dataclass(frozen=True, eq=False)
class TrainingData:
    """Rows with the classes that they were trained with.

    Attributes:
        name: of the file or data set.
        rows: ``(n, d)`` in the model's type.
        labels: ``(n,)``.
    """

    name: str
    rows: NDArray[Any] = field(repr=False)
    labels: NDArray[np.int64] = field(repr=False)


def training_data(context: Context) -> TrainingData | None:
    """What `--train-data` or `--training` names; None where neither is given.

    Raises:
        AssessmentError: the rows do not fit the model.
    """
    if "training data" not in context.cache:
        context.cache["training data"] = _read(context)
    found: TrainingData | None = context.cache["training data"]
    return found


def row_digest(row: NDArray[Any]) -> str:
    """Names a row without showing it: the start of its SHA-256."""
    return hashlib.sha256(np.ascontiguousarray(row).tobytes()).hexdigest()[:16]


def _read(context: Context) -> TrainingData | None:
    job = context.job
    given = job.extras.get("training data")
    if isinstance(given, Holdout):
        given = given.arranged(job.column_names)
        rows, _ = fit_rows(job.spec, given.features)
        return TrainingData(given.name, rows, class_indices(given, job.reading))
    known = job.extras.get("training")
    if not isinstance(known, TrainingRows):
        return None
    rows, _ = fit_rows(job.spec, known.rows[known.member])
    return TrainingData("training configuration", rows, known.labels[known.member])
