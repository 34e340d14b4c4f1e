"""The quantity that is explained, and how an output gives it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models import shapley
from models.manifest import Manifest, Tensor
from sealgate.protocol.datatypes import DATATYPES
from sealgate.protocol.tensors import Array
from service.inference.batching import InferenceFailedError
from service.inference.layout import UnexplainableError

__all__ = ["Reading", "are_chances", "explained_output"]

Floats = NDArray[np.float64]
Places = NDArray[np.intp]

# How far an ensemble's sums in 64 bits may be from the session's answer in 32.
_AGREES = 1e-4


@dataclass(frozen=True)
class Reading:
    """How an output becomes the quantity that is explained.

    Attributes:
        output: its name.
        quantity: of `models.manifest.QUANTITIES`.
        classes: how many scores it has; 0 where it is one number.
        labels: their names, if they have any.
    """

    output: str
    quantity: str
    classes: int
    labels: tuple[str, ...] = ()

    @classmethod
    def of(cls, output: Tensor, quantity: str) -> Reading:
        """The reading of an output."""
        width = math.prod(output.spec.shape[1:])
        classes = width if width > 1 else 0
        return cls(output.spec.name, quantity, classes, output.labels)

    def which(self, scores: Array, asked: int | None) -> Places:
        """The class of each row that is explained."""
        if not self.classes:
            return np.zeros(len(scores), np.intp)
        if asked is not None:
            return np.full(len(scores), asked, np.intp)
        return np.asarray(scores.argmax(axis=1), np.intp)

    def values(self, scores: Array, which: Places) -> Floats:
        """The quantity of each row.

        Raises:
            InferenceFailedError: one is no number.
        """
        table = scores.reshape(len(scores), -1)
        if self.quantity == "log_odds":
            found = shapley.log_odds(_both(table), which if self.classes else which + 1)
        else:
            found = table[np.arange(len(table)), which].astype(np.float64)
        if not np.isfinite(found).all():
            raise InferenceFailedError("an answer is no number")
        return found

    def agrees(self, values: Floats, scores: Array, which: Places) -> bool:
        """Whether values found otherwise are the scores, as far as those are exact."""
        table = scores.reshape(len(scores), -1).astype(np.float64)
        given = table[np.arange(len(table)), which]
        if self.quantity == "log_odds":
            values = 1 / (1 + np.exp(-np.clip(values, -700, 700)))
        return np.allclose(values, given, rtol=_AGREES, atol=_AGREES)


def _both(table: Array) -> Array:
    """A lone probability beside what it leaves."""
    return np.c_[1 - table.astype(np.float64), table] if table.shape[1] == 1 else table


def explained_output(manifest: Manifest) -> Tensor:
    """The output that is explained.

    Raises:
        UnexplainableError: there is none, or none is named among several.
    """
    named = manifest.explanations.output
    fitting = [
        tensor
        for tensor in manifest.outputs
        if named in (None, tensor.spec.name)
        and tensor.form != "sequence"
        and DATATYPES[tensor.spec.datatype].kind == "f"
        and tensor.spec.shape[:1] == (-1,)
        and len(tensor.spec.shape) <= 2
        and -1 not in tensor.spec.shape[1:]
    ]
    labelled = [tensor for tensor in fitting if tensor.labels]
    if len(labelled) == 1:
        return labelled[0]
    if len(fitting) != 1:
        raise UnexplainableError(
            f"{len(fitting) or 'none'} of its outputs could be explained: a number, or "
            "scores, for each row; the manifest may name the one that is"
        )
    return fitting[0]


def are_chances(scores: Array) -> bool:
    """Whether several scores of each row are probabilities."""
    if scores.ndim != 2 or scores.shape[1] < 2 or not np.isfinite(scores).all():
        return False
    wide = scores.astype(np.float64)
    inside = (wide >= -_AGREES) & (wide <= 1 + _AGREES)
    return bool(inside.all() and np.abs(wide.sum(axis=1) - 1).max() < 1e-2)
