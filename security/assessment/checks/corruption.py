"""Natural corruption: noise, blur, missing values, rounding, slips of units.

Nobody attacks here, so nothing of it counts as evasion: data are worn on their way, as
they are in every pipeline. Each corruption has a severity, and is applied to the same
rows: what it costs is the paired difference, by how much accuracy falls, or the mean
absolute error of a predicted number rises. Hendrycks and Dietterich, "Benchmarking
neural network robustness to common corruptions and perturbations" (2019), for images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.report import Metric
from security.assessment.plan.checks import Outcome, Unit
from security.assessment.plan.context import Context
from security.assessment.plan.images import layout_of
from security.assessment.results import intervals
from security.assessment.results.result import CheckResult, ScanFinding

__all__ = ["CorruptionCheck"]

Floats = NDArray[np.float64]
Rows = NDArray[Any]

_ROWS, _COLUMNS = 200, 20
_MIN_ROWS = 30
_NOISE = {True: (0.01, 0.05, 0.1), False: (0.05, 0.1, 0.2)}  # of the range; of tables
_BLUR = (0.5, 1.0, 2.0)  # pixels
_MISSING = (0.05, 0.2)  # of the cells
_DIGITS, _LEVELS = (2, 1), (16, 4)
_SLIPS: Mapping[str, Callable[[Floats], Floats]] = {
    "x10": lambda values: values * 10,
    "x100": lambda values: values * 100,
    "x1000": lambda values: values * 1000,
    "C_to_F": lambda values: values * 1.8 + 32,
}
# What is found, beyond chance: ten points of accuracy, half the error there is anyway.
_DROP, _RISE = 0.1, 0.5
# The mildest of each kind, which a model should not notice; of tables, and of images.
_MILD = {True: ("noise=0.01", "rounding=2_digits"), False: ("noise=0.05", "blur=0.5")}
_SHOWN = 25


@dataclass(frozen=True, eq=False)
class _Damage:
    """One corruption of some rows.

    Attributes:
        name: kind and severity, ``noise=0.05``.
        column: the only one that is changed, or -1 for all.
        rows: as they arrive.
    """

    name: str
    column: int
    rows: Rows


class CorruptionCheck:
    """What worn data cost, without an attacker."""

    name = "corruption"
    title = "natural corruption"

    def missing(self, context: Context) -> str | None:
        """Not where questions cost, nor of rows that none can be changed in."""
        if context.job.remote:
            return "it would spend an endpoint's quota"
        if len(context.job.rows) < _MIN_ROWS:
            return f"fewer than {_MIN_ROWS} rows"
        if not _numbers(context).any():
            return "no column holds numbers that vary"
        return None

    def units(self, context: Context) -> list[Unit]:
        """One unit."""
        del context
        return [Unit(self.name, "corruption/all", weight=0.3)]

    def run(self, unit: Unit, context: Context) -> Outcome:
        """Corrupt some rows in every way, and ask about them.

        Raises:
            BudgetError: time ran out.
        """
        job, random = context.job, context.random(unit.key)
        places = np.sort(random.permutation(len(job.rows))[:_ROWS])
        entries, costs = [], []
        for damage in _damages(context, job.rows[places], random):
            context.check_time()
            answers = context.target.ask(damage.rows)
            entries.append({"name": damage.name, "column": damage.column})
            if job.reading.number:
                costs.append(np.abs(answers.numbers - job.labels[places]))
            else:
                costs.append((answers.labels != job.labels[places]).astype(np.float64))
        word = "nan" if _takes_nan(context, job.rows[places]) else "zero"
        return Outcome(
            {"entries": entries, "missing_as": word},
            {"places": places, "costs": np.stack(costs)},
        )

    def conclude(
        self, context: Context, outcomes: Mapping[str, Outcome]
    ) -> CheckResult:
        """By how much each one costs, the worst columns named."""
        (outcome,) = outcomes.values()
        results = _results(context, outcome)
        number = context.job.reading.number
        what = "corruption_rise" if number else "corruption_drop"
        worst = _worst(results)
        return CheckResult(
            self.name,
            conditions={
                **({"predicts": "number"} if number else {}),
                "rows": len(outcome.arrays["places"]),
                "columns": len({item.column for item in results if item.column >= 0}),
                "counted": "mean absolute error" if number else "accuracy",
                "interval": "student, paired" if number else "bonett_price, paired",
                "several_columns": "bonferroni",
                "missing_as": outcome.values["missing_as"],
                "covered_by_dp": False,
            },
            metrics={f"{what}/{item.name}": item.cost for item in worst},
            findings=tuple(_findings(context, results)),
            details={"tables": [_table(context, results, number=number)]},
        )


@dataclass(frozen=True)
class _Cost:
    """What one corruption costs.

    Attributes:
        name, column: as of the corruption.
        cost: by how much accuracy falls, or the mean absolute error rises.
        unanswered: rows that get no usable answer any more.
    """

    name: str
    column: int
    cost: Metric
    unanswered: int

    @property
    def kind(self) -> str:
        """Of the corruption, without its severity."""
        return self.name.partition("=")[0]


def _numbers(context: Context) -> NDArray[np.bool_]:
    """Columns of numbers that vary: no category, no flag, none of a one-hot group."""
    space, rows = context.job.space, context.job.rows.astype(np.float64)
    named = [rule.kind == "category" or bool(rule.group) for rule in space.rules]
    varied = [len(np.unique(column[np.isfinite(column)])) for column in rows.T]
    return ~np.array(named) & (np.array(varied) > (2 if space.table else 1))


def _damages(
    context: Context, rows: Rows, random: np.random.Generator
) -> Iterator[_Damage]:
    job, usable = context.job, _numbers(context)
    table = job.space.table
    for share in _NOISE[table]:
        yield _Damage(f"noise={share:g}", -1, _noisy(context, rows, share, random))
    if not table:
        yield from _blurred(context, rows)
    yield from _without_values(context, rows, random)
    if rows.dtype.kind == "f":
        yield from _rounded(context, rows)
    if table:
        columns = np.flatnonzero(usable)
        columns = np.sort(random.permutation(columns)[:_COLUMNS])
        for column in columns.tolist():
            for name, slip in _SLIPS.items():
                changed = rows.astype(np.float64)
                changed[:, column] = slip(changed[:, column])
                yield _Damage(f"unit={name}", column, _cast(context, changed))


def _noisy(
    context: Context, rows: Rows, share: float, random: np.random.Generator
) -> Rows:
    space = context.job.space
    noise = random.normal(size=rows.shape) * share * (space.high - space.low)
    noisy = rows.astype(np.float64) + np.where(_numbers(context), noise, 0.0)
    inside = np.clip(noisy, np.minimum(space.low, rows), np.maximum(space.high, rows))
    return _cast(context, np.where(space.integer, np.round(inside), inside))


def _blurred(context: Context, rows: Rows) -> Iterator[_Damage]:
    from scipy.ndimage import gaussian_filter  # noqa: PLC0415  (only of images)

    image = layout_of(context.job)
    if image is None or min(image.height, image.width) < 4:
        return
    planes = image.planes(rows.astype(np.float64))
    for sigma in _BLUR:
        blurred = image.rows(gaussian_filter(planes, (0, 0, sigma, sigma)))
        yield _Damage(f"blur={sigma:g}", -1, _cast(context, blurred))


def _without_values(
    context: Context, rows: Rows, random: np.random.Generator
) -> Iterator[_Damage]:
    """NaN where the model answers such rows; else 0, as many programs write it."""
    table, usable = context.job.space.table, _numbers(context)
    empty = np.nan if _takes_nan(context, rows) else 0.0
    for share in _MISSING:
        gone = (random.random(rows.shape) < share) & usable
        if np.isnan(empty):
            gone[:, ~np.isin(np.arange(rows.shape[1]), context.job.fractions)] = False
        changed = np.where(gone, empty, rows.astype(np.float64))
        yield _Damage(f"missing={share:g}", -1, _cast(context, changed))
    if table:
        able = np.flatnonzero(usable)
        if np.isnan(empty):
            able = np.intersect1d(able, context.job.fractions)
        columns = np.sort(random.permutation(able)[:_COLUMNS])
        for column in columns.tolist():
            changed = rows.astype(np.float64)
            changed[:, column] = empty
            yield _Damage("missing=column", column, _cast(context, changed))


def _takes_nan(context: Context, rows: Rows) -> bool:
    """Whether rows of a table without a value get an answer."""
    able = np.intersect1d(np.flatnonzero(_numbers(context)), context.job.fractions)
    if not (context.job.space.table and len(able)):
        return False
    probe = rows[:_MIN_ROWS].copy()
    probe[:, able[0]] = np.nan
    return bool((context.target.ask(probe).labels >= 0).mean() > 0.5)


def _rounded(context: Context, rows: Rows) -> Iterator[_Damage]:
    """Fewer digits of a table's numbers, fewer levels of an image's."""
    space, usable = context.job.space, _numbers(context)
    values = rows.astype(np.float64)
    if not space.table:
        span = space.high - space.low
        for levels in _LEVELS:
            step = span / (levels - 1)
            made = space.low + np.round((values - space.low) / step) * step
            yield _Damage(f"rounding={levels}_levels", -1, _cast(context, made))
        return
    with np.errstate(divide="ignore", invalid="ignore"):
        size = np.floor(np.log10(np.abs(values)))
    size = np.where(np.isfinite(size), size, 0.0)
    for digits in _DIGITS:
        unit = 10.0 ** (size - digits + 1)
        made = np.where(usable, np.round(values / unit) * unit, values)
        word = "digit" if digits == 1 else "digits"
        yield _Damage(f"rounding={digits}_{word}", -1, _cast(context, made))


def _cast(context: Context, values: Floats) -> Rows:
    """To the model's type; a whole number that does not fit stops at its end."""
    kind = context.job.rows.dtype
    if kind.kind in "iu":
        ends = np.iinfo(kind)
        return np.clip(np.round(values), ends.min, ends.max).astype(kind)
    whole = context.job.space.integer & np.isfinite(values)
    with np.errstate(over="ignore"):
        return np.where(whole, np.round(values), values).astype(kind)


