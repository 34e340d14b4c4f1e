"""Triggers in a model as a check of a scan: searched for, then shown to the model.

What the search proposes counts only as far as the model as served follows it, on
held-out rows that the search has not seen, within the ranges. Then it must be unusual:

- a patch of an image, far smaller than what the other classes need (the index of Wang
  et al., and half the median size);
- columns of a table, with values that the held-out rows do not speak for: those that
  have them are of the class no more often than any. A column that means something is
  no trigger.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.report import Metric
from security.assessment.checks.evasion.cascade import white_box_of
from security.assessment.checks.poisoning.columns import (
    is_candidate,
    search_settings,
    support,
)
from security.assessment.checks.poisoning.trigger import search_patches, unusual
from security.assessment.plan.checks import Outcome, Unit
from security.assessment.plan.context import Context
from security.assessment.plan.images import layout_of, picture
from security.assessment.results import intervals
from security.assessment.results.result import CheckResult, ScanFinding

__all__ = ["TriggerCheck"]

_MAX_CLASSES, _CLASSES_PER_UNIT = 50, 10
_MAX_VALUES, _MAX_COLUMNS = 20_000, 512
_STEPS = {"quick": 150, "standard": 300, "thorough": 600}
# Rows searched with, fewer of large images; and the fewest that are left to confirm.
_SEARCH_ROWS, _HELD_ROWS, _MIN_HELD = 48, 200, 20
# The lower end of the share of held-out rows that a trigger turns: a patch, columns.
_PATCH_TURNS, _COLUMNS_TURN = 0.75, 0.9
# Of patches: the anomaly index, and the share of the median size. Below so many classes
# a median says nothing; then the share of the image, and of the next larger patch.
_INDEX, _HALF = 2.0, 0.5
_MIN_CLASSES, _TINY, _QUARTER = 4, 0.05, 0.25


class TriggerCheck:
    """The smallest fixed change that sends everything to one class."""

    name = "trigger"
    title = "triggers in the model"

    def missing(self, context: Context) -> str | None:
        """Files only; images need a gradient, and neither may be too large."""
        job = context.job
        if job.remote:
            return "an endpoint's quota is better spent on attacks"
        if len(job.rows) < _MIN_HELD + 10:
            return f"fewer than {_MIN_HELD + 10} rows"
        width = job.rows.shape[1]
        if layout_of(context.job) is None:
            many = f"{width} columns; at most {_MAX_COLUMNS} are searched"
            return many if width > _MAX_COLUMNS else None
        if width > _MAX_VALUES:
            return f"images of {width} values; at most {_MAX_VALUES} are searched"
        white, reason = white_box_of(context)
        return None if white is not None else f"no gradient: {reason}"

    def units(self, context: Context) -> list[Unit]:
        """Of images some classes each; of tables one."""
        labels = _searched(context)
        if layout_of(context.job) is None:
            return [Unit(self.name, "trigger/columns", {"labels": labels}, weight=0.5)]
        return [
            Unit(self.name, f"trigger/{start:03}", {"labels": labels[start:end]})
            for start in range(0, len(labels), _CLASSES_PER_UNIT)
            for end in (start + _CLASSES_PER_UNIT,)
        ]

    def run(self, unit: Unit, context: Context) -> Outcome:
        """Search some classes, and show what was found to the model as served."""
        labels = [int(label) for label in unit.params["labels"]]
        if layout_of(context.job) is None:
            return Outcome({"made": list(_columns(context, labels))})
        return _patches(context, labels, unit.key)

    def conclude(
        self, context: Context, outcomes: Mapping[str, Outcome]
    ) -> CheckResult:
        """What is unusual enough to be a trigger."""
        image = layout_of(context.job) is not None
        found = [
            {**item, "images": _images(context, out, place)}
            for out in outcomes.values()
            for place, item in enumerate(out.values["made"])
        ]
        if image:
            _mark_patches(found, context)
        metrics: dict[str, Metric] = {}
        for item in found:
            name = context.job.reading.classes[item["label"]]
            metrics[f"size/{name}"] = Metric(float(item["size"]))
            if item["turned"][1]:
                metrics[f"turned/{name}"] = intervals.proportion(*item["turned"])
        bad = [item for item in found if item["trigger"]]
        return CheckResult(
            self.name,
            conditions={
                "method": "mask_and_pattern" if image else "greedy_columns",
                "classes": len(found),
                "counted": "rechecked_on_onnxruntime",
                "rows": "held_out_unseen_by_the_search",
            },
            metrics=metrics,
            findings=tuple(_finding(context, item, image) for item in bad),
            details={
                "tables": [_table(context, found, image)],
                "examples": [_example(context, item) for item in bad],
                "examples_title": "An unseen row, and what the change makes of it",
                "untested": _untested(context, len(found)),
            },
        )


def _searched(context: Context) -> list[int]:
    """The classes, the most frequent ones if there are many."""
    job = context.job
    counts = np.bincount(job.labels, minlength=len(job.reading.classes))
    order = np.argsort(-counts, kind="stable")[:_MAX_CLASSES]
    return sorted(int(label) for label in order)


def _parts(context: Context) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Places of the rows to search with, and of those to confirm with."""
    job = context.job
    order = context.random("trigger/rows").permutation(len(job.rows))
    width = job.rows.shape[1]
    wanted = _SEARCH_ROWS // (1 + (width > 1024) + 2 * (width > 4096))
    count = min(wanted, len(order) - _MIN_HELD)
    return order[:count], order[count : count + _HELD_ROWS]


