"""Attribute inference: does the model's answer give a person's secret column away?

Whoever knows the rest of a row, its class and the model's answer guesses the column;
so does whoever has no answer. What the model adds is the difference, on the same rows.
The attackers are ART's, which see the decision, and forests that see the scores; the
guessers without the model are ART's two baselines and the same forest. The best of
each side counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.report import Metric
from security.assessment.art_library import art, repeatable
from security.assessment.checks.estimators import bought_answers
from security.assessment.checks.privacy.trained import known_rows
from security.assessment.plan.checks import Outcome, Unit
from security.assessment.plan.context import Context, Job
from security.assessment.results import intervals
from security.assessment.results.result import CheckResult, ScanFinding
from security.assessment.sklearn_library import sklearn

__all__ = ["AttributeCheck", "guesses"]

_MIN_ROWS = 60
_MIN_EACH = 10
# A column with more values than this is guessed as above or below its median.
_MAX_VALUES = 10
_EXPOSED = 0.02
# Of the rows that were trained on: forests take as long as the rows are many.
_MAX_MEMBERS = 2000
_FOLDS = 2
_WITH = ("answers", "art")
_WITHOUT = ("class", "art-baseline", "art-true-label")

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]


class AttributeCheck:
    """Guesses sensitive columns, with and without the model."""

    name = "attributes"
    title = "inferring an attribute"

    def missing(self, context: Context) -> str | None:
        """A column to guess, of enough rows."""
        if not _columns(context):
            return (
                "no column to guess is named (sensitive or infer, in the data "
                "configuration)"
            )
        if len(context.job.rows) < _MIN_ROWS:
            return f"fewer than {_MIN_ROWS} rows"
        return None

    def units(self, context: Context) -> list[Unit]:
        """A unit per column; and one about the training's own rows, where known."""
        columns = _columns(context)
        units = [
            Unit(self.name, f"attributes/{column}", {"column": column})
            for column in columns
        ]
        if _members(context) is not None and not context.job.remote:
            units += [
                Unit(
                    self.name,
                    f"attributes/{column}/trained-on",
                    {"column": column, "members": True},
                )
                for column in columns
                if column in context.job.column_names
            ]
        return units

    def run(self, unit: Unit, context: Context) -> Outcome:
        """Guess one column of every row, by forests fitted to other rows."""
        job, column = context.job, unit.params["column"]
        known = _members(context) if unit.params.get("members") else None
        if known is None:
            rows, labels, scores = job.rows, job.labels, job.clean.scores
            group = job.groups.get(column)
        else:
            rows, labels = known
            scores, group = context.target.ask(rows).scores, None
        others, codes, names = _split(job, column, rows, group)
        values = {"column": column, "members": known is not None}
        if np.bincount(codes).min() < _MIN_EACH or len(names) < 2:
            return Outcome({**values, "few": True})
        right = guesses(others, codes, scores, labels, seed=context.seed(unit.key))
        return Outcome({**values, "values": list(names)}, right)

    def conclude(
        self, context: Context, outcomes: Mapping[str, Outcome]
    ) -> CheckResult:
        """What the answers add to the guesses."""
        metrics: dict[str, Metric] = {}
        rows: list[list[Any]] = []
        findings, untested = [], []
        for outcome in outcomes.values():
            column = outcome.values["column"]
            if outcome.values.get("few"):
                untested.append(
                    f"Column {column}: a value has fewer than {_MIN_EACH} rows."
                )
                continue
            where = "trained_on" if outcome.values["members"] else "held_out"
            own, row = _measured(
                column, where, outcome.values["values"], outcome.arrays
            )
            metrics |= own
            rows.append(row)
            added = next(iter(own.values()))
            if added.low is not None and added.low > _EXPOSED:
                findings.append(
                    ScanFinding(
                        "attribute-inferred",
                        f"the model's answers raise right guesses of {column} by "
                        f"{added.value:.1%} of the rows, {where.replace('_', ' ')}",
                        f"{column}, {where.replace('_', ' ')}",
                        added,
                    )
                )
        return CheckResult(
            self.name,
            status="done" if metrics else "partial",
            reason="" if metrics else "no column has enough rows of each value",
            conditions={
                "attacker_knows": "the rest of the row, its class, the answer",
                "baseline_knows": "the rest of the row, its class",
                "fitted_on": "half of the rows, judged on the other half, both ways",
                "advantage_interval": "agresti_coull, of paired differences",
            },
            metrics=metrics,
            findings=tuple(findings),
            details={
                "tables": [
                    {
                        "title": "Right guesses, as a share of the rows",
                        "columns": [
                            *("column", "rows", "values"),
                            *(*_WITH, *_WITHOUT, "advantage"),
                        ],
                        "rows": rows,
                    }
                ],
                "untested": untested,
            },
        )


