"""The rows that a model was trained on, beside rows that it was not, as it takes them.

They come with a training's configuration, which also says how shadows are trained; or
as rows alone, and the held-out ones are those that were not trained on.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.data import datasets
from models.data.held_out import Holdout
from models.data.targets import Target
from models.report import Dataset
from security.assessment.checks.privacy.shadows import ShadowRecipe
from security.assessment.plan.context import Context
from security.assessment.plan.rows import truth_of
from security.assessment.targets.target import arranged, fit_rows

__all__ = ["KnownRows", "TrainingRows", "known_rows", "row_digest", "training_rows"]


@dataclass(frozen=True, eq=False)
class TrainingRows:
    """What the training's configuration says was trained on, and what was not.

    Attributes:
        rows: ``(n, …)``, raw, as the model takes them.
        inputs: ``(n, d)`` float32, as the network gets them.
        labels: ``(n,)``: classes, or of a regression numbers in their own unit.
        member: ``(n,)``, whether the row was trained on.
        recipe: of the shadows, or None where the architecture has none.
        datasets: the training's rows and its held-out ones, whole.
        epsilon, delta: what the training claims, or None.
        target: of a regression, the number's range and scale.
    """

    rows: NDArray[Any]
    inputs: NDArray[np.float32]
    labels: NDArray[Any]
    member: NDArray[np.bool_]
    recipe: ShadowRecipe | None
    datasets: tuple[Dataset, ...] = ()
    epsilon: float | None = None
    delta: float | None = None
    target: Target | None = None

    @property
    def sha256(self) -> str:
        """Of all of it: an interrupted scan goes on with the same training only."""
        claims = f"{self.recipe} {self.epsilon} {self.delta}"
        claims += f" {self.target}" if self.target else ""
        state = hashlib.sha256(claims.encode())
        for array in (self.rows, self.labels, self.member):
            state.update(np.ascontiguousarray(array).tobytes())
        return state.hexdigest()


@dataclass(frozen=True, eq=False)
class KnownRows:
    """Rows whose membership is known.

    Attributes:
        rows: ``(n, d)`` in the model's type.
        labels: ``(n,)``, as `Job.labels`.
        member: ``(n,)``, whether the row was trained on.
        datasets: that they are of.
        training: what else is known of the training, or None.
    """

    rows: NDArray[Any] = field(repr=False)
    labels: NDArray[Any] = field(repr=False)
    member: NDArray[np.bool_] = field(repr=False)
    datasets: tuple[Dataset, ...]
    training: TrainingRows | None = None

    def only_members(self) -> KnownRows:
        """Those that were trained on."""
        chosen = self.member
        return KnownRows(
            self.rows[chosen],
            self.labels[chosen],
            chosen[chosen],
            self.datasets[:1],
            self.training,
        )


def known_rows(context: Context) -> KnownRows | None:
    """What `--training` or `--train-data` names; None where neither is given.

    Raises:
        AssessmentError: the rows do not fit the model.
    """
    given = context.job.extras.get("training")
    if not isinstance(given, TrainingRows):
        return _beside_held_out(context)
    if "known rows" not in context.cache:
        rows, _ = fit_rows(context.job.spec, given.rows)
        known = KnownRows(rows, given.labels, given.member, given.datasets, given)
        context.cache["known rows"] = known
    found: KnownRows = context.cache["known rows"]
    return found


def training_rows(context: Context) -> KnownRows | None:
    """The rows that were trained on: of `--train-data`, or else of `--training`.

    Raises:
        AssessmentError: the rows do not fit the model.
    """
    known = _beside_held_out(context) or known_rows(context)
    return None if known is None else known.only_members()


def row_digest(row: NDArray[Any]) -> str:
    """Names a row without showing it: the start of its SHA-256."""
    return hashlib.sha256(np.ascontiguousarray(row).tobytes()).hexdigest()[:16]


def _beside_held_out(context: Context) -> KnownRows | None:
    given = context.job.extras.get("training data")
    if not isinstance(given, Holdout):
        return None
    if "training data" not in context.cache:
        context.cache["training data"] = _fitted(given, context)
    found: KnownRows = context.cache["training data"]
    return found


def _fitted(given: Holdout, context: Context) -> KnownRows:
    job = context.job
    given = arranged(given, job.spec, job.column_names)
    rows, _ = fit_rows(job.spec, context.target.texts.placed(given))
    labels = truth_of(given, job.reading)
    used = Dataset(
        given.name, "train", len(given), datasets.digest(given.features, labels)
    )
    return KnownRows(
        np.concatenate([rows, job.rows]),
        np.concatenate([labels, job.labels]),
        np.arange(len(rows) + len(job.rows)) < len(rows),
        (used, job.dataset),
    )
