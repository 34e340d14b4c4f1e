"""What released labels say of a model: accuracy, calibration, errors, fairness.

All of it is computed from noisy counts, so that it costs no further privacy. Labels
come for some answers only, and seldom for a fair sample of them: each is weighted by
how many answers of its class and score there were. Where a class and score has answers
and no labels to speak of, what their labels would be is not known: they widen the
interval to both sides (Manski 2003, chapter 1), and where they are too many, no
accuracy is stated at all. Intervals hold the noise, the sample and that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from security.errors import MonitoringError
from security.monitoring.answers import BINS, RESIDUAL_EDGES, Answers
from security.monitoring.release import Release

__all__ = ["Bin", "Coverage", "Errors", "Estimate", "Group", "Statement", "state"]

# Two-sided, 95%.
_Z = 1.96
# One-sided, 99.9%.
_SURE = 3.09
# So many deviations of its noise a number of labels must have to be divided by.
_CLEAR = 3.0
# Of all answers, those of which nothing can be known: beyond it nothing is stated.
_MOST_UNKNOWN = 0.1
_LABELLED = 0.9

_ASSUMPTION = (
    "Holds if, among answers of one class and score, those that got a label are like "
    "those that did not: if wrong answers are reported more often than right ones, "
    "nothing here can tell."
)
_SILENCE = "Answers without a label are counted as {!r}, as the settings say."

_TOO_FEW = "too few labels for the noise"
Floats = NDArray[np.float64]
# Between which two parts of its range a number of each bin of residuals was off.
_ENDS = np.abs(RESIDUAL_EDGES)
_NEAR, _FAR = np.minimum(_ENDS[1:], _ENDS[:-1]), np.maximum(_ENDS[1:], _ENDS[:-1])


@dataclass(frozen=True)
class Estimate:
    """A number, and the interval that it is in with a confidence of 95%."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Bin:
    """Answers of similar scores.

    Attributes:
        low, high: scores of the class that was answered.
        share: of all answers.
        accuracy: None where too few have labels.
    """

    low: float
    high: float
    share: float
    accuracy: Estimate | None


@dataclass(frozen=True)
class Group:
    """Labels that name one group.

    Attributes:
        accuracy: of classes; None where there are too few.
        mae: of numbers, the mean absolute error; likewise.
        rates: how often each class is answered, by its name.
        recall: of the answers whose label is a class, how many say so, by its name.
    """

    accuracy: Estimate | None = None
    mae: Estimate | None = None
    rates: Mapping[str, Estimate] = field(default_factory=dict)
    recall: Mapping[str, Estimate] = field(default_factory=dict)


@dataclass(frozen=True)
class Errors:
    """How far numbers were from their labels, in units of the label.

    Attributes:
        rmse, mae: with what the bins of the residuals leave open in the interval.
        within: how many labels are at most so far from their answer.
    """

    rmse: Estimate
    mae: Estimate
    within: Mapping[float, Estimate]


@dataclass(frozen=True)
class Coverage:
    """How often intervals or sets had the label.

    Attributes:
        stated: in the manifest.
        share: of all answers; None where too few have labels.
        below: it is less than what is stated: by more than chance in the labels, the
            noise and the calibration's own rows would make it once in a thousand times.
    """

    stated: float
    share: Estimate | None
    below: bool


@dataclass(frozen=True)
class Statement:
    """What labels say of one version, in one window or several.

    Attributes:
        model, version: whose.
        windows: names of the windows.
        subjects: their noisy number.
        refused: why neither accuracy nor errors are stated; or empty.
        labelled: how many answers have a label; None where silence is one.
        accuracy: of classes.
        naive: the same of labels as they came, without weights.
        calibration: by score.
        labels: names of the classes.
        confusion: noisy numbers of labels, by the class that was answered.
        groups: by group.
        error: of numbers.
        coverage: of intervals or sets; None where none were served.
        assumption: under which all of this holds.
    """

    model: str
    version: str
    windows: tuple[str, ...]
    subjects: int
    refused: str = ""
    labelled: Estimate | None = None
    accuracy: Estimate | None = None
    naive: float | None = None
    calibration: tuple[Bin, ...] = ()
    labels: tuple[str, ...] = ()
    confusion: tuple[tuple[float, ...], ...] = ()
    groups: Mapping[str, Group] = field(default_factory=dict)
    error: Errors | None = None
    coverage: Coverage | None = None
    assumption: str = _ASSUMPTION

    def to_object(self) -> dict[str, Any]:
        """All of it, as JSON values."""
        value = asdict(self)
        if self.error is not None:
            within = self.error.within.items()
            value["error"]["within"] = {f"{far:g}": asdict(e) for far, e in within}
        return value


