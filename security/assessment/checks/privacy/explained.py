"""What explanations give away beside answers: members, and cheaper copies.

The attacker asks why: Shapley values in log-odds of the answered class against the
middle of the public ranges, as the server answers them (`models.shapley`).

Membership: attributions of rows that were trained on may be larger, or vary more
(Shokri, Strobel, Zick, "On the Privacy Risks of Model Explanations", 2021). Which way,
and what a forest makes of all of them, is fitted on half of the rows and judged on the
others, beside the confidence alone.

Extraction: an explained answer says about every mixture of row and reference what the
model would roughly answer; a thief fits a copy on such mixtures, too (Milli, Schmidt,
Dragan, Hardt, "Model Reconstruction from Model Explanations", 2019, do it with
gradients). It is beside a copy from as many answers without explanations.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models import shapley
from models.report import Metric
from models.shapley import Orders
from security.assessment.checks.explanations import attributed
from security.assessment.checks.privacy import curves
from security.assessment.checks.privacy.answers import learned_scores
from security.assessment.checks.privacy.extraction import questions_of, scaled
from security.assessment.checks.privacy.left import chances
from security.assessment.checks.privacy.thieves import steal
from security.assessment.checks.privacy.trained import known_rows
from security.assessment.plan.checks import Outcome, Unit
from security.assessment.plan.context import Context
from security.assessment.results import intervals
from security.assessment.results.result import CheckResult, ScanFinding

__all__ = ["ExplainedCheck"]

Floats = NDArray[np.float64]
Places = NDArray[np.intp]

_PAIRS = 2
_MAX_COLUMNS = 256
_OF_EACH_KIND, _FEWEST = 150, 50
_QUESTIONS = (50, 200)
_MIXTURES = 8  # of each explained row, that a thief fits on
_TELLS = 0.55
_ATTACKS = ("attribution_norm", "attribution_variance", "attribution_learned")


class ExplainedCheck:
    """Membership by attributions, and copies from explained answers."""

    name = "explanation-attacks"
    title = "what explanations give away"

    def missing(self, context: Context) -> str | None:
        """Scores of a file, that may be explained."""
        job = context.job
        if job.remote:
            return "an endpoint's quota is better spent on attacks on answers"
        if job.reading.form == "labels":
            return "only labels are answered: there is nothing to explain"
        if not context.leaving.explains:
            return f"the output policy lets no explanation leave ({context.leaving})"
        columns = job.rows.shape[1]
        if columns > _MAX_COLUMNS:
            return f"{columns} columns; at most {_MAX_COLUMNS} are explained"
        if len(job.rows) < 2 * _FEWEST:
            return f"fewer than {2 * _FEWEST} rows"
        return None

    def units(self, context: Context) -> list[Unit]:
        """Membership where members are known, and a unit per number of questions."""
        units = [
            Unit(self.name, f"explained/copy-{count}", {"kind": "mixed", "n": count})
            for count in _QUESTIONS
        ]
        known = known_rows(context)
        if known is None:
            return units
        fewest = min(known.member.sum(), (~known.member).sum())
        members = [Unit(self.name, "explained/membership")]
        return members + units if fewest >= _FEWEST else units

    def run(self, unit: Unit, context: Context) -> Outcome:
        """Ask for explanations, and attack."""
        if "n" in unit.params:
            return _copied(unit, context)
        return _told(unit, context)

    def conclude(
        self, context: Context, outcomes: Mapping[str, Outcome]
    ) -> CheckResult:
        """Rates of the attacks, and agreement of copies."""
        metrics: dict[str, Metric] = {}
        for key, outcome in outcomes.items():
            if key == "explained/membership":
                metrics |= _rates(outcome)
                continue
            for form in ("scores", "attributions"):
                metrics[f"agreement/{form}_{outcome.values['n']}"] = (
                    intervals.proportion(outcome.values[form], outcome.values["judged"])
                )
        columns = context.job.rows.shape[1]
        return CheckResult(
            self.name,
            conditions={
                "quantity": "log_odds",
                "method": "permutations",
                "pairs": _PAIRS,
                "reference": "middle of the public ranges",
                "rows_charged_per_explanation": 1 + Orders(columns, _PAIRS).coalitions,
                "output_policy": str(context.leaving),
                "known_members": "explained/membership" in outcomes,
            },
            metrics=metrics,
            findings=_findings(metrics),
            details={"tables": [_table(metrics)]},
        )


def _told(unit: Unit, context: Context) -> Outcome:
    """Attributions of some rows of either kind, and scores of each attack."""
    known = known_rows(context)
    if known is None:
        raise TypeError("not planned without known rows")
    random = context.random(unit.key)
    chosen = np.concatenate(
        [
            random.permutation(np.flatnonzero(which))[:_OF_EACH_KIND]
            for which in (known.member, ~known.member)
        ]
    )
    rows, member = known.rows[chosen], known.member[chosen]
    which = _chances(context, rows).argmax(axis=1)
    values, found, _ = _explained(context, rows, which)
    fitted = random.random(len(rows)) < 0.5
    attacks = {
        "attribution_norm": np.abs(found).sum(axis=1),
        "attribution_variance": found.var(axis=1),
        "confidence": values,
    }
    arrays = {
        name: scores * _direction(scores[fitted], member[fitted])
        for name, scores in attacks.items()
    }
    arrays["attribution_learned"] = learned_scores(
        np.abs(found), which, member, fitted, seed=context.seed(unit.key)
    )
    judged = {name: scores[~fitted] for name, scores in arrays.items()}
    return Outcome({}, {**judged, "member": member[~fitted]})


def _direction(scores: Floats, member: NDArray[np.bool_]) -> float:
    """Whether members have more of a score, or less."""
    return 1.0 if scores[member].mean() >= scores[~member].mean() else -1.0


def _copied(unit: Unit, context: Context) -> Outcome:
    """Two copies, of equally many answers: without explanations, and with."""
    job, random = context.job, context.random(unit.key)
    order = context.random("explained/split").permutation(len(job.rows))
    known, judged = np.array_split(order, 2)
    rows = questions_of(context, unit.params, job.rows[known], random)
    answered = _chances(context, rows)
    which = answered.argmax(axis=1)
    _, found, reference = _explained(context, rows, which)
    masks = random.random((_MIXTURES, *rows.shape)) < 0.5
    more = np.where(masks, rows, _middle(context)).reshape(-1, rows.shape[1])
    odds = (reference + np.where(masks, found, 0.0).sum(axis=2)).reshape(-1)
    more, answers = more.astype(rows.dtype), _supposed(odds, answered)
    seed, truth = context.seed(unit.key), job.clean.labels[judged]
    agreed = {}
    for form, asked, given in (
        ("scores", rows, answered),
        (
            "attributions",
            np.concatenate([rows, more]),
            np.concatenate([answered, answers]),
        ),
    ):
        guess = steal(
            "perceptron",
            scaled(context, asked),
            given,
            scaled(context, job.rows[judged]),
            seed=seed,
        )
        agreed[form] = int((guess == truth).sum())
    return Outcome({**agreed, "judged": len(judged), "n": unit.params["n"]})


def _supposed(odds: Floats, answered: Floats) -> Floats:
    """Chances of mixtures ``(mixtures n, classes)``, by adding attributions up.

    Args:
        odds: ``(mixtures n,)``, of the class that each row was given.
        answered: ``(n, classes)``, about the rows.
    """
    own = 1 / (1 + np.exp(-np.clip(odds, -50, 50)))
    others = np.tile(answered, (_MIXTURES, 1))
    places, which = np.arange(len(others)), others.argmax(axis=1)
    # What is left goes to the other classes as the row's own answer shared it.
    others[places, which] = 0.0
    rest = others / others.sum(axis=1, keepdims=True) * (1 - own)[:, None]
    rest[places, which] = own
    return rest


def _explained(
    context: Context, rows: NDArray[Any], which: Places
) -> tuple[Floats, Floats, Floats]:
    """Log-odds ``(n,)``, attributions ``(n, columns)`` and the reference's ``(n,)``."""

    def ask(asked: NDArray[Any], places: Places) -> Floats:
        return shapley.log_odds(_chances(context, asked), places)

    middle = _middle(context)[None].astype(rows.dtype)
    found = attributed(ask, rows, which, middle, pairs=_PAIRS)
    return found.values, found.attributions, found.references[:, 0]


