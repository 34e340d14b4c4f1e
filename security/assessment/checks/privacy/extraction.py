"""Model extraction: what a copy costs that answers as the model does.

A thief without data asks rows drawn from the ranges; one with some draws from rows like
the held-out ones, mixed. Both fit a copy on the answers they bought. Agreement of the
copy with the target, on rows that neither was fitted on, against the number of
questions, says what a quota must prevent (Tramer et al. 2016; Orekondy et al. 2019).

What an output policy takes from the thief is tried on the same answers: a bundle's own,
beside all scores; where a bundle has none, one decimal, the best class's score alone,
labels alone. Behind an endpoint its own policy comes first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.output_policy import ALL_SCORES, OutputPolicy
from models.report import Metric
from security.assessment.checks.privacy.left import chances_left, conformal_of
from security.assessment.checks.privacy.thieves import HIDDEN, fit_copies, steal
from security.assessment.plan.checks import Outcome, Unit
from security.assessment.plan.context import Context
from security.assessment.results import intervals
from security.assessment.results.result import CheckResult, ScanFinding

__all__ = ["ExtractionCheck"]

_BUDGETS = {"quick": (50, 200, 1000), "standard": (50, 200, 1000, 5000)}
_KINDS = {"ranges": "random questions", "mixed": "mixtures of real rows"}
_NAMES = {
    "served": "as served",
    "rounded": "one decimal",
    "top": "best score",
    "copycat": "labels, CopycatCNN",
    "knockoff": "labels, KnockoffNets",
}
_COPIED = 0.95
_MANY = 1000
_ART = ("copycat", "knockoff")
_ART_BUDGET = 1000
_LABELS = OutputPolicy(label_only=True)
# What a policy would do, where there is none.
_POLICIES = {
    "scores": ALL_SCORES,
    "rounded": OutputPolicy(decimals=1),
    "top": OutputPolicy(top_k=1),
    "labels": _LABELS,
}


class ExtractionCheck:
    """Buys answers, fits copies, and counts how often they agree."""

    name = "extraction"
    title = "copying the model"

    def missing(self, context: Context) -> str | None:
        """Half of the rows must be enough to judge a copy."""
        if len(_answered(context)) < 60:
            return "fewer than 60 rows that are answered"
        return None

    def units(self, context: Context) -> list[Unit]:
        """A unit per kind of thief and number of questions."""
        profile = context.job.options.profile
        budgets = _BUDGETS.get(profile, _BUDGETS["standard"])
        if context.job.remote:
            budgets = budgets[:2]
        units = [
            Unit(self.name, f"extraction/{kind}-{budget}", {"kind": kind, "n": budget})
            for budget in budgets
            for kind in _KINDS
        ]
        if profile != "quick" and not context.job.remote:
            budget = {"kind": "mixed", "n": _ART_BUDGET, "thieves": list(_ART)}
            units.append(Unit(self.name, "extraction/art", budget))
        return units

    def run(self, unit: Unit, context: Context) -> Outcome:
        """Buy the answers, fit, judge.

        Raises:
            BudgetError: an endpoint's queries are spent.
        """
        job, random = context.job, context.random(unit.key)
        order = context.random("extraction/split").permutation(_answered(context))
        known, judged = np.array_split(order, 2)
        rows = questions_of(context, unit.params, job.rows[known], random)
        answers = context.target.ask(rows)
        usable = (answers.labels >= 0) & answers.finite
        questions = scaled(context, rows[usable])
        answers = replace(
            answers, scores=answers.scores[usable], labels=answers.labels[usable]
        )
        names = unit.params.get("thieves", ())
        policies = {"labels": _LABELS} if names else _policies(context)
        bought = [
            chances_left(leaving, answers, job.reading.form, conformal_of(context))
            for leaving in policies.values()
        ]
        others, seed = scaled(context, job.rows[judged]), context.seed(unit.key)
        if names:
            made = [
                steal(name, questions, bought[0], others, seed=seed) for name in names
            ]
        else:
            made = fit_copies(questions, bought, others, seed=seed)
        guesses = dict(zip(names or policies, made, strict=True))
        truth = job.clean.labels[judged]
        agreed = {key: int((guess == truth).sum()) for key, guess in guesses.items()}
        values = {"kind": unit.params["kind"], "n": unit.params["n"]}
        return Outcome({"agreed": agreed, "judged": len(judged), **values})

    def conclude(
        self, context: Context, outcomes: Mapping[str, Outcome]
    ) -> CheckResult:
        """Agreement against questions, and what it rests on."""
        series: dict[str, dict[str, list[list[float]]]] = {}
        metrics: dict[str, Metric] = {}
        for outcome in outcomes.values():
            values = outcome.values
            own = series.setdefault(values["kind"], {})
            for form, agreed in values["agreed"].items():
                share = intervals.proportion(agreed, values["judged"])
                point = [float(values["n"]), share.value, share.low, share.high]
                own.setdefault(form, []).append([float(p or 0.0) for p in point])
                metrics[f"agreement/{values['kind']}_{form}_{values['n']}"] = share
        return CheckResult(
            self.name,
            conditions={
                "copy": f"perceptron, {HIDDEN} hidden units",
                "library": "copycat and knockoff are ART's",
                "output_policies": ", ".join(_policies(context)),
                "output_policy": str(context.leaving),
                "applied_by": "endpoint" if context.job.remote else "scan",
                "judged_on": "half of the rows, that the thief has not seen",
                "majority_agreement": _majority(context),
            },
            metrics=metrics,
            findings=_findings(_of_what_leaves(metrics, context.leaving)),
            details={"charts": [_chart(*item) for item in sorted(series.items())]},
        )


def _answered(context: Context) -> NDArray[np.int64]:
    """Places of rows that an endpoint does not abstain from: others judge no copy."""
    return np.flatnonzero(~context.abstained)


def questions_of(
    context: Context,
    params: Mapping[str, Any],
    known: NDArray[Any],
    random: np.random.Generator,
) -> NDArray[Any]:
    space, count = context.job.space, params["n"]
    if params["kind"] == "ranges":
        low, high = np.asarray(space.low), np.asarray(space.high)
        rows = low + random.random((count, len(low))) * (high - low)
    else:
        # Two rows mixed in random parts stay near where real rows lie.
        first, second = (known[random.integers(len(known), size=count)] for _ in "ab")
        share = random.random((count, 1))
        rows = share * first + (1 - share) * second
    if known.dtype.kind in "iu":
        rows = np.rint(rows)
    return np.ascontiguousarray(rows.astype(known.dtype))


def scaled(context: Context, rows: NDArray[Any]) -> NDArray[np.float32]:
    space = context.job.space
    low, high = np.asarray(space.low, float), np.asarray(space.high, float)
    scaled = 2 * (rows.astype(np.float64) - low) / (high - low) - 1
    return np.nan_to_num(scaled).astype(np.float32)


def _policies(context: Context) -> Mapping[str, OutputPolicy]:
    """What is tried on the answers: the model's own policy, or what others would do."""
    own, labels = context.leaving, {"labels": _LABELS}
    if context.job.reading.form == "labels":
        return labels
    if not own.withholds:
        return _POLICIES
    # Behind an endpoint nobody sees more than it answers.
    whole = {} if context.job.remote else {"scores": ALL_SCORES}
    return {**whole, "served": own, **({} if own.label_only else labels)}


