"""Before any attack: does the model answer, does it answer twice alike, is it right."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.report import Metric
from security.assessment.plan.checks import Outcome, Unit
from security.assessment.plan.context import Context
from security.assessment.results import intervals
from security.assessment.results.result import CheckResult, ScanFinding

__all__ = ["AnswersCheck", "not_finite", "random_answers"]

_REPEATS = 3
_REPEATED_ROWS = 64
# Answers of one row that differ by more than this differ: two batch sizes may round
# the last bits of a sum differently.
_SAME = 1e-5


class AnswersCheck:
    """Asks again: NaN, one answer for everything, randomness, accuracy."""

    name = "answers"
    title = "answers"

    def missing(self, context: Context) -> str | None:
        """Always applies."""
        return None

    def units(self, context: Context) -> list[Unit]:
        """One unit."""
        return [Unit(self.name, "answers/repeat", weight=0.2)]

    def run(self, unit: Unit, context: Context) -> Outcome:
        """Ask some rows several times more.

        Raises:
            BudgetError: an endpoint's queries are spent.
        """
        job = context.job
        rows = job.rows[:_REPEATED_ROWS]
        first = job.clean.scores[: len(rows)]
        labels = job.clean.labels[: len(rows)]
        spread = np.zeros(len(rows))
        changed = np.zeros(len(rows), dtype=bool)
        for _ in range(_REPEATS):
            again = context.target.ask(rows)
            both = np.isfinite(first) & np.isfinite(again.scores)
            gap = np.where(both, np.abs(again.scores - first), 0.0)
            scale = 1 + np.abs(np.where(both, first, 0.0))
            spread = np.maximum(spread, (gap / scale).max(axis=1))
            changed |= again.labels != labels
        values = {
            "rows": len(rows),
            "repeats": _REPEATS,
            "differing": int((spread > _SAME).sum()),
            "labels_changed": int(changed.sum()),
            "largest": float(spread.max()),
        }
        return Outcome(values)

    def conclude(
        self, context: Context, outcomes: Mapping[str, Outcome]
    ) -> CheckResult:
        """What the first answers and their repetition say."""
        clean, labels = context.job.clean, context.job.labels
        known = clean.finite & (clean.labels >= 0)
        right = clean.labels == labels
        metrics = {
            "clean_accuracy": intervals.proportion(int(right.sum()), len(labels)),
            "rows_answered": Metric(float(known.sum()), n=len(labels)),
        }
        silent = context.abstained
        findings = [*not_finite(known | silent), *_silent(silent), *_constant(context)]
        findings += [
            ScanFinding("answer-reading", n) for n in context.job.reading.notes
        ]
        details: dict[str, Any] = {
            "per_class": _per_class(context, right),
            "asked_rows": context.job.places.tolist(),
            "wrong_rows": context.job.places[~right].tolist(),
        }
        if outcomes:
            (outcome,) = outcomes.values()
            details["repeated"] = dict(outcome.values)
            findings += random_answers(outcome.values)
        return CheckResult(
            self.name,
            status="done" if outcomes else "partial",
            reason="" if outcomes else "no budget left to ask again",
            conditions={"form": context.job.reading.form},
            metrics=metrics,
            findings=tuple(findings),
            details=details,
        )


def not_finite(known: Any) -> list[ScanFinding]:
    """Says how many rows get no answer."""
    bad = int((~known).sum())
    if not bad:
        return []
    share = intervals.proportion(bad, len(known))
    message = f"{bad} of {len(known)} rows get no usable answer"
    first = np.flatnonzero(~known)[:10].tolist()
    return [
        ScanFinding("answer-not-finite", message, "", share, evidence={"rows": first})
    ]


def _silent(silent: NDArray[np.bool_]) -> list[ScanFinding]:
    """Says how many rows an endpoint abstains from: none of them counts as right."""
    count = int(silent.sum())
    if not count:
        return []
    share = intervals.proportion(count, len(silent))
    message = f"the endpoint abstains from {count} of {len(silent)} rows"
    return [ScanFinding("answer-withheld", message, "", share)]


def _constant(context: Context) -> list[ScanFinding]:
    given = np.unique(context.job.clean.labels[context.job.clean.labels >= 0])
    if len(given) > 1:
        return []
    name = context.job.reading.classes[int(given[0])] if len(given) else "none"
    message = f"all {len(context.job.labels)} rows get one class: {name[:40]!a}"
    return [ScanFinding("answer-constant", message)]


def random_answers(values: Mapping[str, Any]) -> list[ScanFinding]:
    """Says how many rows get other scores when they are asked about again."""
    if not values["differing"]:
        return []
    share = intervals.proportion(values["differing"], values["rows"])
    message = (
        f"{values['differing']} of {values['rows']} rows get other scores when asked "
        f"again, {values['labels_changed']} of them another class"
    )
    return [ScanFinding("answer-random", message, "", share, evidence=dict(values))]


def _per_class(context: Context, right: Any) -> list[dict[str, Any]]:
    labels = context.job.labels
    rows = []
    for index, name in enumerate(context.job.reading.classes):
        own = labels == index
        if own.any():
            share = intervals.proportion(int(right[own].sum()), int(own.sum()))
            rows.append({"class": name, **vars(share)})
    return rows