def _chances(context: Context, rows: NDArray[Any]) -> Floats:
    context.check_time()
    return chances(context.target.ask(rows).scores, context.job.reading.form)


def _middle(context: Context) -> Floats:
    """The reference: the middle of each public range."""
    space, rows = context.job.space, context.job.rows
    middle = (np.asarray(space.low, float) + np.asarray(space.high, float)) / 2
    return np.asarray(np.rint(middle) if rows.dtype.kind in "iu" else middle)


def _rates(outcome: Outcome) -> dict[str, Metric]:
    member = outcome.arrays["member"]
    return {
        f"{name}_{rate}": metric
        for name in (*_ATTACKS, "confidence")
        for rate, metric in curves.rates(
            outcome.arrays[name][member], outcome.arrays[name][~member]
        ).items()
    }


def _findings(metrics: Mapping[str, Metric]) -> tuple[ScanFinding, ...]:
    found = []
    told = [metrics[f"{name}_auc"] for name in _ATTACKS if f"{name}_auc" in metrics]
    worst = max(told, key=lambda metric: metric.value, default=None)
    if worst is not None and (worst.low or 0.0) > _TELLS:
        found.append(
            ScanFinding(
                "explanations-tell-members",
                f"attributions tell members from others with AUC {worst.value:.3f}",
                "membership",
                worst,
            )
        )
    for count in _QUESTIONS:
        without = metrics.get(f"agreement/scores_{count}")
        with_them = metrics.get(f"agreement/attributions_{count}")
        if without and with_them and (with_them.low or 0.0) > (without.high or 1.0):
            found.append(
                ScanFinding(
                    "explanations-sell-copies",
                    f"a copy of {count} explained answers agrees on "
                    f"{with_them.value:.1%} of rows, of as many plain ones on "
                    f"{without.value:.1%}",
                    "extraction",
                    with_them,
                )
            )
            break
    return tuple(found)


def _table(metrics: Mapping[str, Metric]) -> dict[str, object]:
    return {
        "title": "With explanations, and without",
        "columns": ["figure", "value", "95% interval"],
        "rows": [
            [name, f"{metric.value:.3f}", f"{metric.low:.3f} to {metric.high:.3f}"]
            for name, metric in metrics.items()
            if metric.low is not None
        ],
    }
