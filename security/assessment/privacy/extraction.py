"""Model extraction: what a copy costs that answers as the model does.

A thief without data asks rows drawn from the ranges; one with some draws from rows like
the held-out ones, mixed. Both fit a copy on the answers they bought. Agreement of the
copy with the target, on rows that neither was fitted on, against the number of
questions, says what a quota must prevent (Tramer et al. 2016; Orekondy et al. 2019).
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.report import Metric
from security.assessment import intervals
from security.assessment.scan.checks import CheckResult, ScanFinding, Unit
from security.assessment.scan.context import Context
from security.assessment.scan.store import Outcome

__all__ = ["ExtractionCheck"]

_BUDGETS = {"quick": (50, 200, 1000), "standard": (50, 200, 1000, 5000)}
_KINDS = ("ranges", "mixed")
_COPIED = 0.95
_MANY = 1000
_HIDDEN = 64


class ExtractionCheck:
    """Buys answers, fits copies, and counts how often they agree."""

    name = "extraction"
    title = "copying the model"

    def missing(self, context: Context) -> str | None:
        """Half of the rows must be enough to judge a copy."""
        if len(context.job.rows) < 60:
            return "fewer than 60 rows"
        return None

    def units(self, context: Context) -> list[Unit]:
        """A unit per kind of thief and number of questions."""
        profile = context.job.options.profile
        budgets = _BUDGETS.get(profile, _BUDGETS["standard"])
        if context.job.remote:
            budgets = budgets[:2]
        return [
            Unit(self.name, f"extraction/{kind}-{budget}", {"kind": kind, "n": budget})
            for budget in budgets
            for kind in _KINDS
        ]

    def run(self, unit: Unit, context: Context) -> Outcome:
        """Buy the answers, fit, judge.

        Raises:
            BudgetError: an endpoint's queries are spent.
        """
        job, random = context.job, context.random(unit.key)
        order = context.random("extraction/split").permutation(len(job.rows))
        known, judged = np.array_split(order, 2)
        rows = _questions(context, unit.params, job.rows[known], random)
        answers = context.target.ask(rows)
        usable = (answers.labels >= 0) & answers.finite
        agreed = {}
        for name, targets in (
            ("scores", answers.scores),
            ("labels", np.eye(answers.scores.shape[1])[np.maximum(answers.labels, 0)]),
        ):
            guess = _copy(
                _scaled(context, rows[usable]),
                targets[usable],
                _scaled(context, job.rows[judged]),
                seed=context.seed(unit.key),
            )
            agreed[name] = int((guess == job.clean.labels[judged]).sum())
        return Outcome({"agreed": agreed, "judged": len(judged), **unit.params})

    def conclude(
        self, context: Context, outcomes: Mapping[str, Outcome]
    ) -> CheckResult:
        """Agreement against questions, and what it rests on."""
        series: dict[str, list[list[float]]] = {}
        metrics: dict[str, Metric] = {}
        for outcome in outcomes.values():
            values = outcome.values
            for form, agreed in values["agreed"].items():
                share = intervals.proportion(agreed, values["judged"])
                name = f"{values['kind']}, {form}"
                point = [float(values["n"]), share.value, share.low, share.high]
                series.setdefault(name, []).append([float(p or 0.0) for p in point])
                metrics[f"agreement/{values['kind']}_{form}_{values['n']}"] = share
        chart = {
            "title": "Agreement of a stolen copy",
            "x": "questions asked",
            "y": "answers that agree",
            "log_x": True,
            "y_low": 0.0,
            "y_high": 1.0,
            "series": [
                {"name": name, "points": sorted(points)}
                for name, points in sorted(series.items())
            ],
        }
        return CheckResult(
            self.name,
            conditions={
                "copy": f"perceptron, {_HIDDEN} hidden units",
                "judged_on": "half of the rows, that the thief has not seen",
                "majority_agreement": _majority(context),
            },
            metrics=metrics,
            findings=_findings(metrics),
            details={"charts": [chart]},
        )


def _questions(
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


def _scaled(context: Context, rows: NDArray[Any]) -> NDArray[np.float32]:
    space = context.job.space
    low, high = np.asarray(space.low, float), np.asarray(space.high, float)
    scaled = 2 * (rows.astype(np.float64) - low) / (high - low) - 1
    return np.nan_to_num(scaled).astype(np.float32)


def _copy(
    inputs: NDArray[np.float32],
    targets: NDArray[np.float64],
    judged: NDArray[np.float32],
    *,
    seed: int,
) -> NDArray[np.int64]:
    """Fit a perceptron to the answers; its labels of the judged rows."""
    import torch  # noqa: PLC0415  (seconds)

    if not len(inputs):  # no answer was a number: nothing to copy, and no agreement
        return np.full(len(judged), -2)
    random = torch.Generator().manual_seed(seed)
    targets = targets - targets.min(axis=1, keepdims=True)
    chance = torch.from_numpy(
        targets / np.maximum(targets.sum(1, keepdims=True), 1e-12)
    )
    widths = (inputs.shape[1], _HIDDEN, targets.shape[1])
    weights = [
        ((2 * torch.rand(shape, generator=random) - 1) / a**0.5).requires_grad_()
        for a, b in pairwise(widths)
        for shape in ((a, b), (1, b))
    ]
    optimizer = torch.optim.Adam(weights, lr=0.01)
    features = torch.from_numpy(inputs)

    def answer(rows: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(rows @ weights[0] + weights[1])
        return hidden @ weights[2] + weights[3]

    for _ in range(300):
        chosen = torch.randint(
            len(features), (min(256, len(features)),), generator=random
        )
        loss = -(torch.log_softmax(answer(features[chosen]), 1) * chance[chosen]).sum(1)
        optimizer.zero_grad()
        torch.autograd.backward(loss.mean())
        optimizer.step()
    with torch.no_grad():
        return np.asarray(answer(torch.from_numpy(judged)).argmax(1).numpy())


def _majority(context: Context) -> float:
    labels = context.job.clean.labels
    counts = np.bincount(labels[labels >= 0])
    return float(counts.max() / len(labels)) if len(counts) else 0.0


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
