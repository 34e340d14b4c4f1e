"""Fairness as a check: groups by attribute, and by several together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.report import Metric
from security.assessment.checks import rates
from security.assessment.checks.rates import MIN_GROUP, Attribute, Fairness, Group
from security.assessment.plan.checks import Outcome, Unit
from security.assessment.plan.context import Context
from security.assessment.results.result import CheckResult, ScanFinding

__all__ = [
    "FairnessCheck",
    "crossings",
    "figures",
    "named",
    "rates_table",
    "small_groups",
]

_GAP = 0.1
_FOUR_FIFTHS = 0.8
_MAX_GROUPS = 50
_NAMED = 10


class FairnessCheck:
    """Compares groups of the held-out rows."""

    name = "fairness"
    title = "fairness by group"

    def missing(self, context: Context) -> str | None:
        """Groups must be stated, and a positive class known."""
        if not context.job.groups:
            return "no sensitive columns are stated (`sensitive` in --data-config)"
        if _positive(context) is None:
            return (
                f"which of {len(context.job.reading.classes)} classes is the positive "
                "one is not stated (`positive` in --data-config)"
            )
        return None

    def units(self, context: Context) -> list[Unit]:
        """None: the answers are known."""
        del context
        return []

    def run(self, unit: Unit, context: Context) -> Outcome:
        """Nothing is planned."""
        raise TypeError("fairness has no units")

    def conclude(
        self, context: Context, outcomes: Mapping[str, Outcome]
    ) -> CheckResult:
        """Findings where a gap is larger than chance would make it."""
        measured = [_measured(context, parts) for parts in crossings(context)]
        results = [item for item, _ in measured]
        positive = _positive(context)
        return CheckResult(
            self.name,
            kind="fairness",
            conditions={
                "positive_class": context.job.reading.classes[positive or 0],
                "min_group": MIN_GROUP,
                **({"rows": "answered"} if context.abstains else {}),
                "interval": "wilson",
                "calibration_interval": "agresti_coull",
                "difference_interval": "newcombe",
                "ratio_interval": "donner_zou",
                "several_groups": "bonferroni over pairs",
            },
            metrics=figures(results),
            findings=tuple(found for item in results for found in _findings(item)),
            details={
                "tables": [
                    table
                    for item, counts in measured
                    for table in (
                        rates_table(item, rates.RATES),
                        _confusion_table(
                            item.attribute,
                            context.job.reading.classes[positive or 0],
                            counts,
                        ),
                    )
                ]
            },
        )


def figures(results: Sequence[Fairness]) -> dict[str, Metric]:
    """Differences, ratios and the groups' own rates, by name."""
    metrics: dict[str, Metric] = {}
    for item in results:
        metrics |= {
            f"{rate}_difference/{item.attribute}": metric
            for rate, metric in item.differences.items()
        }
        metrics |= {
            f"{rate}_ratio/{item.attribute}": metric
            for rate, metric in item.ratios.items()
        }
        for group in item.groups:
            metrics |= {
                f"{rate}/{group.name}": metric
                for rate, metric in group.rates.items()
                if group.enough(rate)
            }
    return metrics


def _measured(
    context: Context, parts: tuple[str, ...]
) -> tuple[Fairness, list[list[Any]]]:
    """One attribute, or several together: its rates, and its confusion."""
    job, positive = context.job, _positive(context)
    known = job.clean.labels >= 0
    columns = {name: values[known] for name, values in job.groups.items()}
    attribute = Attribute.of(parts, columns)
    truth = job.labels[known] == positive
    given = job.clean.labels[known] == positive
    scores = None
    if job.reading.form == "probabilities":
        scores = job.clean.scores[known][:, positive]
    result = rates.measure(attribute, rates.of_classes(truth, given, scores))
    return result, _confusion(attribute.values, truth, given)


def _confusion(
    values: NDArray[np.str_], truth: NDArray[np.bool_], given: NDArray[np.bool_]
) -> list[list[Any]]:
    """Per group: its rows, by what they are and what the model says."""
    kinds = (truth & given, truth & ~given, ~truth & given, ~truth & ~given)
    return [
        [str(group), *(int(((values == group) & kind).sum()) for kind in kinds)]
        for group in np.unique(values)
    ]


