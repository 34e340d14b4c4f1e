"""What a model answers, in one form: scores per class, labels, or both.

Models say the same thing in many ways: probabilities, logits, one score for two
classes, a map of class names (zipmap), text labels. This reads any of them, and says
which it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from security.errors import AssessmentError

__all__ = ["Answers", "Reading", "read_answers", "read_labels", "settle"]

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Answers:
    """A model's answers about some rows.

    Attributes:
        scores: ``(n, classes)`` float64, higher for likelier; where the model gives
            labels only, 1 for its label and 0 for the others.
        labels: ``(n,)`` int64, the model's decision; -1 where it answers no number, or
            no known class.
    """

    scores: Floats
    labels: Labels

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def finite(self) -> NDArray[np.bool_]:
        """Rows whose scores are all numbers."""
        return np.asarray(np.isfinite(self.scores).all(axis=1))

    def margins(self, truth: Labels) -> Floats:
        """The true class's score above the best other's ``(n,)``; NaN where unknown."""
        rows = np.arange(len(self.labels))
        others = self.scores.copy()
        others[rows, truth] = -np.inf
        return np.asarray(self.scores[rows, truth] - others.max(axis=1))

    def wrong(self, truth: Labels) -> NDArray[np.bool_]:
        """Rows given another class, strictly: no tie and no NaN counts as one."""
        with np.errstate(invalid="ignore"):
            below = self.margins(truth) < 0
        return np.asarray((self.labels >= 0) & (self.labels != truth) & below)


@dataclass(frozen=True)
class Reading:
    """How a model's outputs are read.

    Attributes:
        output: name of the output with scores, or with labels if there are no others.
        label_output: name of a second output with the decision, or None.
        form: "probabilities", "scores" (logits and anything else) or "labels".
        classes: names, in the order of the scores.
        single: the output has one score for two classes: above `threshold`, the second.
        threshold: 0.5 of a probability, 0 of a logit.
    """

    output: str
    label_output: str | None
    form: str
    classes: tuple[str, ...]
    single: bool = False
    threshold: float = 0.0
    index: Mapping[Any, int] = field(default_factory=dict, repr=False)


def settle(
    outputs: Mapping[str, Any],
    classes: Sequence[str],
    known: int,
    wanted: str | None = None,
) -> Reading:
    """Decide how outputs are read, from answers about real rows.

    Args:
        outputs: by name, as onnxruntime or the endpoint gave them.
        classes: names that are known from elsewhere (manifest, configuration), or none.
        known: how many classes the data has.
        wanted: the output to read, or None to find it.

    Raises:
        AssessmentError: no output looks like scores or labels of a classifier.
    """
    if wanted is not None and wanted not in outputs:
        raise AssessmentError(
            f"no output {wanted!r}; there are: {', '.join(sorted(outputs))}"
        )
    candidates = {wanted: outputs[wanted]} if wanted is not None else outputs
    scores = [name for name, value in candidates.items() if _is_scores(value)]
    labels = [name for name, value in outputs.items() if _is_labels(value)]
    if scores:
        best = max(scores, key=lambda name: _rank(name, outputs[name], known))
        label = next((name for name in labels if name != best), None)
        return _score_reading(best, outputs[best], label, classes, known)
    if wanted in labels or (wanted is None and labels):
        name = wanted or labels[0]
        return _label_reading(name, outputs[name], classes, known)
    shapes = ", ".join(f"{n!r} {np.shape(v)}" for n, v in sorted(outputs.items()))
    raise AssessmentError(f"no output has scores or labels per row: {shapes[:200]}")


def read_answers(outputs: Mapping[str, Any], reading: Reading, rows: int) -> Answers:
    """Answers about ``rows`` rows.

    Raises:
        AssessmentError: they have another shape than before.
    """
    value = outputs[reading.output]
    if reading.form == "labels":
        labels = read_labels(value, reading)
        _check_rows(len(labels), rows)
        scores = np.zeros((rows, len(reading.classes)))
        known = labels >= 0
        scores[np.arange(rows)[known], labels[known]] = 1.0
        scores[~known] = np.nan
        return Answers(scores, labels)
    scores = _scores(value, reading)
    _check_rows(len(scores), rows)
    if scores.shape[1] != len(reading.classes):
        raise AssessmentError(
            f"output {reading.output!r} has {scores.shape[1]} scores per row, "
            f"not {len(reading.classes)}"
        )
    finite = np.isfinite(scores).all(axis=1)
    decided = np.where(finite, np.argmax(np.nan_to_num(scores), axis=1), -1)
    if reading.label_output is not None:
        own = read_labels(outputs[reading.label_output], reading)
        _check_rows(len(own), rows)
        decided = np.where(finite, own, -1)
    return Answers(scores, decided.astype(np.int64))


def read_labels(value: Any, reading: Reading) -> Labels:
    """Class indices of a label output; -1 for a label that is no known class."""
    flat = np.asarray(value).reshape(-1).tolist()
    if reading.index:
        return np.array([reading.index.get(_key(item), -1) for item in flat], np.int64)
    labels = np.array([int(item) for item in flat], dtype=np.int64)
    inside = (labels >= 0) & (labels < len(reading.classes))
    return np.where(inside, labels, -1)


def _check_rows(given: int, asked: int) -> None:
    if given != asked:
        raise AssessmentError(f"the model answers {given} rows where {asked} were sent")


def _is_zipmap(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _is_scores(value: Any) -> bool:
    if _is_zipmap(value):
        return True
    array = np.asarray(value)
    return array.dtype.kind == "f" and array.ndim >= 1 and _flat(array).ndim == 2


def _is_labels(value: Any) -> bool:
    if _is_zipmap(value):
        return False
    array = np.asarray(value)
    per_row = array.ndim == 1 or (array.ndim == 2 and array.shape[1] == 1)
    return per_row and array.dtype.kind in "biuOUS"


def _flat(array: NDArray[Any]) -> NDArray[Any]:
    """``(n, classes)`` from shapes with axes of length 1, such as ``(n, k, 1, 1)``."""
    if array.ndim == 1:
        return array[:, None]
    wide = [size for size in array.shape[1:] if size != 1]
    return array.reshape(len(array), -1) if len(wide) <= 1 else array


def _rank(name: str, value: Any, known: int) -> tuple[bool, bool, bool, str]:
    """Of several score outputs: the one per class, of probabilities, by its name."""
    if _is_zipmap(value):
        return True, True, True, name
    array = _flat(np.asarray(value))
    named = any(part in name.lower() for part in ("prob", "logit", "score"))
    return array.shape[1] >= max(2, known), _is_distribution(array), named, name


def _is_distribution(scores: NDArray[Any]) -> bool:
    finite = scores[np.isfinite(scores).all(axis=1)]
    if not len(finite):
        return False
    total = np.abs(finite.sum(axis=1, dtype=np.float64) - 1).max()
    return bool(total < 1e-2 and finite.min() >= -1e-6)


def _score_reading(
    name: str, value: Any, label: str | None, classes: Sequence[str], known: int
) -> Reading:
    if _is_zipmap(value):
        keys = list(value[0])
        names = tuple(str(key) for key in keys)
        index = {_key(key): place for place, key in enumerate(keys)}
        return Reading(name, label, "probabilities", names, index=index)
    array = _flat(np.asarray(value, dtype=np.float64))
    width = array.shape[1]
    if width == 1:
        finite = array[np.isfinite(array)]
        inside = bool(len(finite)) and finite.min() >= 0 and finite.max() <= 1
        names = _names(classes, 2)
        form, threshold = ("probabilities", 0.5) if inside else ("scores", 0.0)
        return Reading(name, None, form, names, single=True, threshold=threshold)
    form = "probabilities" if _is_distribution(array) else "scores"
    return Reading(name, label, form, _names(classes, width))


def _label_reading(
    name: str, value: Any, classes: Sequence[str], known: int
) -> Reading:
    array = np.asarray(value).reshape(-1)
    if array.dtype.kind in "OUS":
        seen = classes or sorted({str(item) for item in array.tolist()})
        index: dict[Any, int] = {str(item): place for place, item in enumerate(seen)}
        return Reading(name, None, "labels", tuple(map(str, seen)), index=index)
    width = max(int(array.max(initial=0)) + 1, known, 2)
    return Reading(name, None, "labels", _names(classes, width))


def _names(classes: Sequence[str], width: int) -> tuple[str, ...]:
    if classes and len(classes) != width:
        raise AssessmentError(
            f"{len(classes)} classes are named, the model's output has {width}"
        )
    return tuple(classes) or tuple(str(index) for index in range(width))


def _key(item: Any) -> Any:
    if isinstance(item, bytes):
        return item.decode("utf-8", "replace")
    return item if isinstance(item, str) else int(item)


def _scores(value: Any, reading: Reading) -> Floats:
    if _is_zipmap(value):
        keys = list(reading.index)
        return np.array(
            [[row.get(key, np.nan) for key in keys] for row in value], dtype=np.float64
        )
    array = _flat(np.asarray(value, dtype=np.float64))
    if not reading.single:
        return np.asarray(array.reshape(len(array), -1))
    # One score for two classes: as far above the threshold as below it.
    second = array[:, 0] - reading.threshold
    return np.stack([-second, second], axis=1)
