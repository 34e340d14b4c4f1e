"""How a model's outputs are read, settled once from what is known of them.

What is known comes from the graph, from the manifest or the data configuration, and
from ``--decision``, in that order of proof. The values of rows may contradict a reading
and are then said to; they never choose one:

1. a label output decides, whatever the scores say;
2. without one, the largest of several scores does;
3. one score per row decides where the graph says that it is a probability (above 0.5)
   or a sum of products (above 0). Otherwise ``--decision`` has to say it;
4. nothing is decided where the graph ends in a regressor, where the rows' own truth has
   fractions, which no class is, or where ``--decision number`` says so: the answer is a
   number.

Classes are those that the graph lists; else those that are named; else, of a label
output alone, the values themselves.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from security.assessment.targets.answers import Reading, columns_of, read_answers
from security.assessment.targets.declared import (
    Declared,
    class_text,
    is_number,
    sorted_classes,
)
from security.errors import AssessmentError

__all__ = ["Decision", "Stated", "parse_decision", "settle"]

_GRAMMAR = re.compile(
    r"(label|number|scores)|(probability|score)>(-?[0-9]{1,9}(?:\.[0-9]{1,9})?)"
)
_CLOSE = 1e-6
_NAME_CLASSES = "name them as `classes` in the data configuration, in the scores' order"


@dataclass(frozen=True)
class Decision:
    """What ``--decision`` says.

    Attributes:
        by: "label", "number", "scores", "probability" or "score".
        threshold: of the last two: the second class is decided above it.
    """

    by: str
    threshold: float = 0.0


@dataclass(frozen=True)
class Stated:
    """What is known before the model is asked.

    Attributes:
        classes: names in the order of the scores, of the manifest or configuration.
        data: the classes of the data, as `class_text` writes them.
        output: the output to read, or None to find it.
        decision: as ``--decision``, or None.
        fractions: the truth of the data has fractions.
    """

    classes: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    output: str | None = None
    decision: str | None = None
    fractions: bool = False


def parse_decision(text: str) -> Decision:
    """What decides: ``label``, ``scores``, ``probability>T``, ``score>T``, ``number``.

    Raises:
        AssessmentError: something else, or a probability that is none.

    >>> parse_decision("probability>0.3")
    Decision(by='probability', threshold=0.3)
    """
    found = _GRAMMAR.fullmatch(text)
    if found is None:
        raise AssessmentError(
            "--decision is 'label', 'scores', 'number', 'probability>T' or 'score>T' "
            f"with a number T, not {text[:40]!r}"
        )
    if found[1]:
        return Decision(found[1])
    made = Decision(found[2], float(found[3]))
    if made.by == "probability" and not 0 < made.threshold < 1:
        raise AssessmentError("--decision: a probability is above 0 and below 1")
    return made


def settle(
    outputs: Mapping[str, Any],
    stated: Stated,
    declared: Mapping[str, Declared] | None = None,
    *,
    compared: bool = True,
) -> Reading:
    """Decide how outputs are read.

    Args:
        outputs: by name, as onnxruntime or the endpoint gave them, about real rows.
        stated: what is known of data and model.
        declared: by name, what the graph says; nothing of an endpoint.
        compared: whether labels are held to classes and scores: not where just that is
            in question.

    Raises:
        AssessmentError: no output looks like scores or labels of a classifier, or how
            they are meant cannot be known and is not stated.
    """
    decision = parse_decision(stated.decision) if stated.decision else None
    found = _Found.of(outputs, stated, declared or {})
    if found.is_number(decision):
        return found.by_number(outputs)
    if decision is not None and decision.by != "label":
        found = replace(found, label=None)
    if decision is not None and decision.by == "label" and found.label is None:
        raise AssessmentError("--decision label: the model has no label output")
    labels = found.scores is None
    reading = found.by_labels() if labels else found.by_scores(decision)
    return _checked(reading, outputs) if compared else reading


@dataclass(frozen=True, eq=False)
class _Found:
    """Outputs that were found, and what is known of them."""

    outputs: Mapping[str, Any] = field(repr=False)
    stated: Stated
    declared: Mapping[str, Declared]
    scores: str | None
    label: str | None

    @classmethod
    def of(
        cls, outputs: Mapping[str, Any], stated: Stated, known: Mapping[str, Declared]
    ) -> _Found:
        wanted = stated.output
        if wanted is not None and wanted not in outputs:
            raise AssessmentError(
                f"no output {wanted!r}; there are: {', '.join(sorted(outputs))}"
            )
        scores = [name for name, value in outputs.items() if _is_scores(value)]
        labels = [name for name, value in outputs.items() if _is_labels(value)]
        if wanted is not None:
            scores = [name for name in scores if name == wanted]
            labels = [wanted] if wanted in labels else labels if scores else []
        if not scores and not labels:
            shapes = ", ".join(
                f"{n!r} {np.shape(v)}" for n, v in sorted(outputs.items())
            )
            raise AssessmentError(
                f"no output has scores or labels per row: {shapes[:200]}"
            )
        count = len(stated.data)
        best = max(scores, key=lambda n: _rank(n, outputs[n], count), default=None)
        return cls(outputs, stated, known, best, labels[0] if labels else None)

    def is_number(self, decision: Decision | None) -> bool:
        """Whether there are no classes, and the answer is a number."""
        if decision is not None:
            return decision.by == "number"
        known = self.declared.get(self.scores or "", Declared())
        plain = self.label is None and not self.stated.classes
        return self.stated.fractions or (known.form == "number" and plain)

    def by_number(self, outputs: Mapping[str, Any]) -> Reading:
        """The answer itself.

        Raises:
            AssessmentError: it is none, or several for each row.
        """
        name = self.scores or self.label or ""
        value = outputs[name]
        if isinstance(value, list) or np.asarray(value).dtype.kind not in "biuf":
            raise AssessmentError(f"output {name!r} holds no numbers to predict")
        width = columns_of(value).reshape(len(value), -1).shape[1]
        if width != 1:
            why = ""
            if self.stated.fractions:
                why = "the truth has fractions, so it is no class; "
            raise AssessmentError(
                f"{why}output {name!r} has {width} numbers per row, a scan is of one"
            )
        return Reading(name, None, "number", ())

    def by_labels(self) -> Reading:
        """Labels alone: each class is what it is called."""
        if self.label is None:
            raise AssessmentError("--decision: the model has no scores, only labels")
        own = self._listed(self.label)
        if not own and not self.stated.classes:
            own = tuple(sorted_classes([*self._answered(), *self.stated.data]))
        classes, index = self._named(own, len(own) or len(self.stated.classes))
        return Reading(self.label, None, "labels", classes, index=index)

    def by_scores(self, decision: Decision | None) -> Reading:
        """Scores, with a label output beside them or none."""
        name = self.scores or ""
        known, value = self.declared.get(name, Declared()), self.outputs[name]
        width = len(value[0]) if isinstance(value, list) else columns_of(value).shape[1]
        own = self._listed(name) or (self._listed(self.label) if self.label else ())
        if isinstance(value, list):
            own = own or tuple(class_text(key) for key in value[0])
        classes, index = self._named(own, max(2, width))
        reading = Reading(
            name,
            self.label,
            "scores",
            classes,
            swapped=known.swapped and width == 2,
            index=index,
            notes=_width_note(name, known, width),
        )
        if width == 1 or (decision and decision.by in ("probability", "score")):
            return _of_two(reading, width, known, decision, self._shares(reading))
        likely = known.form == "probabilities" or self._shares(reading)
        return replace(reading, form="probabilities" if likely else "scores")

    def _shares(self, reading: Reading) -> bool:
        """Whether each row's scores are not negative and sum to 1."""
        plain = replace(reading, label_output=None, single=False)
        value = self.outputs[reading.output]
        if not isinstance(value, list) and columns_of(value).shape[1] == 1:
            given = np.asarray(value, np.float64)
            given = given[np.isfinite(given)]
            return bool(len(given)) and given.min() >= 0 and given.max() <= 1
        return _is_distribution(read_answers(self.outputs, plain, len(value)).scores)

    def _listed(self, name: str) -> tuple[str, ...]:
        return self.declared.get(name, Declared()).classes

    def _answered(self) -> list[str]:
        if self.label is None:
            return []
        flat = np.asarray(self.outputs[self.label]).reshape(-1).tolist()
        return sorted_classes(class_text(item) for item in flat)

    def _named(
        self, own: tuple[str, ...], width: int
    ) -> tuple[tuple[str, ...], dict[str, int]]:
        """Names of the classes for people, and places by all that they are called."""
        names = self.stated.classes
        if names and len(names) != width:
            raise AssessmentError(
                f"{len(names)} classes are named, the model's output has {width}"
            )
        if own and len(own) != width:
            own = ()
        if not own and not names:
            own = self._unnamed(width)
        shown = names or own
        if not own:
            numbered = all(map(is_number, names))
            own = names if numbered or not self._numbers() else _counted(width)
        index = dict(zip(own, range(width)))
        for place, name in enumerate(map(str, names)):
            if index.setdefault(name, place) != place:
                raise AssessmentError(
                    f"classes are named {', '.join(names)[:80]}; the model's own are "
                    f"{', '.join(own)[:80]}"
                )
        if set(own) <= {"0", "1"}:
            index |= {text: index[key] for text, key in _BOOLEANS if key in index}
        return tuple(map(str, shown)), index

    def _unnamed(self, width: int) -> tuple[str, ...]:
        """Counted from 0; or what labels and data say, sorted, where that is all."""
        said = sorted_classes([*self._answered(), *self.stated.data])
        if set(said) <= set(_counted(width)) or self.label is None:
            return _counted(width)
        if len(said) != width:
            raise AssessmentError(
                f"{width} scores per row, for classes {', '.join(said)[:100]}: which "
                f"is which cannot be known; {_NAME_CLASSES}"
            )
        return tuple(said)

    def _numbers(self) -> bool:
        return self.label is None or all(map(is_number, self._answered()))


