"""What is kept of an answer that got a ticket, and what a label makes of it.

Only what is public decides: a classifier's labels, a number's bounds, and the groups
that the settings name. One event is one answer; its label is a class, or how far the
number was off. All that is counted of a cohort:

- ``cells``: for each class and bin of its score, how many answers have no label, a
  right one or a wrong one; of numbers, for each bin of the answer, how many have no
  label, or one that is so far off;
- ``confusion``: of at most 16 classes, labels by the class that was answered;
- ``groups``: the same, or how far off, for each group;
- ``coverage``: where intervals or sets are served, for each class and bin, how many
  answers have no label, one that is inside, or one that is not.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.conformal import Conformal, residuals
from models.manifest import Manifest, Tensor
from sealgate.cells import category, number
from sealgate.protocol.datatypes import numbers
from sealgate.protocol.tensors import Array
from security.errors import MonitoringError
from security.monitoring.layout import MAX_CLASSES
from security.settings.monitoring import MAX_GROUP_BYTES, LabelSettings

__all__ = [
    "BINS",
    "EVENTS",
    "RESIDUAL_EDGES",
    "Answers",
    "Label",
    "answers_of",
    "event_id",
    "pack_events",
    "pack_label",
    "unpack_label",
]

# Of the score of the class that is answered, which is at least 1/classes; of numbers.
BINS = 5
MAX_CONFUSION = 16
# How far an answer is from its label, in parts of the public range.
_STEPS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
RESIDUAL_EDGES = (*(-step for step in reversed(_STEPS)), 0.0, *_STEPS)
EVENTS = "events"
# Of a label: that it is inside the interval or the set.
_INSIDE = 0x80
# A ticket holds a class in one byte, and its set in three.
MAX_SETS = 24
# Of an event: class, bin, and the first bytes of its ticket's id.
_ID_BYTES = 8
_NUMBER = struct.Struct(">f")
_CLASS = struct.Struct(">I")
_LABEL = struct.Struct(f">B{MAX_GROUP_BYTES}s")

# A class or the bin of a residual, and a group or nothing.
Label = tuple[int, str]


@dataclass(frozen=True)
class Answers:
    """How a version's answers and their labels are counted.

    Attributes:
        output: the tensor that answers.
        labels: of classes; none of a number.
        low, high: a number's public range.
        groups: that labels may name.
        silence: the class that no label at all means; empty if it means nothing.
        final_after_days: from a window's end, when labels may not come any more.
        coverage: that intervals or sets are stated to have; 0 where none are served.
        calibrated: rows that they were calibrated on.
        quantile, scale: of a number's intervals.
        abstains: of some rows no class is answered.
    """

    output: str
    labels: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 1.0
    groups: tuple[str, ...] = ()
    silence: str = ""
    final_after_days: float = 30.0
    coverage: float = 0.0
    calibrated: int = 1
    quantile: float = 0.0
    scale: str = ""
    abstains: bool = False

    @classmethod
    def from_object(cls, value: Mapping[str, Any]) -> Answers:
        """What `describe` said.

        Raises:
            MonitoringError: it did not say this.
        """
        try:
            labels, groups = tuple(value["labels"]), tuple(value["groups"])
            return replace(cls(**value), labels=labels, groups=groups)
        except (TypeError, KeyError):
            raise MonitoringError("what answers mean is malformed") from None

    def describe(self) -> dict[str, Any]:
        """All of it, as JSON values."""
        return asdict(self)

    @property
    def width(self) -> int:
        """Codes of an event."""
        return 2 + _ID_BYTES

    def codes(
        self, inputs: Mapping[str, Array], outputs: Mapping[str, Array], rows: slice
    ) -> NDArray[np.uint8]:
        """The codes that `pack_events` gave."""
        del inputs
        return outputs[EVENTS][rows]

    def read(self, outputs: Mapping[str, Array]) -> list[tuple[bytes, int] | None]:
        """What each row answered, for a ticket: 4 bytes, and a bin; None of a NaN.

        Raises:
            MonitoringError: the answering output is not there, or not one for each row.
        """
        array = outputs.get(self.output)
        if array is None or not array.ndim:
            raise MonitoringError(f'no output "{self.output}"')
        values = numbers(array).reshape(len(array), -1)
        if self.labels:
            first, last = 1.0 / len(self.labels), 1.0
            scores = values.max(axis=1).tolist()
            answers = map(_CLASS.pack, self._told(values, outputs).tolist())
        else:
            first, last = 0.0, 1.0
            scores = [self._place(value) for value in values[:, 0].tolist()]
            answers = map(_NUMBER.pack, scores)
        scale = BINS / (last - first)
        # A NaN is the one number that is not itself.
        return [
            (answer, int(min(max((score - first) * scale, 0), BINS - 1)))
            if score == score  # noqa: PLR0124
            else None
            for answer, score in zip(answers, scores)
        ]

    def _told(
        self, values: NDArray[Any], outputs: Mapping[str, Array]
    ) -> NDArray[np.int64]:
        """Classes, or as many as there are for none; and above that byte, sets."""
        told: NDArray[np.int64] = values.argmax(axis=1).astype(np.int64)
        if self.abstains:
            told[~values.any(axis=1)] = len(self.labels)
        if not self.coverage:
            return told
        inside = outputs.get(f"{self.output}_set")
        if inside is None or inside.shape != values.shape:
            raise MonitoringError(f'no sets of output "{self.output}"')
        bits = inside.astype(np.int64) << np.arange(len(self.labels))
        told |= bits.sum(axis=1) << 8
        return told

    def label(self, value: object) -> float | None:
        """A label as a number: the class's index, or itself; None if it is none.

        Classes have their names; where these are no numbers, their indices are names,
        too. A text is read as cells of tables are.

        >>> two = Answers("p", labels=("no", "yes"))
        >>> two.label("yes"), two.label(1), two.label("maybe"), two.label(2)
        (1.0, 1.0, None, None)
        >>> Answers("p", labels=("1", "2")).label(1)
        0.0
        """
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            return None
        if self.labels:
            named = any(number(name) is not None for name in self.labels)
            names = self.labels if named else tuple(map(str, range(len(self.labels))))
            found = category(str(value), self.labels)
            found = category(str(value), names) if found is None else found
            return None if found is None else float(found)
        given = number(value) if isinstance(value, str) else value
        # By comparison: float() fails on an integer beyond a double.
        if given is None or not self.low <= given <= self.high:
            return None
        return float(given)

    def outcome(self, answer: bytes, label: float) -> int:
        """What is kept of a label: its class, or how far off the answer was."""
        if self.labels:
            (told,) = _CLASS.unpack(answer)
            inside = self.coverage and told >> 8 + int(label) & 1
            return int(label) | (_INSIDE if inside else 0)
        (given,) = _NUMBER.unpack(answer)
        residual = given - self._place(label)
        code = int(np.searchsorted(RESIDUAL_EDGES, residual, side="right")) - 1
        code = min(max(code, 0), len(RESIDUAL_EDGES) - 2)
        return code | (_INSIDE if self._covers(given, label) else 0)

    def _covers(self, place: float, label: float) -> bool:
        """Whether a number's interval has its label; what is kept of it is 4 bytes."""
        if not self.coverage:
            return False
        span = self.high - self.low
        given = np.array([self.low + place * span])
        far = residuals(given, np.array([label]), self.scale, (self.low, self.high))
        return bool(far[0] <= self.quantile * (1 + 1e-6) + 1e-6)

    def _place(self, value: float) -> float:
        """Where a number is in its range, from 0 to 1; NaN of NaN."""
        within = min(max(value, self.low), self.high)
        return within / (self.high - self.low) - self.low / (self.high - self.low)

    @property
    def outcomes(self) -> int:
        """That a label can have: right and wrong, or so many residuals."""
        return 2 if self.labels else len(RESIDUAL_EDGES) - 1

    @property
    def classes(self) -> int:
        """Of answers; 1 of a number."""
        return max(1, len(self.labels))

    @property
    def confuses(self) -> bool:
        """Whether labels are counted by the class that was answered."""
        return 0 < len(self.labels) <= MAX_CONFUSION

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the counts, by name; without numbers where something is not counted."""
        kinds = len(self.labels) if self.confuses else 0
        each = kinds if self.labels else self.outcomes
        return {
            "cells": (self.classes, BINS, 1 + self.outcomes),
            "confusion": (kinds, kinds),
            "groups": (len(self.groups), self.classes if each else 0, each),
            "coverage": (self.classes + self.abstains, BINS, 3 if self.coverage else 0),
        }

    @property
    def sensitivity(self) -> float:
        """How far one event moves all counts together, in Euclidean length."""
        return math.sqrt(sum(math.prod(shape) > 0 for shape in self.shapes.values()))

    def counts(
        self, events: NDArray[np.uint8], labels: Mapping[bytes, Label]
    ) -> dict[str, NDArray[np.int64]]:
        """Count events: each with its label, if that came.

        Args:
            events: shape (events, width).
            labels: by the id of their event.
        """
        silence = (self.labels.index(self.silence), "") if self.silence else (-1, "")
        ids = np.ascontiguousarray(events[:, 2:]).view(f"V{_ID_BYTES}").ravel().tolist()
        found = [labels.get(item, silence) for item in ids]
        numbers = {name: at for at, name in enumerate(self.groups)}
        label = np.array([item[0] for item in found], np.int64)
        came = np.array([item in labels for item in ids], np.bool_)
        # Of up to 250 classes that bit is a class's own where no coverage is counted.
        flag = _INSIDE if self.coverage else 0
        inside = came & (label & flag > 0)
        label = np.where(came, label & ~flag, label)
        group = np.array([numbers.get(item[1], -1) for item in found], np.int64)
        answered, bins = events[:, 0].astype(np.int64), events[:, 1]
        outcome = (label != answered) if self.labels else label
        told = answered < self.classes
        known, named = told & (label >= 0), told & (label >= 0) & (group >= 0)
        counts = {
            name: np.zeros(shape, np.int64) for name, shape in self.shapes.items()
        }
        cell = answered[told], bins[told], np.where(known, 1 + outcome, 0)[told]
        np.add.at(counts["cells"], cell, 1)
        if self.coverage:
            where = np.where(came, np.where(inside, 1, 2), 0)
            np.add.at(counts["coverage"], (answered, bins, where), 1)
        if self.confuses:
            np.add.at(counts["confusion"], (answered[known], label[known]), 1)
        if counts["groups"].size:
            place = group[named], answered[named], label[named]
            np.add.at(counts["groups"], place, 1)
        return {name: item.reshape(-1) for name, item in counts.items() if item.size}


def answers_of(manifest: Manifest, settings: LabelSettings) -> Answers | None:
    """How a model's answers are counted; None if it has no labels and no bounds.

    Raises:
        MonitoringError: silence means a class that it does not have.
    """
    shared = {
        "groups": settings.groups,
        "silence": settings.silence,
        "final_after_days": settings.labels_final_after_days,
    }
    for tensor in manifest.outputs:
        name, shape = tensor.spec.name, tensor.spec.shape
        if shape[:1] != (-1,):
            continue
        if len(shape) == 2 and 2 <= len(tensor.labels) <= MAX_CLASSES:
            if settings.silence not in ("", *tensor.labels):
                raise MonitoringError(
                    f"{manifest.tag}: silence = {settings.silence!r} is none of its "
                    "classes"
                )
            sets = _sets(manifest, tensor)
            return Answers(name, tensor.labels, **shared, **sets)  # type: ignore[arg-type]
        if tensor.bounds is not None and shape in ((-1,), (-1, 1)):
            if settings.silence:
                raise MonitoringError(f"{manifest.tag}: silence means no number")
            low, high = tensor.bounds
            widened = _intervals(manifest.conformal, name)
            return Answers(name, low=low, high=high, **shared, **widened)  # type: ignore[arg-type]
    return None


def _sets(manifest: Manifest, tensor: Tensor) -> dict[str, Any]:
    """Of classes: whether sets are counted, which are as far as they leave."""
    own, release = manifest.conformal, manifest.release
    abstains = {"abstains": True} if manifest.output_policy.abstain else {}
    several = len(tensor.labels) > MAX_SETS
    if own is None or own.output != tensor.spec.name or several or not release.added:
        return abstains
    return {**abstains, "coverage": own.coverage, "calibrated": own.rows}


def _intervals(own: Conformal | None, name: str) -> dict[str, Any]:
    if own is None or own.output != name:
        return {}
    return {
        "coverage": own.coverage,
        "calibrated": own.rows,
        "quantile": own.quantile,
        "scale": own.scale,
    }


def pack_events(
    answers: Sequence[tuple[bytes, int]], ids: Sequence[bytes], *, classes: bool
) -> NDArray[np.uint8]:
    """Events of answers and their tickets' ids, shape (answers, width)."""
    rows = [
        bytes((answer[3] if classes else 0, bin_)) + identifier[:_ID_BYTES]
        for (answer, bin_), identifier in zip(answers, ids)
    ]
    return np.frombuffer(b"".join(rows), np.uint8).reshape(len(rows), -1)


def pack_label(label: Label) -> bytes:
    """A label as it is sealed, of one size for all."""
    return _LABEL.pack(label[0], label[1].encode())


def unpack_label(data: bytes) -> Label:
    """What `pack_label` wrote.

    Raises:
        MonitoringError: it did not write this.
    """
    try:
        label, group = _LABEL.unpack(data)
        return label, group.rstrip(b"\0").decode()
    except (struct.error, UnicodeDecodeError):
        raise MonitoringError("a label in the store is malformed") from None


def event_id(identifier: bytes) -> bytes:
    """What events have of a ticket's id."""
    return identifier[:_ID_BYTES]
