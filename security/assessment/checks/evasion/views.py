"""What people are shown of evasion: curves, tables, and the worst examples.

Everything here is in the form that `reporting.html` draws: ``charts``, ``tables`` and
``examples`` of a check's details.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.report import Metric
from security.assessment.checks.evasion.results import NormResult
from security.assessment.plan.context import Context, Job
from security.assessment.plan.images import change_pictures
from security.assessment.results import intervals

__all__ = ["change_rows", "curve_chart", "evasion_views", "measured", "shown_change"]

_NORM_NAMES = {"linf": "L\N{INFINITY}", "l2": "L2"}
# Examples of the first norm, and of each other one: these are much the same rows.
_EXAMPLES, _MORE_EXAMPLES = 6, 3
_CHANGES = 12


def evasion_views(
    context: Context, results: Mapping[str, NormResult]
) -> dict[str, Any]:
    """Charts, tables and examples of all norms."""
    job = context.job
    units = "share of each value's range" if job.space.units == "range" else "raw"
    return {
        "charts": [
            curve_chart(
                f"Security curve, {_NORM_NAMES[norm]}: worst case over all attacks",
                "share of each row's own radius"
                if result.plan.own is not None
                else f"radius ({units})",
                [(r, _robust(result, r)) for r in (0.0, *result.plan.curve)],
            )
            for norm, result in results.items()
        ],
        "tables": [_by_radius(results), _by_attack(results), _by_class(job, results)],
        "examples": [
            example
            for place, (norm, result) in enumerate(results.items())
            for example in _examples(
                context, norm, result, _MORE_EXAMPLES if place else _EXAMPLES
            )
        ],
    }


def curve_chart(
    title: str, across: str, points: Sequence[tuple[float, Metric]]
) -> dict[str, Any]:
    """Robust accuracy against what an attacker may do; infinity is left out."""
    return {
        "title": title,
        "x": across,
        "y": "robust accuracy",
        "y_low": 0.0,
        "y_high": 1.0,
        "series": [
            {
                "name": "",
                "points": [
                    [float(x), m.value, float(m.low or 0.0), float(m.high or 0.0)]
                    for x, m in points
                    if np.isfinite(x)
                ],
            }
        ],
    }


def change_rows(
    job: Job, before: NDArray[Any], after: NDArray[Any]
) -> list[list[float | str]]:
    """The columns that changed, with both values, the largest change first."""
    moved = np.abs(after.astype(np.float64) - before.astype(np.float64))
    share = np.nan_to_num(moved / (job.space.high - job.space.low))
    order = np.argsort(-share, kind="stable")[: int((share > 0).sum())]
    rows: list[list[float | str]] = [
        [job.space.rules[c].name, job.cell(c, before[c]), job.cell(c, after[c])]
        for c in order[:_CHANGES]
    ]
    if len(order) > _CHANGES:
        rows.append([f"and {len(order) - _CHANGES} more", "", ""])
    return rows


def measured(metric: Metric) -> str:
    """A share with its interval, in a cell of a table."""
    return f"{metric.value:.3f} [{metric.low or 0:.3f}, {metric.high or 0:.3f}]"


def _robust(result: NormResult, radius: float) -> Metric:
    return intervals.proportion(result.robust(radius), result.rows)


def _by_radius(results: Mapping[str, NormResult]) -> dict[str, Any]:
    rows = [
        [
            _NORM_NAMES[norm],
            result.plan.say(radius),
            measured(_robust(result, radius)),
            _proved(result, radius),
            result.rows,
        ]
        for norm, result in results.items()
        for radius in (0.0, *result.plan.curve)
    ]
    return {
        "title": "Robust accuracy by radius (95% interval)",
        "columns": ["norm", "radius", "robust accuracy", "proved", "n"],
        "rows": rows,
    }


def _proved(result: NormResult, radius: float) -> str:
    """The share that nothing can turn, where it was tried; "" elsewhere."""
    if radius not in result.certified:
        return ""
    return measured(intervals.proportion(result.verified(radius), result.rows))


def _by_attack(results: Mapping[str, NormResult]) -> dict[str, Any]:
    rows = [
        [_NORM_NAMES[norm], name, counts["tried"], counts["broken"]]
        for norm, result in results.items()
        for name, counts in result.attacks.items()
    ]
    return {
        "title": "Attacks: rows tried, at all radii, and examples confirmed",
        "columns": ["norm", "attack", "tried", "confirmed"],
        "rows": rows,
    }


def _by_class(job: Job, results: Mapping[str, NormResult]) -> dict[str, Any]:
    columns = [
        f"{_NORM_NAMES[norm]} {result.plan.say(result.plan.radius)}"
        for norm, result in results.items()
    ]
    rows = []
    for index, name in enumerate(job.reading.classes):
        cells: list[Any] = []
        for result in results.values():
            own = job.labels[result.places] == index
            kept = own & result.standing(result.plan.radius)
            share = intervals.proportion(int(kept.sum()), max(1, int(own.sum())))
            cells += [measured(share), int(own.sum())] if own.any() else ["", 0]
        rows.append([name, *cells])
    return {
        "title": "Robust accuracy by class (95% interval)",
        "columns": ["class", *(part for name in columns for part in (name, "n"))],
        "rows": rows,
    }


def _examples(
    context: Context, norm: str, result: NormResult, count: int
) -> list[dict[str, Any]]:
    """The closest examples: the rows that need the least."""
    job, places = context.job, result.order()[:count]
    if not len(places):
        return []
    given = _given(context, result.examples[places])
    return [
        _example(job, norm, result, int(place), name)
        for place, name in zip(places, given, strict=True)
    ]


def _given(context: Context, rows: NDArray[Any]) -> list[str]:
    """What the model calls them; an endpoint is not asked again for that."""
    if context.job.remote:
        return ["another class"] * len(rows)
    classes = context.job.reading.classes
    labels = context.target.ask(rows).labels
    return [classes[label] if label >= 0 else "nothing" for label in labels.tolist()]


def _example(
    job: Job, norm: str, result: NormResult, place: int, given: str
) -> dict[str, Any]:
    row = int(result.places[place])
    before, after = job.rows[row], result.examples[place]
    name = job.reading.classes[int(job.labels[row])]
    caption = (
        f"Row {int(job.places[row])}: class {name} "
        f"becomes {given} at {_NORM_NAMES[norm]} {result.distance[place]:.3g}, by "
        f"{result.attack_name(place)}"
    )
    return {"caption": caption, **shown_change(job, before, after)}


def shown_change(
    job: Job, before: NDArray[Any], after: NDArray[Any]
) -> dict[str, list[Any]]:
    """What a page draws of an example: its pictures, or the columns it changes."""
    images = change_pictures(job, before, after)
    return (
        {"images": images} if images else {"changes": change_rows(job, before, after)}
    )
