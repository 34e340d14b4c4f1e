"""Whether a model treats groups of people alike, each figure with its interval.

Point values are fairlearn's; intervals are percentile bootstrap over rows. A group
smaller than `MIN_GROUP` is counted and named, but takes part in no difference: a rate
of ten people says nothing about their group.

Hardt, Price, Srebro, "Equality of Opportunity in Supervised Learning" (2016);
29 CFR 1607.4 (D) for the four-fifths rule.
"""

from __future__ import annotations

import warnings
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
    names = np.unique(values)
    weights = _resamples(len(values), random)
    points = _points(values, truth, given, scores)
    drawn = {
        name: _rates(weights, values == name, truth, given, scores) for name in names
    }
    groups = tuple(
        _group(
            attribute.titles[str(name)],
            int((values == name).sum()),
            points[str(name)],
            drawn[name],
        )
        for name in names
    )
    large = [name for name in names if (values == name).sum() >= MIN_GROUP]
    differences, ratios = {}, {}
    for rate in RATES:
        own = [name for name in large if rate in points.get(name, {})]
        if len(own) < 2:
            continue
        now = np.array([points[name][rate] for name in own])
        again = np.stack([drawn[name][rate] for name in own])
        rows = int(np.isin(values, own).sum())
        differences[rate] = _metric(np.ptp(now), np.ptp(again, axis=0), rows)
        if rate in RATIOS and now.max() > 0:
            with np.errstate(invalid="ignore"):
                quotient = again.min(axis=0) / again.max(axis=0)
            ratios[rate] = _metric(now.min() / now.max(), quotient, rows)
    return Fairness(attribute.name, groups, differences, ratios)


def _resamples(n: int, random: np.random.Generator) -> Floats:
    """``(RESAMPLES, n)``: how often each row is drawn."""
    chances = np.full(n, 1 / n)
    return random.multinomial(n, chances, size=RESAMPLES).astype(np.float64)


def _points(
    values: NDArray[np.str_],
    truth: NDArray[np.bool_],
    given: NDArray[np.bool_],
    scores: Floats | None,
) -> dict[str, dict[str, float]]:
    from fairlearn import metrics  # noqa: PLC0415  (seconds)

    functions: dict[str, Any] = {
        "selection_rate": metrics.selection_rate,
        "tpr": metrics.true_positive_rate,
        "fpr": metrics.false_positive_rate,
        "accuracy": lambda y, p: float(np.mean(y == p)),
    }
    with warnings.catch_warnings():
        # A group without positives has no true positive rate: left out below.
        warnings.simplefilter("ignore")
        frame = metrics.MetricFrame(
            metrics=functions,
            y_true=truth.astype(int),
            y_pred=given.astype(int),
            sensitive_features=values.astype(object),
        ).by_group
    points: dict[str, dict[str, float]] = {}
    for name in np.unique(values):
        own = values == name
        known = {rate: float(frame.loc[name, rate]) for rate in functions}
        if truth[own].all():
            del known["fpr"]
        if not truth[own].any():
            del known["tpr"]
        if scores is not None:
            known["calibration"] = float(scores[own].mean() - truth[own].mean())
        points[str(name)] = known
    return points


def _rates(
    weights: Floats,
    own: NDArray[np.bool_],
    truth: NDArray[np.bool_],
    given: NDArray[np.bool_],
    scores: Floats | None,
) -> dict[str, Floats]:
    """The rates of a group in each resample ``(RESAMPLES,)``; NaN where empty."""
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
    return rates


def _group(
    name: str, rows: int, points: Mapping[str, float], drawn: Mapping[str, Floats]
) -> Group:
    rates = {rate: _metric(value, drawn[rate], rows) for rate, value in points.items()}
    return Group(name, rows, rates)


def _listed(items: Sequence[str]) -> str:
    """One name as it is; several with commas between them, never inside."""
    return items[0] if len(items) == 1 else ",".join(map(_quoted, items))


def _quoted(item: str) -> str:
    """A name as CSV would write it, where it could be taken for several."""
    if not any(mark in item for mark in ',="'):
        return item
    return '"' + item.replace('"', '""') + '"'


def _metric(value: float, again: Sequence[float] | Floats, rows: int) -> Metric:
    known = np.asarray(again)[np.isfinite(again)]
    ends = [float(value)] * 2
    if len(known):
        ends = [float(end) for end in np.quantile(known, [_TAIL, 1 - _TAIL])]
    # A difference is never negative, so that its bootstrap may lie above the value.
    return Metric(
        value=float(value),
        n=rows,
        low=min(float(value), ends[0]),
        high=max(float(value), ends[1]),
        confidence=CONFIDENCE,
    )