_BOOLEANS = (("False", "0"), ("false", "0"), ("True", "1"), ("true", "1"))


def _counted(width: int) -> tuple[str, ...]:
    return tuple(str(place) for place in range(width))


def _of_two(
    reading: Reading,
    width: int,
    known: Declared,
    decision: Decision | None,
    inside: bool,
) -> Reading:
    """One score for two classes, or two probabilities with a threshold that is stated.

    Raises:
        AssessmentError: what it is cannot be known, or is not what is stated.
    """
    reading = replace(reading, single=True)
    if decision is not None and decision.by in ("probability", "score"):
        likely = decision.by == "probability"
        if len(reading.classes) != 2 or (width == 2 and not likely):
            raise AssessmentError(
                "--decision: a threshold is for one score per row, or for two "
                f"probabilities; output {reading.output!r} has {width} scores"
            )
        if likely and not inside:
            raise AssessmentError(
                f"--decision: output {reading.output!r} has values that are no "
                "probabilities"
            )
        form = "probabilities" if likely else "scores"
        return replace(reading, form=form, threshold=decision.threshold)
    likely = known.form == "probabilities"
    if reading.label_output is None and not known.form:
        raise AssessmentError(
            f"output {reading.output!r} has one score per row: whether it is a "
            "probability cannot be known; state --decision 'probability>0.5', or "
            "'score>0' for a logit, or 'number' for what is no class"
        )
    form = "probabilities" if likely else "scores"
    return replace(reading, form=form, threshold=0.5 if likely else 0.0)


