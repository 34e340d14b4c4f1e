"""Which histograms a model has, as its signed manifest says, and what falls where.

Only what is public decides: ranges and categories of columns, bounds of other inputs,
labels of classes. What has none of them is not counted. An event is one row with its
answer; in each histogram it has one code, so that one event moves each by one::

    0         missing: NaN, or an output that was not asked for
    1         below the range
    2 … n+1   the bins
    n+2       above the range
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.manifest import Column, Manifest, Tensor
from sealgate.protocol.datatypes import numbers
from sealgate.protocol.tensors import Array
from security.errors import MonitoringError

__all__ = ["BINS", "Histogram", "Layout", "described", "layout_of"]

# Under noise, twice as many need half as many subjects more.
BINS = 10
# More categories than this share bins; a tensor with more columns than this is counted
# by its rows' mean place in their ranges, since noise grows with every histogram.
MAX_BINS = 64
MAX_COLUMNS = 64
# Codes are bytes: a model of more classes is counted by its score only.
MAX_CLASSES = 250
_OUTSIDE = 3
# Of a bin: ends of ranges belong to them, however they are rounded to 32 bits.
_TOLERANCE = 1e-5
_NUMBERS = "fiub"


@dataclass(frozen=True)
class Histogram:
    """One histogram.

    Attributes:
        name: ``input/COLUMN``, ``answer/class``, ``answer/score`` or ``answer/NAME``.
        kind: "number", "category", "class" or "score".
        low, high: of its bins' range, which are equally wide.
        bins: their number.
        labels: of categories or classes, where each has a bin.
    """

    name: str
    kind: str
    low: float
    high: float
    bins: int = BINS
    labels: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Codes that there are."""
        return self.bins + _OUTSIDE

    def to_object(self) -> dict[str, Any]:
        """What its codes mean, as JSON values."""
        named = {"labels": list(self.labels)} if self.labels else {}
        ends = {"low": self.low, "high": self.high}
        return {
            "name": self.name,
            "kind": self.kind,
            **ends,
            "bins": self.bins,
            **named,
        }


@dataclass(frozen=True, eq=False)
class _Part:
    """The histograms of one tensor: where its values fall, all columns at once.

    A value's place is ``value * scale + offset``: bin k is from k + 2 to k + 3.
    """

    tensor: str
    batched: bool
    at: slice
    scale: NDArray[np.float64]
    offset: NDArray[np.float64]
    above: NDArray[np.float64]
    mean: bool = False
    classes: int = 0
    abstains: bool = False

    def place(self, array: Array, rows: slice, found: NDArray[np.uint8]) -> None:
        """Write the codes of some rows."""
        values = array[rows] if self.batched else array[None]
        if self.batched and len(values) != len(found):
            return  # of fewer rows than the request: missing in the others
        values = values.reshape(len(values), -1)
        if self.abstains:  # a row without any score has no answer: it is missing
            values = np.where(values.any(axis=1, keepdims=True), values, np.nan)
        if self.classes:
            best = values.argmax(axis=1)
            values = values.max(axis=1, keepdims=True)
            known = ~np.isnan(values[:, 0])
            found[:, self.at.start - 1] = np.where(known, best + 2, 0)
        with np.errstate(over="ignore", invalid="ignore"):
            place = np.multiply(values, self.scale, dtype=np.float64)
            place += self.offset
            if self.mean:
                place = place.mean(axis=1, keepdims=True)
            np.maximum(place, 1.0, out=place)
            np.minimum(place, self.above, out=place)
            # NaN has come through, and is 0 in the end.
            found[:, self.at] = np.fmax(place, 0.0, out=place)


class Layout:
    """A model's histograms.

    Attributes:
        histograms: in the order of an event's codes.
    """

    def __init__(
        self,
        histograms: Sequence[Histogram],
        inputs: Sequence[_Part],
        outputs: Sequence[_Part],
    ) -> None:
        self.histograms = tuple(histograms)
        self._inputs, self._outputs = tuple(inputs), tuple(outputs)

    @property
    def width(self) -> int:
        """Codes of an event."""
        return len(self.histograms)

    @property
    def sensitivity(self) -> float:
        """How far one event moves all counts together, in Euclidean length."""
        return math.sqrt(len(self.histograms))

    def describe(self) -> list[dict[str, Any]]:
        """What each histogram's codes mean, in their order, as JSON values."""
        return [item.to_object() for item in self.histograms]

    def codes(
        self, inputs: Mapping[str, Array], outputs: Mapping[str, Array], rows: slice
    ) -> NDArray[np.uint8]:
        """The codes of some rows, shape (rows, histograms).

        Args:
            inputs: as the model took them.
            outputs: those that were asked for.
            rows: which, from where to where; of a model that takes one row, that one.
        """
        shape = rows.stop - rows.start, len(self.histograms)
        found = np.zeros(shape, dtype=np.uint8)
        for parts, arrays in ((self._inputs, inputs), (self._outputs, outputs)):
            for part in parts:
                array = arrays.get(part.tensor)
                if array is not None:
                    array = numbers(array)  # of BF16; others stay
                    if array.dtype.kind in _NUMBERS:
                        part.place(array, rows, found)
        return found

    def counts(self, codes: NDArray[np.uint8]) -> dict[str, NDArray[np.int64]]:
        """How many events have each code, by histogram.

        Args:
            codes: of events, shape (events, histograms).
        """
        return {
            item.name: np.bincount(codes[:, at], minlength=item.size)[: item.size]
            for at, item in enumerate(self.histograms)
        }