def _results(context: Context, outcome: Outcome) -> list[_Cost]:
    job, places = context.job, outcome.arrays["places"]
    entries = outcome.values["entries"]
    if job.reading.number:
        before = np.abs(job.clean.numbers - job.labels)[places]
    else:
        before = (job.clean.labels != job.labels)[places].astype(np.float64)
    columns = len({item["column"] for item in entries if item["column"] >= 0})
    several = 1 - (1 - intervals.CONFIDENCE) / max(1, columns)
    found = []
    for item, after in zip(entries, outcome.arrays["costs"], strict=True):
        level = several if item["column"] >= 0 else intervals.CONFIDENCE
        known = np.isfinite(before) & np.isfinite(after)
        if not known.sum() > 1:
            continue
        first, second = before[known], after[known]
        if job.reading.number:
            cost = intervals.mean(second - first, level)
        else:
            lost, won = int((second > first).sum()), int((second < first).sum())
            cost = intervals.paired_drop(lost, won, len(first), level)
        unanswered = int((~np.isfinite(after)).sum())
        found.append(_Cost(item["name"], item["column"], cost, unanswered))
    return found


def _worst(results: Sequence[_Cost]) -> list[_Cost]:
    """Of each kind and severity the one that costs most."""
    found: dict[str, _Cost] = {}
    for item in results:
        known = found.get(item.name)
        if known is None or item.cost.value > known.cost.value:
            found[item.name] = item
    return list(found.values())