def guesses(
    others: Floats, codes: Labels, scores: Floats, labels: Labels, *, seed: int
) -> dict[str, NDArray[np.bool_]]:
    """Which rows each guesser is right about ``(n,)``, by its name.

    Args:
        others: ``(n, d)``, the columns that everyone knows.
        codes: ``(n,)``, the column to guess, from 0 without gaps.
        scores: ``(n, classes)``, the model's answers.
        labels: ``(n,)``, the rows' classes.
        seed: of folds and forests.
    """
    random = np.random.default_rng(seed)
    fold = random.permutation(len(codes)) % _FOLDS
    truth = np.eye(scores.shape[1])[labels]
    answers = np.nan_to_num(scores)
    right = {name: np.zeros(len(codes), bool) for name in (*_WITH, *_WITHOUT)}
    for number in range(_FOLDS):
        fit, judged = fold != number, fold == number
        made = {
            "class": _forest(np.c_[others, truth], codes, fit, judged, seed),
            "answers": _forest(np.c_[others, truth, answers], codes, fit, judged, seed),
        }
        with repeatable((seed + number) % (1 << 32)):
            made |= _by_art(others, codes, answers, truth, fit=fit, judged=judged)
        for name, guessed in made.items():
            right[name][judged] = guessed == codes[judged]
    return right


def _forest(
    inputs: Floats,
    codes: Labels,
    fit: NDArray[np.bool_],
    judged: NDArray[np.bool_],
    seed: int,
) -> Labels:
    forest = sklearn("ensemble").RandomForestClassifier(
        50, min_samples_leaf=3, random_state=seed % (1 << 32)
    )
    return np.asarray(forest.fit(inputs[fit], codes[fit]).predict(inputs[judged]))


def _by_art(
    others: Floats,
    codes: Labels,
    answers: Floats,
    truth: Floats,
    *,
    fit: NDArray[np.bool_],
    judged: NDArray[np.bool_],
) -> dict[str, Labels]:
    """ART's three; the column to guess is the last one."""
    rows = np.c_[others, codes].astype(np.float32)
    known, last = rows[judged][:, :-1], rows.shape[1] - 1
    decided = answers.argmax(axis=1).reshape(-1, 1)
    kind: dict[str, Any] = {"attack_model_type": "rf", "attack_feature": last}
    values = list(range(int(codes.max()) + 1))
    attack = art().AttributeInferenceBlackBox(bought_answers(rows, answers), **kind)
    attack.fit(rows[fit], truth[fit])
    alone = art().AttributeInferenceBaseline(**kind)
    alone.fit(rows[fit])
    labelled = art().AttributeInferenceBaselineTrueLabel(**kind)
    labelled.fit(rows[fit], truth[fit])
    made = {
        "art": attack.infer(known, truth[judged], pred=decided[judged], values=values),
        "art-baseline": alone.infer(known, values=values),
        "art-true-label": labelled.infer(known, truth[judged], values=values),
    }
    return {name: np.rint(item).astype(np.int64) for name, item in made.items()}


def _measured(
    column: str, where: str, values: Sequence[str], right: Mapping[str, NDArray[Any]]
) -> tuple[dict[str, Metric], list[Any]]:
    """Shares of right guesses of the best of each side, and their difference."""
    shares = {name: float(right[name].mean()) for name in (*_WITH, *_WITHOUT)}
    attack, guess = (max(side, key=shares.__getitem__) for side in (_WITH, _WITHOUT))
    gained = right[attack].astype(np.float64) - right[guess]
    name = _slug(column) + ("" if where == "held_out" else f"_{where}")
    added = intervals.bounded_mean(gained, -1.0, 1.0)
    metrics = {
        f"{name}_advantage": added,
        f"{name}_with_model": _share(right[attack]),
        f"{name}_without_model": _share(right[guess]),
    }
    listed = ", ".join(values)
    cells = [shares[key] for key in (*_WITH, *_WITHOUT)]
    return metrics, [column, where.replace("_", " "), listed, *cells, added.value]


def _share(right: NDArray[Any]) -> Metric:
    return intervals.proportion(int(right.sum()), len(right))


def _columns(context: Context) -> tuple[str, ...]:
    job = context.job
    wanted = dict.fromkeys((*job.groups, *job.config.sensitive, *job.config.infer))
    return tuple(n for n in wanted if n in job.groups or n in job.column_names)


def _members(context: Context) -> tuple[NDArray[Any], Labels] | None:
    """Rows that were trained on, in the model's type, and their classes."""
    known = known_rows(context)
    if known is None or known.training is None:
        return None
    chosen = np.flatnonzero(known.member)[:_MAX_MEMBERS]
    return known.rows[chosen], known.labels[chosen]


def _split(
    job: Job, column: str, rows: NDArray[Any], group: NDArray[np.str_] | None
) -> tuple[Floats, Labels, tuple[str, ...]]:
    """The other columns, scaled; the column as codes; what the codes mean."""
    others = job.space.to_z(rows)
    values = np.zeros(len(rows))
    if column in job.column_names:
        place = job.column_names.index(column)
        values = np.asarray(rows[:, place], np.float64)
        others = np.delete(others, place, axis=1)
    if group is not None:
        names, codes = np.unique(group, return_inverse=True)
        return others, codes, tuple(str(name) for name in names)
    distinct, codes = np.unique(values, return_inverse=True)
    if len(distinct) > _MAX_VALUES:
        codes = (values > np.nanmedian(values)).astype(np.int64)
        return others, codes, ("low", "high")
    return others, codes, tuple(f"{value:g}" for value in distinct)


def _slug(column: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in column.lower())