def _checked(reading: Reading, outputs: Mapping[str, Any]) -> Reading:
    """The reading, with what its outputs contradict each other in.

    Raises:
        AssessmentError: labels that are no class.
    """
    name = reading.output if reading.form == "labels" else reading.label_output
    if name is None:
        return reading
    given = np.asarray(outputs[name]).reshape(-1)
    strange = {class_text(item) for item in given.tolist()} - set(reading.index)
    if strange:
        raise AssessmentError(
            f"output {name!r} answers {min(strange)[:40]!r}, which is none of the "
            f"classes {', '.join(reading.classes)[:100]}; {_NAME_CLASSES}"
            + (", or state --decision scores" if reading.label_output else "")
        )
    if reading.form == "labels":
        return reading
    answers = read_answers(outputs, reading, len(given))
    known = answers.labels >= 0
    return _compared(reading, answers.scores[known], answers.labels[known])


def _compared(
    reading: Reading, scores: NDArray[np.float64], labels: NDArray[np.int64]
) -> Reading:
    """Labels beside scores: a threshold of their own, or scores that mean nothing."""
    top = scores.max(axis=1, initial=-np.inf)
    own = scores[np.arange(len(labels)), labels]
    against = int((own < top - _CLOSE * np.maximum(1, np.abs(top))).sum())
    if not against:
        return reading
    note = (
        f"labels are not the largest score's class on {against} of {len(labels)} rows"
    )
    if scores.shape[1] == 2 and _in_order(scores[:, 1] - scores[:, 0], labels):
        return replace(
            reading,
            notes=(*reading.notes, f"{note}: they have a threshold of their own"),
        )
    return Reading(
        reading.label_output or reading.output,
        None,
        "labels",
        reading.classes,
        index=reading.index,
        notes=(*reading.notes, f"{note}, nor in their order: labels alone are read"),
    )


def _in_order(leads: NDArray[np.float64], labels: NDArray[np.int64]) -> bool:
    first, second = leads[labels == 0], leads[labels == 1]
    return not (len(first) and len(second)) or bool(first.max() <= second.min())


def _width_note(name: str, known: Declared, width: int) -> tuple[str, ...]:
    if known.columns in (None, width):
        return ()
    return (f"output {name!r} is declared with {known.columns} columns, {width} come",)


def _is_scores(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and isinstance(value[0], dict)
    array = np.asarray(value)
    return array.dtype.kind == "f" and array.ndim >= 1 and columns_of(array).ndim == 2


def _is_labels(value: Any) -> bool:
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return False
    array = np.asarray(value)
    per_row = array.ndim == 1 or (array.ndim == 2 and array.shape[1] == 1)
    return per_row and array.dtype.kind in "biuOUS"


def _rank(name: str, value: Any, known: int) -> tuple[bool, bool, bool, str]:
    """Of several score outputs: the one per class, of probabilities, by its name."""
    if isinstance(value, list):
        return True, True, True, name
    array = columns_of(value)
    named = any(part in name.lower() for part in ("prob", "logit", "score"))
    return array.shape[1] >= max(2, known), _is_distribution(array), named, name


def _is_distribution(scores: NDArray[Any]) -> bool:
    finite = scores[np.isfinite(scores).all(axis=1)]
    if not len(finite):
        return False
    total = np.abs(finite.sum(axis=1, dtype=np.float64) - 1).max()
    return bool(total < 1e-2 and finite.min() >= -1e-6)
