"""What conformal prediction adds to a manifest's outputs, and where a model abstains.

Intervals and sets are made from what leaves of the answer, so that they tell nothing
that it does not. A model that abstains is the other way round: its set is made first,
and where that is not one class, scores and decision of the row do not leave.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from models.conformal import CLASS_SCALES, NUMBER_SCALES, Conformal
from models.errors import ManifestError
from sealgate.protocol.tensors import Array, TensorSpec

__all__ = ["Conforming", "Output", "withheld_rows"]

Mask = NDArray[np.bool_]
_REAL = ("FP16", "FP32", "FP64")
# Of decisions: each has a value that means none, which is no class's.
_DECISIONS = ("INT8", "INT16", "INT32", "INT64", "BYTES")
_NONE = -1


class Output(Protocol):
    """What is known of an output: a tensor of a manifest."""

    @property
    def spec(self) -> TensorSpec:
        """Its name, datatype and shape."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes, where its last axis has their scores."""

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Of a number, its public range."""

    @property
    def form(self) -> str:
        """As `models.manifest.FORMS`."""


class Conforming:
    """One output of a manifest, with what is known of its quantile.

    Attributes:
        conformal: the quantile.
        specs: of the outputs that it adds.
        deciding: outputs that decide beside the scores, and say so where they do not.
    """

    def __init__(self, conformal: Conformal, outputs: Sequence[Output]) -> None:
        """Hold one to the other.

        Raises:
            ManifestError: there is no such output, or it is not one for the scale; or
                a name is taken.
        """
        self.conformal, self._names = conformal, conformal.names
        names = [item.spec.name for item in outputs]
        if conformal.output not in names:
            raise ManifestError(f"conformal.output: no output {conformal.output!r}")
        self._output = outputs[names.index(conformal.output)]
        _check(conformal, self._output)
        if taken := {*conformal.names} & {*names}:
            raise ManifestError(f"conformal: there is an output {min(taken)!r} already")
        spec, kind = self._output.spec, self._output.spec.datatype
        self.specs = tuple(
            TensorSpec(name, "BOOL" if conformal.of_classes else kind, spec.shape)
            for name in conformal.names
        )
        self._said = {
            item.spec.name: said
            for item in outputs
            if (said := _said_of(item, self._output.labels, conformal)) is not None
        }
        self.deciding = tuple(self._said)

    def added(self, answer: Array) -> dict[str, Array]:
        """The outputs that it adds.

        Args:
            answer: what leaves of the output, or what a set is made from.
        """
        if self.conformal.of_classes:
            return {self._names[0]: self.conformal.sets(answer)}
        low, high = self.conformal.ends(answer, self._output.bounds)
        kind = answer.dtype
        found = (_outward(low, kind, -np.inf), _outward(high, kind, np.inf))
        return dict(zip(self._names, found))

    def abstaining(self, scores: Array, decided: Mapping[str, Array]) -> Mask:
        """Rows without an answer ``(n,)``.

        Their set is not one class; or the model decides for another one, so that the
        coverage says nothing of its decision.

        Args:
            scores: that sets are made from.
            decided: of each output in `deciding`, what it gave.
        """
        inside = self.conformal.sets(scores)
        alone = np.asarray(inside.sum(axis=-1) == 1)
        return ~(alone & self.agreeing(inside.argmax(axis=-1), decided))

    def agreeing(self, classes: NDArray[Any], decided: Mapping[str, Array]) -> Mask:
        """Rows whose every decision is for a class ``(n,)``.

        Args:
            classes: places ``(n,)``.
            decided: as of `abstaining`.
        """
        result = np.ones(len(classes), np.bool_)
        for name, given in decided.items():
            result &= given.reshape(len(classes)) == self._said[name][classes]
        return result


def withheld_rows(array: Array, hidden: Mask, *, decision: bool) -> Array:
    """An output with nothing in some rows: 0, or of a decision -1 or an empty text."""
    result = array.copy()
    nothing: Any = "" if array.dtype.kind == "O" else _NONE
    result[hidden] = nothing if decision else 0
    return result


def _check(conformal: Conformal, output: Output) -> None:
    """Refuse a quantile that is not one for its output."""
    spec, name = output.spec, conformal.output
    allowed: tuple[str, ...]
    if output.form == "sequence" or spec.datatype not in _REAL:
        raise ManifestError(f"conformal: {name!r} is no output of FP16, FP32 or FP64")
    if output.labels:
        fits = len(spec.shape) == 2 and spec.shape[0] == -1 and len(output.labels) > 1
        allowed, what = CLASS_SCALES, "scores of two classes or more for each row"
    else:
        fits = spec.shape in ((-1,), (-1, 1))
        allowed, what = NUMBER_SCALES, "one number for each row (scores have labels)"
    if not fits:
        raise ManifestError(f"conformal: {name!r} is not {what}")
    if conformal.scale not in allowed:
        either = " or ".join(allowed)
        raise ManifestError(f"conformal.scale: of {name!r} it is {either}")
    positive = output.bounds is None or output.bounds[1] > 0
    if conformal.scale in ("sqrt", "log") and not positive:
        raise ManifestError(f"conformal.scale: {name!r} has no number above 0")


def _said_of(
    output: Output, labels: Sequence[str], conformal: Conformal
) -> NDArray[Any] | None:
    """What an output says of each class, where it says which one is decided."""
    spec = output.spec
    one = spec.shape[:1] == (-1,) and all(size == 1 for size in spec.shape[1:])
    if not one or output.labels or spec.datatype not in _DECISIONS:
        return None
    if spec.datatype == "BYTES":
        return np.array(labels, dtype=object)
    numbers = list(range(len(labels)))
    if conformal.decisions is None:
        with contextlib.suppress(ValueError):
            numbers = [int(label) for label in labels]
    return None if _NONE in numbers else np.array(numbers)


def _outward(ends: NDArray[np.float64], dtype: np.dtype[Any], to: float) -> Array:
    """Ends in another type, never further inside than they are."""
    if dtype == ends.dtype:
        return ends
    with np.errstate(over="ignore"):
        near: Array = ends.astype(dtype)
    inside = near > ends if to < 0 else near < ends
    return np.where(inside, np.nextafter(near, dtype.type(to)), near)
