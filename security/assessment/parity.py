"""Whether an imported model answers what its author says: parity evidence.

onnxruntime runs the file on the author's rows, and each answer is compared with the
author's: the class that is decided, and probabilities, scores or values. What the
evidence may show is the policy's to say; nothing here passes or fails a model, except
answers that are no numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.data.expected import Answered
from models.report import Check, Dataset, Metric, Report, Subject
from security.assessment.results import intervals
from security.assessment.targets.answers import Reading, columns_of, read_answers
from security.assessment.targets.decision import Stated, settle
from security.assessment.targets.declared import class_text, declared_outputs
from security.assessment.targets.target import OnnxTarget, arranged, fit_rows
from security.errors import AssessmentError

__all__ = ["REFERENCE", "TOLERANCE", "Comparison", "Difference", "compare"]

REFERENCE = "answers_of_the_original"
# A row is shown where a number differs by more: of 1, or of the number if it is larger.
TOLERANCE = 1e-4

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """One answer that is not the author's.

    Attributes:
        row: counted from 0.
        column: of the author's answers.
        expected, got: for people.
    """

    row: int
    column: str
    expected: str = field(repr=False)
    got: str = field(repr=False)


@dataclass(frozen=True, eq=False)
class Comparison:
    """How far a file is from its author's answers.

    Attributes:
        answered: rows and the author's answers.
        agreed: rows with the same class; None if no class was said.
        gaps: absolute differences of numbers, ``(n, k)``, NaN where onnxruntime gave
            no finite number; ``k`` is 0 where none was said.
        differences: by row.
    """

    answered: Answered
    agreed: int | None
    gaps: Floats = field(repr=False)
    differences: tuple[Difference, ...] = field(repr=False)

    @property
    def differing(self) -> int:
        """Rows with a difference."""
        return len({item.row for item in self.differences})

    @property
    def largest(self) -> float | None:
        """The largest difference of a number; None where there is none to state."""
        finite = bool(self.gaps.size) and bool(np.isfinite(self.gaps).all())
        return float(self.gaps.max()) if finite else None

    def line(self) -> str:
        """For people, without a row."""
        parts = [f"{self.differing} of {len(self.answered)} rows differ"]
        if self.agreed is not None:
            parts.append(f"same class on {self.agreed}")
        if self.largest is not None:
            parts.append(f"largest difference of a {self.unit} {self.largest:.3g}")
        return "; ".join(parts)

    @property
    def unit(self) -> str:
        """Of the differences."""
        return self.answered.kind or "class"

    def report(self, subject: Subject, tools: Mapping[str, str]) -> Report:
        """The evidence, about a bundle's model."""
        given, rows = self.answered, len(self.answered)
        finite = bool(np.isfinite(self.gaps).all())
        return Report(
            kind="parity",
            created_at=datetime.now(UTC).replace(microsecond=0),
            subject=subject,
            tools=tools,
            datasets=(Dataset(given.name, "compared", rows, given.sha256),),
            conditions={
                "reference": REFERENCE,
                "runtime": "onnxruntime",
                "unit": self.unit,
                "rows": "as_given",
            },
            metrics=dict(self._metrics()),
            checks=(Check("answers-finite", finite, "every answer is a number"),),
        )

    def _metrics(self) -> Iterator[tuple[str, Metric]]:
        rows = len(self.answered)
        yield "rows_that_differ", Metric(float(self.differing), n=rows)
        if self.agreed is not None:
            yield "label_agreement", intervals.proportion(self.agreed, rows)
        if self.largest is None:
            return
        yield "max_abs_difference", Metric(self.largest, n=rows)
        amounts = [np.abs(item).max() for item in self.answered.numbers.values()]
        if max(amounts) > 0:
            relative = self.largest / float(max(amounts))
            yield "max_relative_difference", Metric(relative, n=rows)