def _findings(context: Context, results: Sequence[_Cost]) -> Iterator[ScanFinding]:
    """One for each kind: the mildest severity that costs much, and its worst column."""
    least = _DROP
    if context.job.reading.number:
        off = np.abs(context.job.clean.numbers - context.job.labels)
        least = _RISE * float(off[np.isfinite(off)].mean())
    costly = [item for item in results if (item.cost.low or 0.0) > least]
    for kind in dict.fromkeys(item.kind for item in costly):
        own = [item for item in costly if item.kind == kind]
        first = [item for item in own if item.name == own[0].name]
        worst = max(first, key=lambda item: item.cost.value)
        mild = worst.name in _MILD[context.job.space.table]
        others = len({item.column for item in own} - {worst.column, -1})
        more = (
            f" (and in {others} more column{'s' if others > 1 else ''})"
            if others
            else ""
        )
        yield ScanFinding(
            "corruption-mild" if mild else "corruption",
            f"{_named(context, worst)} {_said(context, worst)}{more}",
            worst.name if worst.column < 0 else f"{kind} {_column(context, worst)}",
            worst.cost,
        )


def _named(context: Context, item: _Cost) -> str:
    kind, _, severity = item.name.replace("_", " ").partition("=")
    if item.column < 0:
        return f"{kind} ({severity})"
    shown = repr(_column(context, item)[:60])
    if kind == "unit":
        return f"a slip of the unit ({severity}) in column {shown}"
    return f"column {shown} {kind}"


def _said(context: Context, item: _Cost) -> str:
    if context.job.reading.number:
        return f"raises the mean absolute error by {item.cost.value:.4g}"
    return f"lowers accuracy by {100 * item.cost.value:.0f} points"


def _column(context: Context, item: _Cost) -> str:
    names = context.job.column_names
    return names[item.column] if names else f"[{item.column}]"


def _table(
    context: Context, results: Sequence[_Cost], *, number: bool
) -> dict[str, Any]:
    whole = [item for item in results if item.column < 0]
    single = sorted(
        (item for item in results if item.column >= 0), key=lambda i: -i.cost.value
    )
    rows = [
        [
            item.name.replace("=", " ").replace("_", " "),
            "all" if item.column < 0 else _column(context, item),
            item.cost.value,
            ""
            if item.cost.low is None
            else f"{item.cost.low:.3g} to {item.cost.high:.3g}",
            item.unanswered,
        ]
        for item in (*whole, *single[:_SHOWN])
    ]
    what = "rise of the mean absolute error" if number else "drop of accuracy"
    return {
        "title": f"What corruption costs; of single columns the {_SHOWN} costliest",
        "columns": ["corruption", "column", what, "interval", "no answer"],
        "rows": rows,
    }