def _confusion_table(
    attribute: str, positive: str, rows: list[list[Any]]
) -> dict[str, Any]:
    return {
        "title": f"Confusion by {attribute}; positive is {positive}",
        "columns": [
            *("group", "true positives", "false negatives"),
            *("false positives", "true negatives", "n"),
        ],
        "rows": [[*row, sum(row[1:])] for row in rows[:_MAX_GROUPS]],
    }


def _positive(context: Context) -> int | None:
    """The positive class's place: as stated, or the second of two."""
    classes, stated = context.job.reading.classes, context.job.config.positive
    if stated is not None:
        return classes.index(stated) if stated in classes else None
    return 1 if len(classes) == 2 else None


def crossings(context: Context) -> list[tuple[str, ...]]:
    """Each attribute, every two of them, and all together."""
    names = sorted(context.job.groups)
    together: list[tuple[str, ...]] = list(combinations(names, 2))
    if len(names) > 2:
        together.append(tuple(names))
    return [*((name,) for name in names), *together]


def _findings(item: Fairness) -> Iterator[ScanFinding]:
    yield from small_groups(item)
    ratio = item.ratios.get("selection_rate")
    if ratio is not None and ratio.high is not None and ratio.high < _FOUR_FIFTHS:
        least, most = item.extremes["selection_rate"]
        yield ScanFinding(
            "fairness-selection",
            f"{named(least)} gets the positive class {ratio.value:.2f} times as often "
            f"as {named(most)}",
            item.attribute,
            ratio,
        )
    for rate in ("tpr", "fpr", "accuracy", "calibration"):
        gap = item.differences.get(rate)
        if gap is not None and gap.low is not None and gap.low > _GAP:
            least, most = item.extremes[rate]
            yield ScanFinding(
                "fairness-gap",
                f"{rate} of {named(least)} is {gap.value:.2f} below that of "
                f"{named(most)}",
                f"{item.attribute}/{rate}",
                gap,
            )


def small_groups(item: Fairness) -> Iterator[ScanFinding]:
    """Says which groups have too few rows, or too few positives or negatives."""
    few = [
        f"{named(group.name)} ({group.rows} rows)"
        for group in item.groups
        if group.rows < MIN_GROUP
    ]
    classes = any("selection_rate" in group.rates for group in item.groups)
    kinds = (("tpr", "positives"), ("fpr", "negatives")) if classes else ()
    for rate, kind in kinds:
        few += [
            f"{named(group.name)} ({_count(group, rate)} {kind})"
            for group in item.groups
            if group.rows >= MIN_GROUP and not group.enough(rate)
        ]
    if few:
        more = f" and {len(few) - _NAMED} more" if len(few) > _NAMED else ""
        yield ScanFinding(
            "fairness-small-group",
            f"fewer than {MIN_GROUP}, so not compared: {', '.join(few[:_NAMED])}{more}",
            item.attribute,
        )


def _count(group: Group, rate: str) -> int:
    metric = group.rates.get(rate)
    return 0 if metric is None else metric.n or 0


def named(group: str) -> str:
    """A group's name for a message: its values are whatever the data holds."""
    return repr(group[:60])


def rates_table(item: Fairness, names: Sequence[str]) -> dict[str, Any]:
    """The rates of each group, as far as they are known."""
    known = [r for r in names if any(r in g.rates for g in item.groups)]
    rows = [
        [group.name, group.rows, *(_text(group, rate) for rate in known)]
        for group in item.groups[:_MAX_GROUPS]
    ]
    return {
        "title": f"By {item.attribute}",
        "columns": ["group", "rows", *(rate.replace("_", " ") for rate in known)],
        "rows": rows,
    }


def _text(group: Group, rate: str) -> str:
    metric = group.rates.get(rate)
    if metric is None:
        return "none"
    if not group.enough(rate):
        return f"too few ({metric.n})"
    if metric.low is None:
        return f"{metric.value:.4g}, n={metric.n}"
    return f"{metric.value:.3f} [{metric.low:.3f}, {metric.high:.3f}], n={metric.n}"