def _patches(context: Context, labels: list[int], key: str) -> Outcome:
    torch.set_num_threads(1)  # repeatable sums; processes share the work
    job, image = context.job, layout_of(context.job)
    white, reason = white_box_of(context)
    if white is None or image is None:
        raise TypeError(f"not planned without a gradient: {reason}")
    search, held = _parts(context)
    back = torch.as_tensor(image.back)
    made = search_patches(
        lambda planes: white.model(planes[:, back]),
        white.tensor(job.space.to_z(job.rows[search])[:, image.order]),
        labels,
        shape=image.shape,
        free=~job.space.held[image.order],
        steps=_STEPS[job.options.profile],
        seed=context.seed(key),
    )
    found, before, after = [], [], []
    for patch in made:
        rows = _others(context, held, patch.label)
        start = job.rows[rows]
        changed = job.space.repair(
            patch.on(job.space.to_z(start)[:, image.order])[:, image.back],
            *(start, "linf", np.inf),
        )
        found.append(
            {
                "label": patch.label,
                "size": patch.size,
                "turned": _turned(context, changed, patch.label),
            }
        )
        before.append(job.rows[rows[:1]] if len(rows) else job.rows[:1])
        after.append(changed[:1] if len(rows) else job.rows[:1])
    return Outcome(
        {"made": found},
        {"before": np.concatenate(before), "after": np.concatenate(after)},
    )


def _images(context: Context, outcome: Outcome, place: int) -> list[Any]:
    """A row before and after, where rows are images."""
    rows = [outcome.arrays[name][place] for name in sorted(outcome.arrays)[::-1]]
    return [image for row in rows if (image := picture(context.job, row)) is not None]


def _others(
    context: Context, places: NDArray[np.int64], label: int
) -> NDArray[np.int64]:
    """Rows that neither are of a class nor are given it."""
    job = context.job
    other = (job.labels[places] != label) & (job.clean.labels[places] != label)
    return places[other]


def _turned(context: Context, changed: NDArray[Any], label: int) -> list[int]:
    if not len(changed):
        return [0, 0]
    given = context.target.ask(changed).labels
    return [int((given == label).sum()), len(changed)]


