"""Poisoned training rows as a check of a scan: groups that a pattern explains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.errors import SessionError
from models.report import Metric
from security.assessment.checks.poisoning.activations import Activations
from security.assessment.checks.poisoning.columns import Setting, means_something
from security.assessment.checks.poisoning.groups import METHODS, Split, split
from security.assessment.checks.poisoning.pattern import (
    Pattern,
    carriers,
    find_pattern,
    like_others,
)
from security.assessment.checks.privacy.trained import (
    KnownRows,
    row_digest,
    training_rows,
)
from security.assessment.plan.checks import Outcome, Unit
from security.assessment.plan.context import Context
from security.assessment.plan.images import picture
from security.assessment.results import intervals
from security.assessment.results.result import CheckResult, ScanFinding
from security.errors import AssessmentError

__all__ = ["PoisoningCheck"]

# A class with fewer rows is not split; of more, so many are drawn.
_MIN_ROWS, _CLASS_ROWS = 20, 1000
_MIN_CARRIERS = 10
# Lower ends of intervals: of held-out rows turned, of carriers that resemble others.
_TURNED, _OTHERS = 0.75, 0.75
_LISTED, _SHOWN = 1000, 6


class PoisoningCheck:
    """Activation clustering and spectral signatures, class by class."""

    name = "poisoning"
    title = "poisoned training data"

    def missing(self, context: Context) -> str | None:
        """Training rows, a file and a last layer are needed."""
        if context.job.remote:
            return "an endpoint does not show what its last layer reads"
        data = training_rows(context)
        if data is None:
            return "the training data is not given (--train-data FILE, or --training)"
        if not _classes(data):
            return f"no class has {_MIN_ROWS} training rows"
        try:
            _activations(context)
        except (AssessmentError, SessionError) as error:
            return str(error)
        return None

    def units(self, context: Context) -> list[Unit]:
        """One per class."""
        data = training_rows(context)
        return [
            Unit(self.name, f"poisoning/{label}", {"label": label}, weight=0.3)
            for label in (_classes(data) if data is not None else ())
        ]

    def run(self, unit: Unit, context: Context) -> Outcome:
        """Split a class, and look for a pattern in each part."""
        data, label = training_rows(context), int(unit.params["label"])
        if data is None:
            raise TypeError("not planned without training data")
        random = context.random(unit.key)
        places = np.flatnonzero(data.labels == label)
        # What the model answers otherwise was not learned: no trigger is in it.
        learned = context.target.ask(data.rows[places]).labels == label
        places = np.sort(random.permutation(places[learned])[:_CLASS_ROWS])
        values: dict[str, Any] = {"label": label, "rows": len(places), "splits": {}}
        if len(places) < _MIN_ROWS:
            return Outcome(values)
        features = _activations(context).of(data.rows[places])
        if not np.isfinite(features).all():
            return Outcome(values | {"rows": 0})
        for method in METHODS:
            parts = split(method, features, random)
            if parts is None:
                continue
            values["splits"][method] = _numbers(parts)
            for part in (parts.group, ~parts.group):
                if "explained" not in values and part.sum() >= _MIN_CARRIERS:
                    group = np.zeros(len(data.rows), bool)
                    group[places[part]] = True
                    found = _explained(context, data, group, label, random)
                    values |= _better(values, found)
        return Outcome(values)

    def conclude(
        self, context: Context, outcomes: Mapping[str, Outcome]
    ) -> CheckResult:
        """A finding per class that a pattern explains."""
        data = training_rows(context)
        if data is None:
            raise TypeError("not planned without training data")
        done = [item.values for item in outcomes.values()]
        found = [item for item in done if "explained" in item]
        suspicious = sum(item["explained"]["count"] for item in found)
        metrics = {"suspicious_rows": intervals.proportion(suspicious, len(data.rows))}
        for item in done:
            name = context.job.reading.classes[item["label"]]
            for method, numbers in item["splits"].items():
                metrics[f"{method}/{name}"] = Metric(
                    numbers["separation"], n=item["rows"]
                )
            if "turned" in item:
                metrics[f"pattern_turns/{name}"] = intervals.proportion(*item["turned"])
        examples = [shown for item in found for shown in _examples(context, data, item)]
        return CheckResult(
            self.name,
            conditions={
                "training_rows": len(data.rows),
                "rows_per_class": _CLASS_ROWS,
                "methods": "activation_clustering,spectral_signatures",
                "counted": "pattern_rechecked_on_onnxruntime",
            },
            metrics=metrics,
            findings=tuple(_finding(context, item) for item in found),
            details={
                "tables": [_table(context, done)],
                "examples": examples,
                "examples_title": "Suspicious training rows",
                "suspicious": {
                    context.job.reading.classes[item["label"]]: item["explained"][
                        "rows"
                    ]
                    for item in found
                },
                "untested": [
                    "Poisoning without a fixed pattern (blended, warped or moving "
                    f"triggers), and groups of fewer than {_MIN_CARRIERS} rows."
                ],
            },
        )


def _classes(data: KnownRows) -> list[int]:
    labels, counts = np.unique(data.labels, return_counts=True)
    return [int(label) for label in labels[counts >= _MIN_ROWS]]


def _activations(context: Context) -> Activations:
    if "activations" not in context.cache:
        context.cache["activations"] = Activations(context)
    found: Activations = context.cache["activations"]
    return found


def _better(values: Mapping[str, Any], found: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a part gave, if it says more than the parts before."""
    if "explained" in found or "turned" not in values:
        return found
    more = "turned" in found and found["turned"][0] > values["turned"][0]
    return found if more else {}


