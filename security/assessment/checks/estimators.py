"""ART's classifiers around what is attacked, for the attacks that are ART's own.

estimator_of      a torch model
asking_estimator  the target, asked anew
bought_answers    answers that were bought once
library_attack    one of ART's evasion attacks, repeatably
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from security.assessment.art_library import art, repeatable
from security.assessment.plan.context import Context
from security.assessment.targets.answers import Answers
from security.errors import AssessmentError

__all__ = ["asking_estimator", "bought_answers", "estimator_of", "library_attack"]

Floats = NDArray[np.float64]


def estimator_of(model: torch.nn.Module, columns: int, classes: int) -> Any:
    """ART's classifier around a torch model in attack coordinates."""
    return art().PyTorchClassifier(
        model=model,
        loss=torch.nn.CrossEntropyLoss(),
        input_shape=(columns,),
        nb_classes=classes,
        clip_values=(0.0, 1.0),
        device_type="cpu",
    )


def asking_estimator(
    context: Context, hidden: Callable[[Answers], NDArray[np.bool_]] | None = None
) -> Any:
    """ART's classifier that asks for decisions, in attack coordinates.

    Args:
        context: of the scan.
        hidden: which answers ``(n,)`` a caller does not get: one class more is decided
            for these. None where every one counts, as robustness of the model does.
    """
    job = context.job
    space, width = job.space, job.rows.shape[1]

    def predict(z: Floats) -> NDArray[np.float32]:
        z = np.asarray(z, dtype=np.float64).reshape(-1, width)
        raw = np.clip(space.to_raw(z), space.low, space.high)
        whole = np.where(space.integer, np.round(raw), raw)
        context.check_time()
        answers = context.target.ask(whole.astype(space.dtype))
        # Decisions alone: what its attacks by labels read, whatever scores say.
        told = np.nan_to_num(answers.decisions)
        if hidden is not None:
            none = hidden(answers)
            told = np.c_[np.where(none[:, None], 0.0, told), none]
        return told.astype(np.float32)

    span = (space.high - space.low) / space.scale
    return art().BlackBoxClassifierNeuralNetwork(
        predict,
        input_shape=(width,),
        nb_classes=len(job.reading.classes) + (hidden is not None),
        clip_values=(np.zeros(width, np.float32), span.astype(np.float32)),
    )


def bought_answers(rows: NDArray[Any], scores: Floats) -> Any:
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


def library_attack(
    estimator: Any, name: str, z: Floats, labels: NDArray[np.int64], **options: Any
) -> Floats:
    """Run one of ART's own attacks, repeatably.

    Args:
        estimator: as the attack needs it.
        name: of the class in `art_library`.
        z: rows, in attack coordinates.
        labels: the classes to leave.
        options: the attack's, and ``seed``.
    """
    seed = options.pop("seed", 0) % (1 << 32)
    with repeatable(seed):
        torch.manual_seed(seed)
        method = getattr(art(), name)(estimator, **options)
        made = method.generate(x=z.astype(np.float32), y=labels)
    return np.asarray(made, dtype=np.float64)