def described(value: Any) -> tuple[Histogram, ...]:
    """What `Layout.describe` said: of a release, or of a model not served here.

    Raises:
        MonitoringError: it did not say this.
    """
    try:
        return tuple(
            Histogram(**{**item, "labels": tuple(item.get("labels", ()))})
            for item in value
        )
    except (TypeError, AttributeError):
        raise MonitoringError("histograms are not described as they should") from None


def layout_of(manifest: Manifest) -> Layout:
    """The histograms of a model.

    >>> from sealgate.protocol.tensors import TensorSpec
    >>> given = Tensor(TensorSpec("x", "FP32", (-1, 1)), (Column("age", 0, 100),))
    >>> scores = Tensor(TensorSpec("p", "FP32", (-1, 2)), labels=("no", "yes"))
    >>> layout = layout_of(Manifest("toy", "1", (given,), (scores,), 9))
    >>> [item.name for item in layout.histograms]
    ['input/age', 'answer/class', 'answer/score']
    >>> answer = {"p": np.array([[0.25, 0.75]])}
    >>> layout.codes({"x": np.array([[100.0]])}, answer, slice(0, 1)).tolist()
    [[11, 3, 7]]
    """
    found: list[Histogram] = []
    several = len(manifest.inputs) > 1
    inputs = [_input(item, found, several=several) for item in manifest.inputs]
    outputs = [_output(item, found) for item in manifest.outputs]
    if manifest.output_policy.abstain:
        outputs = [
            replace(item, abstains=True) if item and item.classes else item
            for item in outputs
        ]
    return Layout(found, list(filter(None, inputs)), list(filter(None, outputs)))


def _input(tensor: Tensor, found: list[Histogram], *, several: bool) -> _Part | None:
    name, columns = tensor.spec.name, tensor.columns
    ends = [(column.low, column.high) for column in columns]
    if len(columns) > MAX_COLUMNS:
        new = [Histogram(f"input/{name}", "number", 0.0, 1.0)]
        return _part(tensor, found, new, ends, mean=True)
    if columns:
        prefix = f"input/{name}." if several else "input/"
        return _part(tensor, found, [_column(item, prefix) for item in columns])
    if tensor.bounds is not None:
        new = [Histogram(f"input/{name}", "number", *tensor.bounds)]
        return _part(tensor, found, new, mean=True)
    return None


def _output(tensor: Tensor, found: list[Histogram]) -> _Part | None:
    labels = tensor.labels
    if labels and len(tensor.spec.shape) == 2:
        if any(item.kind == "class" for item in found) or len(labels) > MAX_CLASSES:
            return None
        ends = -0.5, len(labels) - 0.5
        found.append(Histogram("answer/class", "class", *ends, len(labels), labels))
        # The largest of k probabilities is at least 1/k.
        least = 1.0 / len(labels) if len(labels) > 1 else 0.0
        new = [Histogram("answer/score", "score", least, 1.0)]
        return _part(tensor, found, new, classes=len(labels))
    if tensor.bounds is not None:
        new = [Histogram(f"answer/{tensor.spec.name}", "number", *tensor.bounds)]
        return _part(tensor, found, new, mean=True)
    return None


def _column(column: Column, prefix: str) -> Histogram:
    name, count = f"{prefix}{column.name}", len(column.categories)
    if not count:
        return Histogram(name, "number", column.low, column.high)
    ends = -0.5, count - 0.5
    if count > MAX_BINS:
        return Histogram(name, "category", *ends, MAX_BINS)
    return Histogram(name, "category", *ends, count, column.categories)


def _part(
    tensor: Tensor,
    found: list[Histogram],
    new: Sequence[Histogram],
    ends: Sequence[tuple[float, float]] = (),
    *,
    mean: bool = False,
    classes: int = 0,
) -> _Part:
    """The next histograms; with ends of ranges where they are not the histograms'."""
    at = slice(len(found), len(found) + len(new))
    found.extend(new)
    low, high = np.array(ends or [(item.low, item.high) for item in new]).T
    bins = np.array([item.bins for item in new], dtype=np.float64)
    # Both ends belong to the range: it is stretched by a tolerance at each.
    scale = (bins - 2 * _TOLERANCE) / (high - low)
    spec = tensor.spec
    return _Part(
        tensor=spec.name,
        batched=spec.shape[:1] == (-1,),
        at=at,
        scale=scale,
        offset=2 + _TOLERANCE - low * scale,
        above=bins + 2,
        mean=mean,
        classes=classes,
    )