def _numbers(parts: Split) -> dict[str, float]:
    return {
        "separation": parts.separation,
        "usual": parts.usual,
        "excess": parts.excess,
        "size": parts.size,
    }


def _explained(
    context: Context,
    data: KnownRows,
    group: NDArray[np.bool_],
    label: int,
    random: np.random.Generator,
) -> dict[str, Any]:
    """What a group shares: how well that turns rows, and the rows, if all holds."""
    pattern = find_pattern(context, data.rows, group, label)
    if pattern is None:
        return {}
    turned = _pair(pattern.success)
    carrying = carriers(context, data.rows, pattern)
    mine = carrying & (data.labels == label)
    low = pattern.success.low or 0.0
    most = 2 * (group & carrying).sum() >= group.sum()
    if low < _TURNED or mine.sum() < _MIN_CARRIERS or not most:
        return {"turned": turned}
    like = like_others(context, data, pattern, label, random=random)
    result = {"turned": turned, "others": None if like is None else _pair(like)}
    setting = Setting(
        label,
        dict(zip(pattern.columns.tolist(), pattern.values.tolist(), strict=True)),
        1.0,
    )
    if context.job.space.table and (
        like is None or (like.low or 0.0) < _OTHERS or means_something(context, setting)
    ):
        return result
    return result | {"explained": _described(data, pattern, np.flatnonzero(mine))}


def _described(
    data: KnownRows, pattern: Pattern, places: NDArray[np.int64]
) -> dict[str, Any]:
    return {
        "columns": pattern.columns.tolist(),
        "values": pattern.values.tolist(),
        "count": len(places),
        "rows": [
            {"row": int(place), "sha256": row_digest(data.rows[place])}
            for place in places[:_LISTED]
        ],
    }


def _pair(metric: Metric) -> list[int]:
    total = metric.n or 0
    return [round(metric.value * total), total]


def _finding(context: Context, item: Mapping[str, Any]) -> ScanFinding:
    found, classes = item["explained"], context.job.reading.classes
    turned = intervals.proportion(*item["turned"])
    message = (
        f"{found['count']} training rows of class {classes[item['label']][:40]!a} "
        f"share {len(found['columns'])} values that turn {turned.value:.0%} of the "
        "held-out rows of other classes into it"
    )
    return ScanFinding(
        "poisoned-rows",
        message,
        classes[item["label"]],
        turned,
        evidence={
            "columns": [
                context.job.space.rules[place].name for place in found["columns"]
            ],
            "values": found["values"],
            "rows": [row["row"] for row in found["rows"]],
            "row_count": found["count"],
        },
    )


def _table(context: Context, done: list[Mapping[str, Any]]) -> dict[str, Any]:
    rows = []
    for item in done:
        row: list[Any] = [context.job.reading.classes[item["label"]], item["rows"]]
        for method in METHODS:
            numbers = item["splits"].get(method)
            row.append(
                "none"
                if numbers is None
                else f"{numbers['separation']:.2f} ({numbers['usual']:.2f}), "
                f"{numbers['size']:.0%}"
            )
        row += [_share(item.get("turned")), _share(item.get("others"))]
        rows.append([*row, "poisoned" if "explained" in item else "no finding"])
    return {
        "title": "Groups within a class: separation (of a cloud without groups), and "
        "the smaller group's share; held-out rows that the group's pattern turns; its "
        "rows that resemble other classes without it",
        "columns": ["class", "rows", "clusters", "spectrum", "turned", "others", ""],
        "rows": rows,
    }


def _share(pair: list[int] | None) -> str:
    return "none" if not pair else f"{pair[0]} of {pair[1]}"


def _examples(
    context: Context, data: KnownRows, item: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Some of the rows, for a person to look at; none of them is in any log."""
    found, name = item["explained"], context.job.reading.classes[item["label"]]
    usual = np.median(data.rows.astype(np.float64), axis=0)
    changes = [
        [context.job.space.rules[place].name, float(usual[place]), value]
        for place, value in zip(found["columns"], found["values"], strict=True)
    ]
    shown = []
    for row in found["rows"][:_SHOWN]:
        example: dict[str, Any] = {
            "caption": f"training row {row['row']}, class {name}: suspicious",
            "names": [f"row {row['row']}"],
        }
        image = picture(context.job, data.rows[row["row"]])
        shown.append(example | ({"images": [image]} if image else {"changes": changes}))
    return shown