@dataclass(frozen=True)
class _Counts:
    """Counts of several releases.

    Attributes:
        layout: what they mean.
        cells: shape (classes, bins, 1 + outcomes); the first outcome is no label.
        confusion: shape (classes, classes), or empty.
        groups: shape (groups, classes or 1, classes or outcomes), or empty.
        coverage: shape (classes or 1, bins, 3): no label, inside, outside; or empty.
        sigma: of each number's noise.
    """

    layout: Answers
    cells: Floats
    confusion: Floats
    groups: Floats
    coverage: Floats
    sigma: float

    @classmethod
    def of(cls, releases: Sequence[Release]) -> _Counts:
        every = map(Answers.from_object, (item.details for item in releases))
        layouts = {replace(layout, final_after_days=0.0) for layout in every}
        if len(layouts) != 1:
            raise MonitoringError("releases of different labels are not added up")
        (layout,) = layouts
        found = {
            name: _sum(releases, name, shape) for name, shape in layout.shapes.items()
        }
        sigma = math.sqrt(sum(item.sigma**2 for item in releases))
        return cls(layout, **found, sigma=sigma)


@dataclass(frozen=True)
class _Mean:
    """A weighted mean over all answers.

    Attributes:
        value: of it.
        open: how far it can be off by answers that nothing is known of.
        deviation: by noise and sample.
        unknown: the share of these answers.
        known: which cells can be used, shape (cells,).
    """

    value: float
    open: float
    deviation: float
    unknown: float
    known: NDArray[np.bool_]

    def estimate(self, low: float, high: float) -> Estimate:
        """With its interval, within bounds."""
        reach = self.open + _Z * self.deviation
        ends = self.value - reach, self.value + reach
        return Estimate(*(min(max(end, low), high) for end in (self.value, *ends)))


def state(releases: Sequence[Release]) -> Statement:
    """What one release says, or several of one version together.

    Args:
        releases: of the kind "labels"; those that were withheld say nothing.

    Raises:
        MonitoringError: none, of several versions, or of different labels.
    """
    abouts = {(item.about.model, item.about.version) for item in releases}
    if len(abouts) != 1:
        raise MonitoringError("labels are stated of one version")
    ((model, version),) = abouts
    given = [item for item in releases if not item.withheld]
    windows = tuple(item.about.window.name for item in given or releases)
    subjects = sum(item.subjects or 0 for item in given)
    if not given:
        return Statement(
            model, version, windows, 0, refused=f"withheld: {releases[-1].withheld}"
        )
    counts = _Counts.of(given)
    found = (_of_classes if counts.layout.labels else _of_numbers)(counts)
    found["coverage"] = _coverage(counts)
    return Statement(model, version, windows, subjects, **found)


def _of_classes(counts: _Counts) -> dict[str, Any]:
    layout, sigma = counts.layout, counts.sigma
    cells = counts.cells.reshape(-1, 3)
    right, wrong = cells[:, 1].sum(), cells[:, 2].sum()
    found: dict[str, Any] = {
        "labels": layout.labels,
        "calibration": tuple(_calibration(counts)),
        "confusion": tuple(map(tuple, counts.confusion.tolist())),
        "groups": _groups(counts),
        "naive": float(right / max(right + wrong, 1.0)),
    }
    if layout.silence:
        found["assumption"] = _SILENCE.format(layout.silence)
        total, parts = counts.confusion, len(layout.labels)
        accuracy = _ratio(np.trace(total), total.sum(), parts, total.size, sigma)
        if not layout.confuses:
            accuracy = _ratio(right, right + wrong, len(cells), 2 * len(cells), sigma)
        reason = "" if accuracy else "too few answers for the noise"
        return {**found, "accuracy": accuracy, "refused": reason}
    mean = _mean(cells, np.array([1.0, 0.0]), sigma)
    labelled = _ratio(right + wrong, cells.sum(), 2 * len(cells), cells.size, sigma)
    refused = _refusal(counts, mean, labelled)
    accuracy = None if refused else mean.estimate(0.0, 1.0)
    return {**found, "labelled": labelled, "accuracy": accuracy, "refused": refused}


