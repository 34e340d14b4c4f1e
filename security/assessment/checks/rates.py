"""Whether a model treats groups of people alike, each figure with its interval.

A rate has the sample that it is of: a true positive rate the group's positives, a false
positive rate its negatives. Where that is below `MIN_GROUP`, the group is counted and
named, but takes part in no difference of that rate: of ten people it says nothing.

Hardt, Price, Srebro, "Equality of Opportunity in Supervised Learning" (2016);
29 CFR 1607.4 (D) for the four-fifths rule.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.report import Metric
from security.assessment.results import intervals

__all__ = [
    "MIN_GROUP",
    "RATES",
    "RATIOS",
    "Attribute",
    "Fairness",
    "Group",
    "Sample",
    "attribute_name",
    "measure",
    "of_classes",
    "of_errors",
]

MIN_GROUP = 30
RATES = ("selection_rate", "tpr", "fpr", "accuracy", "calibration")
"""Of the positive class: how often it is given; to those who have it (`tpr`) and those
who have not (`fpr`); accuracy; and mean score minus base rate (`calibration`)."""
RATIOS = ("selection_rate", "tpr", "fpr", "mae")
"""Those whose smallest is divided by the largest."""

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Attribute:
    """What puts rows into groups: a sensitive column, or several together.

    Attributes:
        name: ``sex``, or ``sex,race``; a name with a comma is quoted beside others.
        values: ``(n,)``, each row's value, or values.
        titles: of each value: what its group is called.
    """

    name: str
    values: NDArray[np.str_]
    titles: Mapping[str, str]

    @classmethod
    def of(cls, parts: Sequence[str], columns: Mapping[str, NDArray[Any]]) -> Attribute:
        """The rows' groups by some of the columns ``(n,)``."""
        rows = list(zip(*(columns[part].tolist() for part in parts), strict=True))
        quoted = str if len(parts) == 1 else _quoted
        titles = {
            _listed(row): ",".join(
                f"{quoted(part)}={quoted(value)}" for part, value in zip(parts, row)
            )
            for row in dict.fromkeys(rows)
        }
        values = np.array([_listed(row) for row in rows], dtype=np.str_)
        return cls(attribute_name(parts, columns), values, titles)


@dataclass(frozen=True)
class Group:
    """The rows that share a value of an attribute, or of several.

    Attributes:
        name: ``sex=F``, or ``sex=F,race=b``.
        rows: how many.
        rates: by name of `RATES`; those that can be measured in it.
    """

    name: str
    rows: int
    rates: Mapping[str, Metric] = field(default_factory=dict)

    def enough(self, rate: str) -> bool:
        """Whether a rate rests on enough rows to be compared."""
        metric = self.rates.get(rate)
        return metric is not None and (metric.n or 0) >= MIN_GROUP


@dataclass(frozen=True)
class Fairness:
    """One attribute, or the intersection of several.

    Attributes:
        attribute: ``sex``, or ``sex,race``.
        groups: all of them.
        differences: largest minus smallest rate over the groups that are large enough.
        ratios: smallest by largest, of `RATIOS`, likewise.
        extremes: names of the groups with the smallest and the largest of each rate.
    """

    attribute: str
    groups: tuple[Group, ...]
    differences: Mapping[str, Metric]
    ratios: Mapping[str, Metric]
    extremes: Mapping[str, tuple[str, str]] = field(default_factory=dict)


def attribute_name(parts: Sequence[str], columns: Container[str]) -> str:
    """What one of the columns, or several together, are called: each another name."""
    name = _listed(parts)
    if len(parts) > 1 and name in columns:
        return ",".join(f'"{part}"' for part in parts)
    return name


def measure(attribute: Attribute, samples: Mapping[str, Sample]) -> Fairness:
    """Measure one attribute.

    Args:
        attribute: the groups.
        samples: by name of the rate, what it is the mean of.
    """
    members = {
        attribute.titles[str(value)]: attribute.values == value
        for value in np.unique(attribute.values)
    }
    groups = tuple(
        Group(name, int(own.sum()), _rates(samples, own))
        for name, own in members.items()
    )
    differences, ratios, extremes = {}, {}, {}
    for rate, sample in samples.items():
        own = [group.name for group in groups if group.enough(rate)]
        if len(own) < 2:
            continue
        level = intervals.confidence_of_pairs(len(own))
        parts = [sample.metric(members[name], level) for name in own]
        if any(part.low is None for part in parts):
            continue  # a group whose rows are all alike says nothing of its spread
        differences[rate] = intervals.largest_difference(parts)
        order = np.argsort([part.value for part in parts], kind="stable")
        extremes[rate] = (own[order[0]], own[order[-1]])
        if rate in RATIOS and any(part.value > 0 for part in parts):
            ratios[rate] = intervals.smallest_ratio(parts)
    return Fairness(attribute.name, groups, differences, ratios, extremes)


@dataclass(frozen=True, eq=False)
class Sample:
    """What a rate is the mean of.

    Attributes:
        values: ``(n,)``, of each row.
        among: ``(n,)``, the rows that it is of.
        kind: "share" of 0 and 1, "bounded" from -1 to 1, "length" of no sign, or "any".
    """

    values: Floats | Mask
    among: Mask
    kind: str = "share"

    def metric(self, own: Mask, confidence: float = intervals.CONFIDENCE) -> Metric:
        """The rate of some rows, of which one at least is among those."""
        values = self.values[own & self.among]
        if self.kind == "share":
            return intervals.proportion(int(values.sum()), len(values), confidence)
        floats = values.astype(np.float64)
        if self.kind == "bounded":
            return intervals.bounded_mean(floats, -1.0, 1.0, confidence)
        if len(floats) < 2:
            return Metric(float(floats[0]), n=1)
        method = intervals.positive_mean if self.kind == "length" else intervals.mean
        return method(floats, confidence)


def of_classes(truth: Mask, given: Mask, scores: Floats | None) -> dict[str, Sample]:
    """What a classifier is compared by.

    Args:
        truth: ``(n,)``, whether the row is of the positive class.
        given: ``(n,)``, whether the model says so.
        scores: ``(n,)``, its probability of that, or None.
    """
    everyone = np.ones(len(truth), dtype=bool)
    samples = {
        "selection_rate": Sample(given, everyone),
        "tpr": Sample(given, truth),
        "fpr": Sample(given, ~truth),
        "accuracy": Sample(given == truth, everyone),
    }
    if scores is not None:
        samples["calibration"] = Sample(scores - truth, everyone, "bounded")
    return samples


def of_errors(errors: Floats) -> dict[str, Sample]:
    """What a model that predicts a number is compared by.

    Args:
        errors: ``(n,)``, answer minus truth.
    """
    everyone = np.ones(len(errors), dtype=bool)
    return {
        "mae": Sample(np.abs(errors), everyone, "length"),
        "mean_error": Sample(errors, everyone, "any"),
    }


def _rates(samples: Mapping[str, Sample], own: Mask) -> dict[str, Metric]:
    # A group without positives has no true positive rate.
    return {
        rate: sample.metric(own)
        for rate, sample in samples.items()
        if (own & sample.among).any()
    }


def _listed(items: Sequence[str]) -> str:
    """One name as it is; several with commas between them, never inside."""
    return items[0] if len(items) == 1 else ",".join(map(_quoted, items))


def _quoted(item: str) -> str:
    """A name as CSV would write it, where it could be taken for several."""
    if not any(mark in item for mark in ',="'):
        return item
    return '"' + item.replace('"', '""') + '"'
