"""What a model answers about rows: its decision, and its scores, by one reading.

How outputs are read is settled once, by `decision`; this applies it, to every row that
any check asks about.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from security.assessment.targets.declared import class_text
from security.errors import AssessmentError

__all__ = ["Answers", "Reading", "columns_of", "read_answers", "read_labels"]

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]
_SHOWN_CLASSES = 10


@dataclass(frozen=True, eq=False)
class Answers:
    """A model's answers about some rows.

    Attributes:
        scores: ``(n, classes)`` float64, higher for likelier; where the model gives
            labels only, 1 for its label and 0 for the others.
        labels: ``(n,)`` int64, the model's decision; -1 where it answers no number, or
            no known class. Of a model that predicts a number, 0 where it answers one.
        stated: the labels are the model's own, whatever the scores say.
        lead: what the second of two classes' score must be ahead by to be decided.
    """

    scores: Floats
    labels: Labels
    stated: bool = False
    lead: float = 0.0

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def finite(self) -> NDArray[np.bool_]:
        """Rows whose scores are all numbers."""
        return np.asarray(np.isfinite(self.scores).all(axis=1))

    @property
    def numbers(self) -> Floats:
        """What a model that predicts a number answers ``(n,)``; NaN for none."""
        return np.where(self.labels >= 0, self.scores[:, 0], np.nan)

    @property
    def decisions(self) -> Floats:
        """``(n, classes)``: 1 for the class that is decided, NaN for none."""
        return _one_hot(self.labels, self.scores.shape[1])

    @property
    def confidence(self) -> Floats:
        """The decided class's score ``(n,)``; NaN where nothing is decided."""
        own = self.scores[np.arange(len(self)), np.maximum(self.labels, 0)]
        return np.where(self.labels >= 0, own, np.nan)

    def margins(self, truth: Labels) -> Floats:
        """How far a row is from another decision ``(n,)``; NaN where unknown.

        The true class's score above the best other's. Where the model states its
        labels, they have the sign and scores the order: between 0 and 2 for rows that
        are right, -2 and 0 for others.
        """
        rows = np.arange(len(self.labels))
        scores = self.scores.copy()
        if self.lead:
            scores[:, 1] -= self.lead
        own = scores[rows, truth].copy()
        scores[rows, truth] = -np.inf
        margins = own - scores.max(axis=1)
        if not self.stated:
            return np.asarray(margins)
        side = np.where(self.labels == truth, 1.0, -1.0)
        return np.asarray(side + margins / (1 + np.abs(margins)))

    def wrong(self, truth: Labels) -> NDArray[np.bool_]:
        """Rows decided as another class, strictly: no tie and no NaN counts as one."""
        with np.errstate(invalid="ignore"):
            below = self.margins(truth) < 0
        return np.asarray((self.labels >= 0) & (self.labels != truth) & below)


@dataclass(frozen=True)
class Reading:
    """How a model's outputs are read.

    Attributes:
        output: name of the output with scores, or with labels if there are no others.
        label_output: name of a second output with the decision, or None.
        form: "probabilities", "scores" (logits and anything else), "labels", or
            "number" where there are no classes and the answer is a number.
        classes: names, in the order of the scores; none of a number.
        single: two classes are told by the second one's score: above `threshold`.
        threshold: that the second class is decided above.
        swapped: the first score is the second class's, and the other way round.
        index: places of classes by what outputs and data call them.
        notes: what a person should know about this reading.
    """

    output: str
    label_output: str | None
    form: str
    classes: tuple[str, ...]
    single: bool = False
    threshold: float = 0.0
    swapped: bool = False
    index: Mapping[str, int] = field(default_factory=dict, repr=False)
    notes: tuple[str, ...] = field(default=(), repr=False)

    @property
    def number(self) -> bool:
        """Whether the model predicts a number, and decides nothing."""
        return self.form == "number"

    def __str__(self) -> str:
        """For people.

        >>> str(Reading("p", "label", "probabilities", ("1", "2")))
        'decides by: label output; scores: probabilities of classes 1, 2'
        >>> str(Reading("price", None, "number", ()))
        'predicts: a number (output price)'
        """
        if self.number:
            return f"predicts: a number (output {self.output})"
        names = ", ".join(self.classes[:_SHOWN_CLASSES])
        more = ", and more" if len(self.classes) > _SHOWN_CLASSES else ""
        if self.form == "labels":
            return f"decides by: label output; scores: none; classes {names}{more}"
        by = "label output" if self.label_output else "largest score"
        one = "probability" if self.form == "probabilities" else "score"
        if self.single and not self.label_output:
            by = f"{one} of class {self.classes[1]} above {self.threshold:g}"
        return f"decides by: {by}; scores: {self.form} of classes {names}{more}"


