"""Answers that were bought once, as a classifier that ART's attacks can ask again."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from security.assessment.art_library import art
from security.errors import AssessmentError

__all__ = ["bought_answers"]


def bought_answers(rows: NDArray[Any], scores: NDArray[np.float64]) -> Any:
    """ART's classifier over stored answers: nobody is asked twice.

    Args:
        rows: ``(n, d)``, as attacks will ask for them.
        scores: ``(n, classes)``, the answers.
    """
    kept = np.ascontiguousarray(rows, dtype=np.float32)
    answers = scores.astype(np.float32)
    places = {row.tobytes(): place for place, row in enumerate(kept)}

    def predict(asked: NDArray[Any]) -> NDArray[np.float32]:
        flat = np.ascontiguousarray(asked.reshape(len(asked), -1), dtype=np.float32)
        try:
            return answers[[places[row.tobytes()] for row in flat]]
        except KeyError:
            raise AssessmentError("an attack asks for a row without answer") from None

    return art().BlackBoxClassifierNeuralNetwork(
        predict, input_shape=(kept.shape[1],), nb_classes=answers.shape[1]
    )
