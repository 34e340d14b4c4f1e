"""Attacks on tables that a real attacker could make: allowed changes, at a price.

No ball: a column may become anything its rules allow, a category another category, a
one-hot group another choice, and each change has its cost. What counts is what turning
a row costs, found by greedy search and then cut back to what is needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.report import Metric
from security.assessment.checks.evasion.coordinate import thresholds
from security.assessment.checks.evasion.views import curve_chart, shown_change
from security.assessment.plan.checks import Outcome, Unit, row_units
from security.assessment.plan.context import Context
from security.assessment.results import intervals
from security.assessment.results.result import CheckResult, ScanFinding
from security.assessment.targets.space import Space

__all__ = ["CostCheck", "row_cost"]

Floats = NDArray[np.float64]

_CHUNK = 10
_STEPS = 8
_VALUES = 9
_HALVINGS = 10
_CURVE = (0.25, 0.5, 1.0, 2.0, 4.0)
# Where no budget is stated, one crossing of one column's range is what is asked about.
_DEFAULT_COST = 1.0
_FINDING_ABOVE = 0.1
_SHOWN = 6


def row_cost(space: Space, rows: Any, start: Any) -> Floats:
    """What changing ``start`` into ``rows`` costs, ``(n,)``, by the columns' rules.

    A group costs once, whichever of its columns changed.
    """
    new, own = np.asarray(rows, np.float64), np.asarray(start, np.float64)
    total = np.zeros(len(new))
    groups = {place for places in space.groups().values() for place in places}
    for place, rule in enumerate(space.rules):
        if place in groups:
            continue
        moved = np.nan_to_num(np.abs(new[:, place] - own[:, place]))
        span = space.high[place] - space.low[place]
        share = (moved > 0) if rule.kind == "category" else moved / span
        total += rule.cost * share
    for places in space.groups().values():
        changed = (new[:, places] != own[:, places]).any(axis=1)
        total += space.rules[places[0]].cost * changed
    return total


@dataclass(frozen=True, eq=False)
class _Move:
    """One change: columns and what they become."""

    places: tuple[int, ...]
    values: tuple[float, ...]


class CostCheck:
    """What turning rows of a table costs."""

    name = "evasion-cost"
    title = "cost of evasion"

    def missing(self, context: Context) -> str | None:
        """Only for tables, and only where questions are free."""
        job = context.job
        if not job.space.table:
            return "the data is no table"
        if job.remote:
            return "it would spend an endpoint's quota"
        if not (job.clean.labels == job.labels).any():
            return "the model has no row right: there is nothing to break"
        if all(rule.change == "never" for rule in job.space.rules):
            return "no column may change"
        return None

    def units(self, context: Context) -> list[Unit]:
        """Some rows each."""
        wanted = min(context.job.options.effort.boundary_rows, len(context.job.rows))
        return row_units(self.name, wanted, size=_CHUNK)

    def run(self, unit: Unit, context: Context) -> Outcome:
        """Attack some rows, one after the other.

        Raises:
            BudgetError: time ran out.
        """
        job = context.job
        places = np.arange(int(unit.params["first"]), int(unit.params["end"]))
        search = _Search(context)
        made, costs = job.rows[places].copy(), np.full(len(places), np.inf)
        correct = job.clean.labels[places] == job.labels[places]
        for index, place in enumerate(places):
            if correct[index]:
                context.check_time()
                made[index], costs[index] = search.attack(int(place))
        turned = int(np.isfinite(costs).sum())
        return Outcome(
            {"found": f"{turned} of {len(places)} turned"},
            {"places": places, "correct": correct, "costs": costs, "examples": made},
        )

    def conclude(
        self, context: Context, outcomes: Mapping[str, Outcome]
    ) -> CheckResult:
        """Robust accuracy by what an attacker spends."""
        parts = [outcome.arrays for _, outcome in sorted(outcomes.items())]
        joined = {
            name: np.concatenate([part[name] for part in parts])
            for name in ("places", "correct", "costs", "examples")
        }
        space = context.job.space
        budget = space.max_cost or _DEFAULT_COST
        costs, correct = joined["costs"], joined["correct"]
        points = [(s * budget, _robust(costs, correct, s * budget)) for s in _CURVE]
        robust = _robust(costs, correct, budget)
        turned = int((correct & (costs <= budget)).sum())
        findings: tuple[ScanFinding, ...] = ()
        if turned > _FINDING_ABOVE * max(1, int(correct.sum())):
            message = (
                f"{turned} of {int(correct.sum())} rows that are right are turned by "
                f"allowed changes at a cost of {budget:g} or less"
            )
            # What an attacker would spend is the owner's to say: 1 is a whole range.
            rule = "evasion-cost" if _stated(context) else "evasion-cost-unstated"
            findings = (ScanFinding(rule, message, "cost", robust),)
        return CheckResult(
            self.name,
            conditions={
                "max_cost": budget,
                "cost_stated": _stated(context),
                "counted": "rechecked_on_onnxruntime",
                "attack": "greedy",
            },
            metrics={"robust_accuracy_cost": robust, "max_cost": Metric(budget)},
            findings=findings,
            details={
                "max_cost": budget,
                "curve": [{"cost": cost, **vars(m)} for cost, m in points],
                "columns": _columns(context, joined, budget),
                "rows": _rows(context, joined),
                **_views(context, joined, points, budget),
            },
        )


class _Search:
    """Greedy search for one row at a time."""

    def __init__(self, context: Context) -> None:
        self._context, self._space = context, context.job.space
        width = context.job.rows.shape[1]
        self._thresholds = thresholds(context.job.source.model, width)
        self._groups = self._space.groups()
        self._grouped = {p for places in self._groups.values() for p in places}

    def attack(self, place: int) -> tuple[Any, float]:
        """The cheapest turned row that was found, and its cost; infinite for none."""
        job = self._context.job
        start, label = job.rows[place], int(job.labels[place])
        best, cost = start, np.inf
        for thrifty in (True, False):
            found = self._climb(start, label, thrifty=thrifty)
            if found is not None:
                found = self._cut_back(found, start, label)
                price = float(row_cost(self._space, found[None], start[None])[0])
                if price < cost:
                    best, cost = found, price
        return best, cost

    def _climb(self, start: Any, label: int, *, thrifty: bool) -> Any | None:
        row = start.astype(np.float64)
        moves = self._moves(start)
        value = np.inf
        for _ in range(_STEPS):
            candidates = self._applied(row, moves)
            margins, wrong = self._ask(candidates, start, label)
            prices = row_cost(self._space, candidates, start[None])
            if wrong.any():
                return candidates[np.argmin(np.where(wrong, prices, np.inf))]
            before = float(row_cost(self._space, row[None], start[None])[0])
            gain = (value if np.isfinite(value) else np.nanmax(margins)) - margins
            rate = gain / np.maximum(prices - before, 1e-3) if thrifty else gain
            choice = int(np.argmax(np.nan_to_num(rate, nan=-np.inf)))
            if not gain[choice] > 0:
                return None
            row, value = candidates[choice], margins[choice]
        return None

    def _cut_back(self, row: Any, start: Any, label: int) -> Any:
        """Undo what is not needed; then bring numbers back as far as they go."""
        units = [*self._groups.values()]
        units += [[p] for p in range(len(start)) if p not in self._grouped]
        for places in units:
            if (row[places] != start[places]).any():
                undone = row.copy()
                undone[places] = start[places]
                if self._ask(undone[None], start, label)[1][0]:
                    row = undone
        for place in np.flatnonzero(row != start):
            rule = self._space.rules[place]
            if place in self._grouped or rule.kind == "category":
                continue
            row = self._halve(row, start, int(place), label)
        return row.astype(start.dtype)

    def _halve(self, row: Any, start: Any, place: int, label: int) -> Any:
        near, far = float(start[place]), float(row[place])
        for _ in range(_HALVINGS):
            middle = row.copy()
            middle[place] = (near + far) / 2
            if self._space.integer[place]:
                middle[place] = np.round(middle[place])
            if self._ask(middle[None], start, label)[1][0]:
                row, far = middle, float(middle[place])
            else:
                near = float(middle[place])
        return row

    def _ask(
        self, candidates: Any, start: Any, label: int
    ) -> tuple[Floats, NDArray[np.bool_]]:
        """Margins, and which are turned and keep every rule, as they would be sent."""
        rows = candidates.astype(start.dtype)
        repeated = np.repeat(start[None], len(rows), axis=0)
        labels = np.full(len(rows), label)
        answers = self._context.target.ask(rows)
        allowed = self._space.allowed(rows, repeated, categories=True)
        return answers.margins(labels), answers.wrong(labels) & allowed

    def _moves(self, start: Any) -> list[_Move]:
        space = self._space
        # Limits for a free column; those of categories and groups are their values.
        low, high = space.limits(start[None])
        moves = []
        for place, rule in enumerate(space.rules):
            if rule.change == "never" or place in self._grouped:
                continue
            if rule.kind == "category":
                values = np.array([v for v in rule.values if v != start[place]])
            elif not np.isfinite(float(start[place])):
                continue
            else:
                values = self._numbers(place, low[0, place], high[0, place])
            moves += [_Move((place,), (float(value),)) for value in values]
        for places in self._groups.values():
            if any(space.rules[place].change == "never" for place in places):
                continue
            for chosen in places:
                if start[chosen] != 1:
                    hot = tuple(float(place == chosen) for place in places)
                    moves.append(_Move(tuple(places), hot))
        return moves

    def _numbers(self, place: int, low: float, high: float) -> Floats:
        known = self._thresholds[place]
        inside = known[(known >= low) & (known <= high)]
        if len(inside) > _VALUES:
            inside = inside[np.linspace(0, len(inside) - 1, _VALUES).astype(int)]
        single = inside.astype(np.float32)
        above = np.nextafter(single, np.float32(np.inf)).astype(np.float64)
        values = np.concatenate([np.linspace(low, high, _VALUES), inside, above])
        if self._space.integer[place]:
            values = np.round(values)
        return np.unique(np.clip(values, low, high))

    def _applied(self, row: Floats, moves: list[_Move]) -> Floats:
        made = np.repeat(row[None], len(moves), axis=0)
        for index, move in enumerate(moves):
            made[index, list(move.places)] = move.values
        return made


def _stated(context: Context) -> bool:
    """Whether anybody said what changes cost, or what an attacker spends."""
    space = context.job.space
    return space.max_cost is not None or any(rule.cost != 1 for rule in space.rules)


def _robust(costs: Floats, correct: NDArray[np.bool_], budget: float) -> Metric:
    standing = correct & ~(np.isfinite(costs) & (costs <= budget))
    return intervals.proportion(int(standing.sum()), len(costs))


def _columns(
    context: Context, joined: Mapping[str, Any], budget: float
) -> list[dict[str, Any]]:
    """How often each column was changed, the most used first."""
    turned = joined["costs"] <= budget
    start = context.job.rows[joined["places"][turned]]
    used = (joined["examples"][turned] != start).sum(axis=0)
    names = [rule.name for rule in context.job.space.rules]
    order = np.argsort(-used, kind="stable")
    return [
        {"column": names[place], "rows": int(used[place])}
        for place in order[:50]
        if used[place]
    ]


def _views(
    context: Context,
    joined: Mapping[str, Any],
    points: Sequence[tuple[float, Metric]],
    budget: float,
) -> dict[str, Any]:
    """The curve, the columns that attacks used, and the cheapest rows, for people."""
    job, costs = context.job, joined["costs"]
    cheapest = [i for i in np.argsort(costs, kind="stable") if np.isfinite(costs[i])]
    used = _columns(context, joined, budget)
    title = "Robust accuracy by what an attacker spends on a row"
    start = intervals.proportion(int(joined["correct"].sum()), len(costs))
    chart = curve_chart(title, "cost", [(0.0, start), *points])
    return {
        "charts": [chart],
        "tables": [
            {
                "title": f"Columns changed in rows turned for {budget:g} or less",
                "columns": ["column", "rows"],
                "rows": [[item["column"], item["rows"]] for item in used],
            }
        ],
        "examples": [
            {
                "caption": f"Row {int(job.places[joined['places'][i]])}: turned for "
                f"{costs[i]:.3g}",
                **shown_change(
                    job, job.rows[joined["places"][i]], joined["examples"][i]
                ),
            }
            for i in cheapest[:_SHOWN]
        ],
    }


def _rows(context: Context, joined: Mapping[str, Any]) -> list[dict[str, Any]]:
    job = context.job
    rows = []
    for index, place in enumerate(joined["places"]):
        cost = float(joined["costs"][index])
        before, after = job.rows[place], joined["examples"][index]
        rows.append(
            {
                "row": int(job.places[place]),
                "correct": bool(joined["correct"][index]),
                "cost": cost if np.isfinite(cost) else None,
                "changes": [
                    {
                        "column": job.space.rules[column].name,
                        "before": job.cell(column, before[column]),
                        "after": job.cell(column, after[column]),
                    }
                    for column in np.flatnonzero(after != before)
                    if np.isfinite(float(before[column]))
                ],
            }
        )
    return rows