def _of_numbers(counts: _Counts) -> dict[str, Any]:
    layout, sigma = counts.layout, counts.sigma
    cells = counts.cells.reshape(BINS, -1)
    span = layout.high - layout.low
    square = _mean(cells, (_NEAR**2 + _FAR**2) / 2, sigma)
    labelled = _ratio(
        cells[:, 1:].sum(), cells.sum(), cells[:, 1:].size, cells.size, sigma
    )
    groups = {
        name: Group(mae=_absolute(np.insert(table, 0, 0.0, axis=1), sigma, span))
        for name, table in zip(layout.groups, counts.groups)
    }
    found: dict[str, Any] = {"labelled": labelled, "groups": groups}
    refused = _refusal(counts, square, labelled)
    if refused:
        return {**found, "refused": refused}
    within = {}
    for step in RESIDUAL_EDGES[len(RESIDUAL_EDGES) // 2 + 1 : -1]:
        near_enough = (step >= _FAR).astype(np.float64)
        share = _mean(cells, near_enough, sigma).estimate(0.0, 1.0)
        within[float(step * span)] = share
    mae = _absolute(cells, sigma, span)
    rmse = _between(cells, sigma, span, 2)
    if mae is None or rmse is None:
        return {**found, "refused": _TOO_FEW}
    return {**found, "error": Errors(rmse, mae, within)}


def _coverage(counts: _Counts) -> Coverage | None:
    layout = counts.layout
    if not layout.coverage:
        return None
    mean = _mean(counts.coverage.reshape(-1, 3), np.array([1.0, 0.0]), counts.sigma)
    if not mean.known.any() or mean.unknown > _MOST_UNKNOWN:
        return Coverage(layout.coverage, None, below=False)
    # The quantile itself was drawn: its coverage varies with the rows it was found on.
    drawn = layout.coverage * (1 - layout.coverage) / layout.calibrated
    reach = mean.open + _SURE * math.sqrt(mean.deviation**2 + drawn)
    below = mean.value + reach < layout.coverage
    return Coverage(layout.coverage, mean.estimate(0.0, 1.0), below)


def _absolute(cells: Floats, sigma: float, span: float) -> Estimate | None:
    """The mean absolute error; None where no cell has labels to speak of."""
    return _between(cells, sigma, span, 1)


def _between(cells: Floats, sigma: float, span: float, power: int) -> Estimate | None:
    """A mean of residuals' powers, of which only their bins are known, and its root."""
    least, middle, most = (
        _mean(cells, worth**power, sigma) for worth in (_NEAR, (_NEAR + _FAR) / 2, _FAR)
    )
    if not middle.known.any():
        return None
    values = (
        middle.estimate(0.0, 1.0).value,
        least.estimate(0.0, 1.0).low,
        most.estimate(0.0, 1.0).high,
    )
    return Estimate(*(span * value ** (1 / power) for value in values))


def _refusal(counts: _Counts, mean: _Mean, labelled: Estimate | None) -> str:
    """Why accuracy cannot be identified; or nothing."""
    layout = counts.layout
    if labelled is None or labelled.high <= 0.0 or not mean.known.any():
        return _TOO_FEW
    named = layout.labels or ("numbers",)
    known = mean.known.reshape(layout.classes, -1)
    size = np.maximum(counts.cells.sum(axis=-1).reshape(layout.classes, -1), 0.0)
    if mean.unknown > _MOST_UNKNOWN:
        silent = [
            name
            for name, row, answers in zip(named, known, size)
            if not row.any() and answers.sum() > _MOST_UNKNOWN * size.sum()
        ]
        if silent and len(silent) < len(named):
            return f"labels for some answers only: none to speak of for {_list(silent)}"
        empty = [
            f"{name} {_edges(layout)[at]:.2f}-{_edges(layout)[at + 1]:.2f}"
            for name, row, answers in zip(named, known, size)
            for at in np.flatnonzero(~row & (answers > 0.02 * size.sum()))
        ]
        return f"too few labels in these bins of the score: {_list(empty)}"
    if layout.confuses and labelled.value < _LABELLED:
        reach = _CLEAR * counts.sigma * math.sqrt(len(layout.labels))
        given = counts.confusion.sum(axis=0) > reach
        if given.sum() == 1:
            only = layout.labels[int(np.flatnonzero(given)[0])]
            return (
                f"all labels are {only!r}: they seem to come for one class only; if "
                "silence means another, say so in the settings"
            )
    return ""


def _mean(cells: Floats, worth: Floats, sigma: float) -> _Mean:
    """The mean worth of outcomes, over all answers.

    Args:
        cells: shape (cells, 1 + outcomes): those without a label, and each outcome.
        worth: of each outcome.
        sigma: of each number's noise.
    """
    silent, counts = cells[:, 0], cells[:, 1:]
    labels = counts.sum(axis=1)
    every = silent + labels
    total = max(float(every.sum()), 1.0)
    known = labels > _CLEAR * sigma * math.sqrt(counts.shape[1])
    safe = np.where(known, labels, 1.0)
    own = counts @ worth
    low, high = float(worth.min()), float(worth.max())
    middle = (low + high) / 2
    each = np.where(known, own / safe, middle)
    sums = np.where(known, every * each, own + silent * middle)
    value = float(sums.sum()) / total
    # How the mean moves with each number, that of all answers included.
    slope = np.where(
        known[:, None],
        each[:, None] + (every / safe)[:, None] * (worth - each[:, None]),
        worth[None, :],
    )
    slopes = np.column_stack([each, slope]) - value
    spread = np.where(known, counts @ worth**2 / safe - each**2, (high - low) ** 2 / 4)
    spread = np.clip(spread, (high - low) ** 2 / (4 * total), None)
    many = np.maximum(every, 0.0)
    drawn = np.where(known, many**2 * spread / safe, many * spread)
    drawn = drawn + many * (each - value) ** 2
    variance = sigma**2 * float((slopes**2).sum()) + float(drawn.sum())
    unknown = max(0.0, float(silent[~known].sum())) / total
    return _Mean(
        value, unknown * (high - low) / 2, math.sqrt(variance) / total, unknown, known
    )


def _ratio(
    part: float, whole: float, parts: int, terms: int, sigma: float
) -> Estimate | None:
    """A share of two sums of noisy numbers; None where noise hides the whole.

    Args:
        part: a sum of some of the numbers of the whole.
        whole: the sum of all.
        parts: how many numbers that is a sum of.
        terms: likewise, the whole.
        sigma: of each number's noise.
    """
    if whole <= _CLEAR * sigma * math.sqrt(terms):
        return None
    value = float(part / whole)
    share = min(max(value, 1.0 / whole), 1.0 - 1.0 / whole)
    noise = parts * (1 - share) ** 2 + (terms - parts) * share**2
    reach = _Z * math.sqrt(sigma**2 * noise / whole**2 + share * (1 - share) / whole)
    ends = value, value - reach, value + reach
    return Estimate(*(min(max(end, 0.0), 1.0) for end in ends))


def _calibration(counts: _Counts) -> list[Bin]:
    by_bin = counts.cells.sum(axis=0)
    total = max(float(by_bin.sum()), 1.0)
    classes, edges = counts.layout.classes, _edges(counts.layout)
    return [
        Bin(
            low,
            high,
            float(np.clip(row.sum() / total, 0.0, 1.0)),
            _ratio(row[1], row[1] + row[2], classes, 2 * classes, counts.sigma),
        )
        for low, high, row in zip(edges, edges[1:], by_bin)
    ]


def _groups(counts: _Counts) -> dict[str, Group]:
    labels = counts.layout.labels
    found, several = {}, len(labels)
    for name, table in zip(counts.layout.groups, counts.groups):
        whole = table.sum(), several, several**2, counts.sigma
        rates = {
            label: _ratio(table[at].sum(), *whole) for at, label in enumerate(labels)
        }
        recall = {
            label: _ratio(table[at, at], table[:, at].sum(), 1, several, counts.sigma)
            for at, label in enumerate(labels)
        }
        right = _ratio(np.trace(table), *whole)
        found[name] = Group(right, None, _stated(rates), _stated(recall))
    return found


def _stated(found: Mapping[str, Estimate | None]) -> dict[str, Estimate]:
    return {name: item for name, item in found.items() if item is not None}


def _edges(layout: Answers) -> list[float]:
    """Of the score's bins, or of a number's."""
    low = 1.0 / len(layout.labels) if layout.labels else layout.low
    high = 1.0 if layout.labels else layout.high
    return [float(edge) for edge in np.linspace(low, high, BINS + 1)]


def _sum(releases: Sequence[Release], name: str, shape: tuple[int, ...]) -> Floats:
    """The sum of one array of counts; zeros where releases have none."""
    arrays = [item.counts[name] for item in releases if name in item.counts]
    try:
        flat = np.sum(np.array(arrays, np.float64), axis=0) if arrays else 0.0
        return np.broadcast_to(flat, math.prod(shape)).reshape(shape).copy()
    except ValueError:
        raise MonitoringError("released labels are malformed") from None


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
