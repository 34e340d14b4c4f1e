"""Rows of a file as a model takes them, and their truth as it counts it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.data.held_out import Holdout
from security.assessment.targets.answers import Reading
from security.assessment.targets.declared import class_text, is_number
from security.errors import AssessmentError

__all__ = ["class_indices", "data_classes", "truth_of"]

Labels = NDArray[np.int64]


def data_classes(holdout: Holdout) -> tuple[str, ...]:
    """The classes of the data, as text; none where the truth has fractions."""
    if holdout.labels.dtype.kind == "f":
        return ()
    return tuple({class_text(item) for item in holdout.labels.tolist()})


def truth_of(holdout: Holdout, reading: Reading) -> NDArray[Any]:
    """The rows' truth as the model counts it: classes, int64; or numbers, float64.

    Raises:
        AssessmentError: a class that the model does not have, or a text for a number.
    """
    if not reading.number:
        return class_indices(holdout, reading.classes, reading.index)
    if holdout.labels.dtype.kind not in "biuf":
        raise AssessmentError(
            f"{holdout.name}: the truth is text, and the model predicts a number"
        )
    return holdout.labels.astype(np.float64)


def class_indices(
    holdout: Holdout, classes: Sequence[str], called: Mapping[str, int] | None = None
) -> Labels:
    """The data's classes as the model counts them.

    Args:
        holdout: whose classes are names, or whole numbers.
        classes: names, in the order of the model's scores.
        called: their places by what else the model calls them.

    Raises:
        AssessmentError: a class that the model does not have.
    """
    if holdout.labels.dtype.kind == "f":
        broken = int(np.argmax(holdout.labels % 1 != 0))
        raise AssessmentError(
            f"{holdout.name}: {holdout.labels[broken]:g} (row {broken}) as a class is "
            "not a whole number"
        )
    values = [class_text(item) for item in holdout.labels.tolist()]
    places = {str(name): place for place, name in enumerate(classes)}
    counted = holdout.labels.dtype.kind in "iu" and bool(holdout.classes)
    if counted and {*holdout.classes} <= {*places}:
        # A data set whose classes have names counts them in its own order.
        places = {str(i): places[name] for i, name in enumerate(holdout.classes)}
    elif not {*values} <= {*places}:
        places = {**places, **(called or {})}
    if not {*values} <= {*places} and (counted or not any(map(is_number, places))):
        places |= {str(place): place for place in range(len(classes))}
    strange = [value for value in values if value not in places]
    if strange:
        raise AssessmentError(
            f"{holdout.name}: class {strange[0][:40]!r} is none of the model's "
            f"{len(classes)}: {', '.join(classes)[:100]}; where it predicts a number, "
            "state --decision number"
        )
    return np.array([places[value] for value in values], np.int64)
