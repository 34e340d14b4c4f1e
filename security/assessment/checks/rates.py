"""Whether a model treats groups of people alike, each figure with its interval.

Values are fairlearn's, by a test; intervals are percentile bootstrap over rows. A group
smaller than `MIN_GROUP` is counted and named, but takes part in no difference: a rate
of ten people says nothing about their group.

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
from security.assessment.results.intervals import CONFIDENCE

__all__ = [
    "MIN_GROUP",
    "RATES",
    "RATIOS",
    "Attribute",
    "Fairness",
    "Group",
    "attribute_name",
    "measure",
]

MIN_GROUP = 30
RESAMPLES = 1000
RATES = ("selection_rate", "tpr", "fpr", "accuracy", "calibration")
"""Of the positive class: how often it is given; to those who have it (`tpr`) and those
who have not (`fpr`); accuracy; and mean score minus base rate (`calibration`)."""
RATIOS = ("selection_rate", "tpr", "fpr")
"""Those whose smallest is divided by the largest."""
_TAIL = (1 - CONFIDENCE) / 2

Floats = NDArray[np.float64]


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


@dataclass(frozen=True)
class Fairness:
    """One attribute, or the intersection of several.

    Attributes:
        attribute: ``sex``, or ``sex,race``.
        groups: all of them.
        differences: largest minus smallest rate over the groups that are large enough.
        ratios: smallest by largest, of `RATIOS`, likewise.
    """

    attribute: str
    groups: tuple[Group, ...]
    differences: Mapping[str, Metric]
    ratios: Mapping[str, Metric]


def attribute_name(parts: Sequence[str], columns: Container[str]) -> str:
    """What one of the columns, or several together, are called: each another name."""
    name = _listed(parts)
    if len(parts) > 1 and name in columns:
        return ",".join(f'"{part}"' for part in parts)
    return name


def measure(
    attribute: Attribute,
    truth: NDArray[np.bool_],
    given: NDArray[np.bool_],
    scores: Floats | None,
    *,
    random: np.random.Generator,
) -> Fairness:
    """Measure one attribute.

    Args:
        attribute: the groups.
        truth: ``(n,)``, whether the row is of the positive class.
        given: ``(n,)``, whether the model says so.
        scores: ``(n,)``, its probability of that, or None.
        random: of the resampling.
    """
    values = attribute.values
    names = [str(name) for name in np.unique(values)]
    weights = _weights(len(values), random)
    drawn = {
        name: _rates(weights, values == name, truth, given, scores) for name in names
    }
    counts = {name: int((values == name).sum()) for name in names}
    groups = tuple(
        Group(
            attribute.titles[name],
            counts[name],
            {rate: _metric(item, counts[name]) for rate, item in drawn[name].items()},
        )
        for name in names
    )
    differences, ratios = {}, {}
    for rate in RATES:
        own = [n for n in names if counts[n] >= MIN_GROUP and rate in drawn[n]]
        if len(own) < 2:
            continue
        among = np.stack([drawn[name][rate] for name in own])
        rows = sum(counts[name] for name in own)
        differences[rate] = _metric(np.ptp(among, axis=0), rows)
        if rate in RATIOS and among[:, 0].max() > 0:
            with np.errstate(invalid="ignore"):
                ratios[rate] = _metric(among.min(axis=0) / among.max(axis=0), rows)
    return Fairness(attribute.name, groups, differences, ratios)


def _weights(n: int, random: np.random.Generator) -> Floats:
    """``(1 + RESAMPLES, n)``: each row once; then how often each is drawn."""
    drawn = random.multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
    return np.concatenate([np.ones((1, n)), drawn])


def _rates(
    weights: Floats,
    own: NDArray[np.bool_],
    truth: NDArray[np.bool_],
    given: NDArray[np.bool_],
    scores: Floats | None,
) -> dict[str, Floats]:
    """The rates of a group by each line of weights, the rows' own first.

    Those that the rows do not have are left out; NaN where a resample lacks them.
    """
    drawn = weights[:, own]
    positive, chosen = truth[own], given[own]

    def share(hits: NDArray[Any], among: NDArray[Any]) -> Floats:
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray((drawn @ hits.astype(float)) / (drawn @ among))

    everyone = np.ones(len(positive))
    rates = {
        "selection_rate": share(chosen, everyone),
        "tpr": share(chosen & positive, positive.astype(float)),
        "fpr": share(chosen & ~positive, (~positive).astype(float)),
        "accuracy": share(chosen == positive, everyone),
    }
    if scores is not None:
        rates["calibration"] = share(scores[own] - positive, everyone)
    return {rate: values for rate, values in rates.items() if np.isfinite(values[0])}


def _listed(items: Sequence[str]) -> str:
    """One name as it is; several with commas between them, never inside."""
    return items[0] if len(items) == 1 else ",".join(map(_quoted, items))


def _quoted(item: str) -> str:
    """A name as CSV would write it, where it could be taken for several."""
    if not any(mark in item for mark in ',="'):
        return item
    return '"' + item.replace('"', '""') + '"'


def _metric(values: Floats, rows: int) -> Metric:
    """The first value, with the interval of the others."""
    value, again = float(values[0]), values[1:]
    known = again[np.isfinite(again)]
    ends = np.quantile(known, [_TAIL, 1 - _TAIL]) if len(known) else (value, value)
    # A difference is never negative, so that its bootstrap may lie above the value.
    return Metric(
        value=value,
        n=rows,
        low=min(value, float(ends[0])),
        high=max(value, float(ends[1])),
        confidence=CONFIDENCE,
    )
