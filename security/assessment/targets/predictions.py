"""Predictions without a model: what it once answered, and nothing that can be asked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Never

import numpy as np
from numpy.typing import NDArray

from models.data.held_out import Predictions
from security.assessment.targets.answers import Answers, Reading
from security.assessment.targets.dataconfig import DataConfig
from security.assessment.targets.decision import Stated
from security.assessment.targets.space import Space
from security.assessment.targets.target import InputSpec
from security.assessment.targets.texts import Texts
from security.errors import AssessmentError

__all__ = ["NO_SPACE", "NoTarget", "predicted_reading", "predicted_scores"]

# By so much the probabilities of a row may miss 1: they are written with few digits.
_SUM = 1e-2

NO_SPACE = Space(
    low=np.empty(0),
    high=np.empty(0),
    scale=np.empty(0),
    dtype=np.dtype(np.float64),
    integer=np.empty(0, dtype=bool),
    rules=(),
    ranges_from="none",
    units="raw",
    table=True,
)


@dataclass
class NoTarget:
    """Stands where a target would; every question is refused."""

    name: str
    kind: str = "predictions"
    sha256: str | None = None
    queries: int = 0
    spec: InputSpec = field(default=InputSpec("none", "float64", ()))
    shape: tuple[int, ...] = ()
    texts: Texts = field(default_factory=Texts)
    reading: Reading = field(init=False)

    def calibrate(self, rows: NDArray[Any], stated: Stated) -> Answers:
        """As `Target`.

        Raises:
            AssessmentError: always.
        """
        del stated
        return self.ask(rows)

    def ask(self, rows: NDArray[Any]) -> Never:
        """As `Target`.

        Raises:
            AssessmentError: always.
        """
        raise AssessmentError(f"{len(rows)} rows: there is no model to ask")

    def close(self) -> None:
        """Nothing is open."""


def predicted_reading(
    given: Predictions, config: DataConfig, decision: str | None = None
) -> Reading:
    """How predictions are read: as stated, nothing from the values of scores.

    They are numbers where ``--decision number`` says so, or one has a fraction. The
    classes are those of the configuration, else those of truth and predictions, numbers
    in their order.

    Raises:
        AssessmentError: there are not as many scores as classes, nor one for two; or
            the positive class is none of them.
    """
    fractions = "f" in (given.labels.dtype.kind, given.decided.dtype.kind)
    if decision == "number" or (decision is None and fractions):
        return Reading(config.prediction, None, "number", ())
    found = {*given.labels.tolist(), *given.decided.tolist()}
    number = all(isinstance(item, int) for item in found)
    names = sorted(found) if number else sorted(map(str, found))
    classes = config.classes or tuple(map(str, names))
    width = given.features.shape[1]
    if config.positive is not None and config.positive not in classes:
        raise AssessmentError(
            f"positive: {config.positive!r} is none of the classes "
            f"{', '.join(classes)[:100]}"
        )
    if width not in (0, len(classes)) and (width, len(classes)) != (1, 2):
        raise AssessmentError(
            f"{given.name}: {width} scores per row for {len(classes)} classes; one per "
            "class, or for two classes one of the positive class"
        )
    form = "probabilities" if given.probabilities else "scores"
    output = ",".join(given.columns) or config.prediction
    return Reading(output, None, form if width else "labels", classes)


def predicted_scores(
    given: Predictions,
    decided: NDArray[np.int64],
    reading: Reading,
    positive: str | None,
) -> NDArray[np.float64]:
    """Scores per class ``(n, classes)``; 1 for the class given where there are none.

    Args:
        given: the predictions.
        decided: ``(n,)``, the classes given.
        reading: how they are read.
        positive: of two classes the one that a single score is of, or the second.

    Raises:
        AssessmentError: probabilities of a row that do not sum to 1.
    """
    scores = given.features
    if reading.form == "labels":
        return np.eye(len(reading.classes))[decided]
    if scores.shape[1] == 1:
        own = scores[:, 0]
        other = 1 - own if given.probabilities else -own
        second = positive is None or reading.classes.index(positive) == 1
        return np.stack([other, own] if second else [own, other], axis=1)
    off = np.abs(scores.sum(axis=1) - 1) > _SUM
    if given.probabilities and off.any():
        raise AssessmentError(
            f"{given.name}: the probabilities of row {int(np.flatnonzero(off)[0])} do "
            "not sum to 1"
        )
    return scores