def read_answers(outputs: Mapping[str, Any], reading: Reading, rows: int) -> Answers:
    """Answers about ``rows`` rows.

    Raises:
        AssessmentError: they have another shape than before.
    """
    value = outputs[reading.output]
    if reading.form == "labels":
        labels = read_labels(value, reading)
        _check_rows(len(labels), rows)
        return Answers(_one_hot(labels, len(reading.classes)), labels, stated=True)
    if reading.number:
        return _read_numbers(value, reading.output, rows)
    scores = _scores(value, reading)
    _check_rows(len(scores), rows)
    if scores.shape[1] != len(reading.classes):
        raise AssessmentError(
            f"output {reading.output!r} has {scores.shape[1]} scores per row, "
            f"not {len(reading.classes)}"
        )
    finite = np.isfinite(scores).all(axis=1)
    if reading.label_output is not None:
        own = read_labels(outputs[reading.label_output], reading)
        _check_rows(len(own), rows)
        return Answers(scores, np.where(finite, own, -1), stated=True)
    lead = _lead(reading)
    decided = np.argmax(np.nan_to_num(scores), axis=1)
    if lead:
        decided = (scores[:, 1] - scores[:, 0] > lead).astype(np.int64)
    return Answers(scores, np.where(finite, decided, -1).astype(np.int64), lead=lead)


def read_labels(value: Any, reading: Reading) -> Labels:
    """Class indices of a label output; -1 for a label that is no known class."""
    flat = np.asarray(value).reshape(-1).tolist()
    known = {value: reading.index.get(class_text(value), -1) for value in {*flat}}
    return np.fromiter(map(known.__getitem__, flat), np.int64, len(flat))


def columns_of(value: Any) -> NDArray[Any]:
    """``(n, classes)`` from shapes with axes of length 1, such as ``(n, k, 1, 1)``."""
    array = np.asarray(value)
    if array.ndim == 1:
        return array[:, None]
    wide = [size for size in array.shape[1:] if size != 1]
    return array.reshape(len(array), -1) if len(wide) <= 1 else array


def _read_numbers(value: Any, name: str, rows: int) -> Answers:
    """One number for each row; others than finite ones are no answer."""
    numbers = np.asarray(columns_of(value), np.float64).reshape(len(value), -1)
    _check_rows(len(numbers), rows)
    if numbers.shape[1] != 1:
        raise AssessmentError(
            f"output {name!r} has {numbers.shape[1]} numbers per row, a scan is of one"
        )
    return Answers(numbers, np.where(np.isfinite(numbers[:, 0]), 0, -1))


def _one_hot(labels: Labels, classes: int) -> Floats:
    scores = np.zeros((len(labels), classes))
    known = labels >= 0
    scores[np.arange(len(labels))[known], labels[known]] = 1.0
    scores[~known] = np.nan
    return scores


def _check_rows(given: int, asked: int) -> None:
    if given != asked:
        raise AssessmentError(f"the model answers {given} rows where {asked} were sent")


def _lead(reading: Reading) -> float:
    """The threshold, as a difference of the second score to the first."""
    if not reading.single:
        return 0.0
    middle = 1.0 if reading.form == "probabilities" else 0.0
    return 2 * reading.threshold - middle


def _scores(value: Any, reading: Reading) -> Floats:
    if isinstance(value, list):  # a map of each row's classes
        keys = {reading.index.get(class_text(key)): key for key in value[0]}
        order = [keys.get(place) for place in range(len(reading.classes))]
        return np.array([[row.get(key, np.nan) for key in order] for row in value])
    array = np.asarray(columns_of(value), dtype=np.float64)
    scores = array.reshape(len(array), -1)
    if scores.shape[1] != 1 or not reading.single:
        return scores[:, ::-1] if reading.swapped else scores
    # One score for two classes: the first class has what the second leaves.
    second = scores[:, 0]
    first = 1 - second if reading.form == "probabilities" else -second
    return np.stack([first, second], axis=1)