def _chart(kind: str, series: Mapping[str, list[list[float]]]) -> dict[str, Any]:
    return {
        "title": f"Agreement of a stolen copy, {_KINDS[kind]}, by what is answered",
        "x": "questions asked",
        "y": "answers that agree",
        "log_x": True,
        "y_low": 0.0,
        "y_high": 1.0,
        "series": [
            {"name": _NAMES.get(name, name), "points": sorted(points)}
            for name, points in series.items()
        ],
    }


def _majority(context: Context) -> float:
    labels = context.job.clean.labels[~context.abstained]
    counts = np.bincount(labels[labels >= 0])
    return float(counts.max() / len(labels)) if len(counts) else 0.0


def _of_what_leaves(
    metrics: Mapping[str, Metric], leaving: OutputPolicy
) -> dict[str, Metric]:
    """The figures of what callers get, and of less; none of what they do not get."""
    if not leaving.withholds:
        return dict(metrics)
    return {name: item for name, item in metrics.items() if "_scores_" not in name}


def _findings(metrics: Mapping[str, Metric]) -> tuple[ScanFinding, ...]:
    cheap = [
        (int(name.rpartition("_")[2]), name, metric)
        for name, metric in metrics.items()
        if metric.low is not None and metric.low >= _COPIED
    ]
    if not cheap:
        return ()
    count, name, metric = min(cheap)
    if count > _MANY:
        return ()
    return (
        ScanFinding(
            "extraction-cheap",
            f"{count} questions buy a copy that agrees on {metric.value:.1%} of rows",
            name.partition("/")[2],
            metric,
        ),
    )