def compare(model: bytes, answered: Answered, stated: Stated) -> Comparison:
    """Run a model on the author's rows.

    Args:
        model: the bytes of a file whose inspection found no error.
        answered: the rows, and what the original answered.
        stated: what is known of classes, output and decision.

    Raises:
        AssessmentError: other rows than the model takes, a class that it has not, or
            numbers of another kind than it gives.
        SessionError: onnxruntime refuses the model.
    """
    target = OnnxTarget(model)
    given = arranged(answered.rows, target.spec, ())
    rows, target.shape = fit_rows(target.spec, target.texts.placed(given))
    outputs = target.outputs(rows)
    numbers, agreed, found = np.empty((len(rows), 0)), None, list[Difference]()
    if answered.kind == "value":
        numbers = _values(outputs, answered, stated.output)
    if answered.classes is not None or answered.kind in ("probability", "score"):
        said = _texts(answered.classes)
        reading = settle(
            outputs,
            Stated(stated.classes, tuple(said), stated.output, stated.decision),
            declared_outputs(model),
            compared=False,
        )
        if answered.kind in ("probability", "score"):
            numbers = _scores(outputs, reading, answered)
        if said:
            found = list(_other_classes(outputs, reading, said))
            agreed = len(said) - len(found)
    wanted = np.stack([*answered.numbers.values()], 1) if answered.numbers else numbers
    found += _other_numbers(answered, wanted, numbers)
    found.sort(key=lambda item: item.row)
    gaps = np.where(np.isfinite(numbers), np.abs(numbers - wanted), np.nan)
    return Comparison(answered, agreed, gaps, tuple(found))


def _texts(classes: NDArray[Any] | None) -> list[str]:
    return [] if classes is None else [class_text(item) for item in classes.tolist()]


def _other_classes(
    outputs: Mapping[str, Any], reading: Reading, said: list[str]
) -> Iterator[Difference]:
    """Rows whose decision is another class.

    Raises:
        AssessmentError: the author names a class that the model has not.
    """
    _known(reading, set(said))
    decided = read_answers(outputs, reading, len(said)).labels
    name = reading.output if reading.form == "labels" else reading.label_output
    own = None if name is None else np.asarray(outputs[name]).reshape(-1).tolist()
    for row, (place, text) in enumerate(zip(decided.tolist(), said)):
        if place != reading.index[text]:
            got = class_text(own[row]) if own is not None else reading.classes[place]
            yield Difference(row, "prediction", text, got)


def _known(reading: Reading, said: set[str]) -> None:
    strange = said - set(reading.index)
    if strange:
        raise AssessmentError(
            f"{min(strange)[:40]!r} is none of the model's classes "
            f"{', '.join(reading.classes)[:100]}; name them as `classes` in the data "
            "configuration, in the scores' order"
        )


def _scores(outputs: Mapping[str, Any], reading: Reading, answered: Answered) -> Floats:
    """The model's scores of what the author's are of ``(n, k)``."""
    if reading.form == "labels":
        raise AssessmentError(f"the model gives no {answered.kind}, only labels")
    named = [class_text(of) for of in answered.numbers if of]
    _known(reading, set(named))
    if not named and len(reading.classes) != 2:
        raise AssessmentError(
            f"the model has {len(reading.classes)} classes: name columns "
            f"{answered.kind}:CLASS for {', '.join(reading.classes)[:100]}"
        )
    places = [reading.index[text] for text in named] or [1]
    return read_answers(outputs, reading, len(answered)).scores[:, places]


def _values(
    outputs: Mapping[str, Any], answered: Answered, wanted: str | None
) -> Floats:
    """The numbers that the model answers, of the places that the author's have."""
    found = {
        name: columns_of(value)
        for name, value in outputs.items()
        if wanted in (None, name) and np.asarray(value).dtype.kind in "iuf"
    }
    if len(found) != 1 or min(item.ndim for item in found.values()) != 2:
        raise AssessmentError(
            f"{len(found)} outputs have numbers ({', '.join(outputs)[:100]}); state "
            "--output"
        )
    (numbers,) = found.values()
    if len(numbers) != len(answered):
        raise AssessmentError(
            f"the model answers {len(numbers)} rows where {len(answered)} were sent"
        )
    places = [int(of) if of.isdecimal() else -1 for of in answered.numbers if of] or [0]
    if numbers.shape[1] != len(places) or sorted(places) != list(range(len(places))):
        raise AssessmentError(
            f"the model answers {numbers.shape[1]} numbers per row: name columns "
            "value:0, value:1, … for all of them, or value for the only one"
        )
    return numbers[:, places].astype(np.float64)


def _other_numbers(
    answered: Answered, wanted: Floats, got: Floats
) -> Iterator[Difference]:
    names = [f"{answered.kind}:{of}".rstrip(":") for of in answered.numbers]
    limits = TOLERANCE * np.maximum(1, np.abs(wanted))
    with np.errstate(invalid="ignore"):
        apart = ~(np.abs(got - wanted) <= limits)
    for row, place in zip(*np.nonzero(apart)):
        yield Difference(
            int(row),
            names[place],
            f"{wanted[row, place]:.6g}",
            f"{got[row, place]:.6g}",
        )