def _columns(context: Context, labels: list[int]) -> Iterator[dict[str, Any]]:
    """What was found in a table, and whether it is a trigger."""
    job = context.job
    search, held = _parts(context)
    for setting in search_settings(context, job.rows[search], labels):
        rows = _others(context, held, setting.label)
        start = job.rows[rows]
        changed = setting.on(start)
        # What the rules forbid in a row does not turn it.
        free = job.space.allowed(changed, start, categories=True)
        turned = [_turned(context, changed[free], setting.label)[0], len(rows)]
        known = support(context, setting)
        candidate = is_candidate(context, setting)
        yield {
            "label": setting.label,
            "size": len(setting.changes),
            "turned": turned,
            "changes": [[int(c), float(v)] for c, v in setting.changes.items()],
            "support": [round(known.value * (known.n or 0)), known.n or 0],
            "trigger": candidate and _turns(turned, _COLUMNS_TURN),
        }


def _turns(turned: list[int], least: float) -> bool:
    if turned[1] < _MIN_HELD:
        return False
    return (intervals.proportion(*turned).low or 0.0) >= least


def _mark_patches(found: list[dict[str, Any]], context: Context) -> None:
    """Which patches are unusually small, of all classes."""
    sizes = np.array([item["size"] for item in found])
    index = unusual(sizes)
    image = layout_of(context.job)
    for place, item in enumerate(found):
        if len(found) >= _MIN_CLASSES:
            small = index[place] > _INDEX and sizes[place] < _HALF * np.median(sizes)
        else:
            others = np.delete(sizes, place)
            small = sizes[place] < _TINY * (image.height * image.width if image else 1)
            small &= not len(others) or sizes[place] < _QUARTER * others.min()
        item["index"] = float(index[place])
        item["trigger"] = bool(small and _turns(item["turned"], _PATCH_TURNS))


def _finding(context: Context, item: Mapping[str, Any], image: bool) -> ScanFinding:
    name = context.job.reading.classes[item["label"]]
    turned = intervals.proportion(*item["turned"])
    what = (
        f"a patch of {item['size']:.1f} pixels"
        if image
        else "setting "
        + ", ".join(
            f"{context.job.space.rules[c].name}={v:g}" for c, v in item["changes"]
        )
    )
    return ScanFinding(
        "trigger",
        f"{what[:200]} sends {turned.value:.0%} of unseen rows of other classes to "
        f"class {name[:40]!a}",
        name,
        turned,
        # A column may decide for a reason that the held-out rows do not show.
        severity="" if image else "warning",
    )


def _table(
    context: Context, found: list[dict[str, Any]], image: bool
) -> dict[str, Any]:
    rows = []
    for item in found:
        row: list[Any] = [context.job.reading.classes[item["label"]]]
        row += [f"{item['size']:.1f}" if image else item["size"]]
        row += [f"{item['turned'][0]} of {item['turned'][1]}"]
        if image:
            row += [f"{item['index']:.1f}"]
        else:
            row += [f"{item['support'][0]} of {item['support'][1]}"]
        rows.append([*row, "trigger" if item["trigger"] else "no finding"])
    unit = "pixels" if image else "columns"
    last = "anomaly index" if image else "rows with such values that are of the class"
    return {
        "title": "The smallest change that sends every row to a class",
        "columns": ["class", unit, "unseen rows turned", last, ""],
        "rows": rows,
    }


def _example(context: Context, item: Mapping[str, Any]) -> dict[str, Any]:
    name = context.job.reading.classes[item["label"]]
    caption = f"sends rows to class {name}"
    if "changes" not in item:
        return {"caption": caption, "images": item.get("images", [])}
    usual = np.median(context.job.rows.astype(np.float64), axis=0)
    changes = [
        [context.job.space.rules[column].name, float(usual[column]), value]
        for column, value in item["changes"]
    ]
    return {"caption": caption, "changes": changes}


def _untested(context: Context, classes: int) -> list[str]:
    lines = ["Triggers that move, blend in, or need more than a small change."]
    left = len(context.job.reading.classes) - classes
    if left:
        lines.append(f"Triggers of {left} classes that the held-out rows hardly have.")
    if layout_of(context.job) is None:
        lines.append("Triggers towards a class that half of the rows have anyway.")
    return lines
