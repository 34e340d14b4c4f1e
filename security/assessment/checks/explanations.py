"""What the model's answers rest on: global importance of the columns.

Shapley values of the probability (or score) of the class that the model gave, by
antithetic permutations over the model's answers, so for any target: as the server
explains an answer (`models.shapley`), against other rows. Lundberg and Lee, "A Unified
Approach to Interpreting Model Predictions" (2017).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.report import Metric
from models.shapley import Orders
from security.assessment.checks.curves import curve_views
from security.assessment.plan.checks import Outcome, Unit
from security.assessment.plan.context import Context
from security.assessment.results import intervals
from security.assessment.results.result import CheckResult

__all__ = ["Attributed", "ExplanationCheck", "attributed"]

Floats = NDArray[np.float64]
Places = NDArray[np.intp]

_ROWS = 40
_BACKGROUND = 20
_MAX_COLUMNS = 256
_SHOWN = 20
_ASKED_AT_ONCE = 1 << 15


@dataclass(frozen=True, eq=False)
class Attributed:
    """What some rows' columns contribute.

    Attributes:
        values: ``(n,)``, what was answered about each row.
        references: ``(n, references)``, what about each reference.
        attributions: ``(n, columns)``.
    """

    values: Floats
    references: Floats
    attributions: Floats


def attributed(
    ask: Callable[[NDArray[Any], Places], Floats],
    rows: NDArray[Any],
    which: Places,
    references: NDArray[Any],
    *,
    pairs: int,
) -> Attributed:
    """Shapley values of rows, by what is answered about mixtures with references.

    Args:
        ask: given rows, and the class of each, the quantity that is explained.
        rows: ``(n, columns)``.
        which: ``(n,)``, the explained class of each.
        references: ``(references, columns)``.
        pairs: of permutations.
    """
    orders, count = Orders(rows.shape[1], pairs), len(references)
    masks = orders.masks(0, orders.coalitions)
    each = max(1, count * orders.coalitions)
    parts = []
    for start in range(0, len(rows), max(1, _ASKED_AT_ONCE // each)):
        part = slice(start, start + max(1, _ASKED_AT_ONCE // each))
        mixed = np.where(masks, rows[part, None, None], references[:, None])
        flat = mixed.reshape(-1, rows.shape[1]).astype(rows.dtype)
        asked = ask(flat, np.repeat(which[part], each)) if len(flat) else np.empty(0)
        parts.append(asked.reshape(len(mixed), count, -1))
    values = ask(rows, which)
    about = np.stack(
        [ask(np.tile(row, (len(rows), 1)), which) for row in references], axis=1
    )
    found, _ = orders.attributions(np.concatenate(parts), values, about)
    return Attributed(values, about, found)


class ExplanationCheck:
    """Mean absolute Shapley value of each column."""

    name = "explanations"
    title = "what answers rest on"

    def missing(self, context: Context) -> str | None:
        """Files with not too many columns: each row costs two questions per column."""
        columns = context.job.rows.shape[1]
        if context.job.remote:
            return "an endpoint's quota is better spent on attacks"
        if columns > _MAX_COLUMNS:
            return f"{columns} columns; at most {_MAX_COLUMNS} are explained"
        if len(context.job.rows) < _ROWS + _BACKGROUND:
            return f"fewer than {_ROWS + _BACKGROUND} rows"
        return None

    def units(self, context: Context) -> list[Unit]:
        """One unit."""
        return [Unit(self.name, "explanations/shapley", weight=1.0)]

    def run(self, unit: Unit, context: Context) -> Outcome:
        """Explain some rows against a background of others."""
        job = context.job
        order = context.random(unit.key).permutation(len(job.rows))
        chosen, background = order[:_ROWS], order[_ROWS : _ROWS + _BACKGROUND]

        def ask(rows: NDArray[Any], which: Places) -> Floats:
            scores = np.nan_to_num(context.target.ask(rows).scores, posinf=0, neginf=0)
            return np.asarray(scores[np.arange(len(rows)), which], np.float64)

        found = attributed(
            ask,
            job.rows[chosen],
            job.clean.labels[chosen],
            job.rows[background],
            pairs=1,
        )
        return Outcome({"rows": _ROWS}, {"importance": np.abs(found.attributions)})

    def conclude(
        self, context: Context, outcomes: Mapping[str, Outcome]
    ) -> CheckResult:
        """The columns by importance."""
        (outcome,) = outcomes.values()
        values = outcome.arrays["importance"]
        order = np.argsort(-values.mean(axis=0), kind="stable")[:_SHOWN]
        names = context.job.column_names
        metrics: dict[str, Metric] = {}
        rows = []
        for column in order:
            name = names[column] if names else f"[{column}]"
            metric = intervals.mean(values[:, column])
            metrics[f"importance/{name}"] = metric
            rows.append([name, f"{metric.value:.4f}{_interval(metric)}"])
        whose = "the answer" if context.job.reading.number else "the given class"
        table = {
            "title": f"Mean absolute Shapley value of {whose}",
            "columns": ["column", "importance"],
            "rows": rows,
        }
        views = curve_views(context)
        return CheckResult(
            self.name,
            conditions={
                "method": "shapley_permutations",
                "rows": _ROWS,
                "background_rows": _BACKGROUND,
            },
            metrics=metrics,
            details={
                **({"charts": views["charts"]} if views else {}),
                "tables": [table, *views.get("tables", ())],
            },
        )


def _interval(metric: Metric) -> str:
    """In a table; a column that changes nothing has none."""
    return "" if metric.low is None else f" [{metric.low:.4f}, {metric.high:.4f}]"
