"""Membership inference as a check of a scan, with shadow models of the same recipe.

The rows are the training's own and its held-out ones. Shadows are trained on random
halves of all of them, so that for every row there are models that knew it and models
that did not. The worst attack is the stated one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.report import Metric
from security.assessment.privacy import curves, signals
from security.assessment.privacy.shadows import (
    ShadowRecipe,
    Shadows,
    random_halves,
    train_shadows,
)
from security.assessment.scan.checks import CheckResult, ScanFinding, Unit
from security.assessment.scan.context import Context
from security.assessment.scan.store import Outcome

__all__ = ["MembershipCheck", "TrainingRows"]

_MIN_ROWS = 50
_PER_UNIT = 8
_SHADOWS = {"quick": 16, "standard": 32, "thorough": 64}
_HIGH_RATE = 0.05


@dataclass(frozen=True, eq=False)
class TrainingRows:
    """What the training's configuration says was trained on, and what was not.

    Attributes:
        rows: ``(n, …)``, raw, as the model takes them.
        inputs: ``(n, d)`` float32, as the network gets them.
        labels: ``(n,)``.
        member: ``(n,)``, whether the row was trained on.
        recipe: of the shadows, or None where the architecture has none.
        epsilon, delta: what the training claims, or None.
    """

    rows: NDArray[Any]
    inputs: NDArray[np.float32]
    labels: NDArray[np.int64]
    member: NDArray[np.bool_]
    recipe: ShadowRecipe | None
    epsilon: float | None = None
    delta: float | None = None


class MembershipCheck:
    """LiRA, RMIA and the loss attack."""

    name = "membership"
    title = "who was in the training data"

    def missing(self, context: Context) -> str | None:
        """The training's configuration must be given."""
        known = _training(context)
        if known is None:
            return "the training's configuration is not given (--training CONFIG.toml)"
        fewest = min(int(known.member.sum()), int((~known.member).sum()))
        if fewest < _MIN_ROWS:
            return f"{fewest} rows of one kind; {_MIN_ROWS} are needed to conclude"
        return None

    def units(self, context: Context) -> list[Unit]:
        """The target's own answers, then shadows, some at a time."""
        known = _known(context)
        units = [Unit(self.name, "membership/target", {"part": "target"}, weight=0.3)]
        if known.recipe is not None:
            count = _SHADOWS[context.job.options.profile]
            units += [
                Unit(self.name, f"membership/shadows-{first}", {"first": first})
                for first in range(0, count, _PER_UNIT)
            ]
        return units

    def run(self, unit: Unit, context: Context) -> Outcome:
        """Ask the target, or train some shadows.

        Raises:
            BudgetError: an endpoint's queries are spent.
        """
        known = _known(context)
        if "first" not in unit.params:
            rows = known.rows.reshape(len(known.rows), -1).astype(
                context.job.rows.dtype
            )
            answers = context.target.ask(rows)
            return Outcome({}, {"scores": answers.scores})
        if known.recipe is None:
            raise TypeError("no shadows without a recipe")
        halves = random_halves(
            _SHADOWS[context.job.options.profile],
            len(known.labels),
            context.random("membership/halves"),
        )
        first = unit.params["first"]
        shadows = train_shadows(
            known.inputs,
            known.labels,
            halves[first : first + _PER_UNIT],
            known.recipe,
            seed=context.seed(unit.key),
        )
        return Outcome({}, {"included": shadows.included, "logits": shadows.logits})

    def conclude(
        self, context: Context, outcomes: Mapping[str, Outcome]
    ) -> CheckResult:
        """The rates of each attack; the worst are the stated ones."""
        known = _known(context)
        target = outcomes.get("membership/target")
        if target is None:
            return CheckResult(
                self.name, status="skipped", reason="no budget was left for the target"
            )
        form = context.job.reading.form
        scores = _scores(known, target.arrays["scores"], _shadows(outcomes), form)
        metrics: dict[str, Metric] = {}
        series = []
        for name, values in scores.items():
            members, others = values[known.member], values[~known.member]
            for rate, metric in curves.rates(members, others).items():
                metrics[f"{name}_{rate}"] = metric
            series.append({"name": name, "points": curves.roc(members, others)})
        for rate in ("auc", "tpr_at_fpr_1pct"):
            own = [metrics[f"{name}_{rate}"] for name in scores]
            metrics[rate] = max(own, key=lambda metric: metric.value)
        reason = "" if known.recipe else "no shadows for this architecture: loss only"
        return CheckResult(
            self.name,
            status="done" if known.recipe else "partial",
            reason=reason,
            kind="membership",
            conditions={
                "access": "black_box",
                "attacks": ", ".join(scores),
                "false_positive_rate": 0.01,
                "auc_interval": "delong",
                "tpr_interval": "wilson",
                "shadow_models": 0
                if len(scores) == 1
                else len(_shadows(outcomes).included),
                "covered_by_dp": False,
            },
            metrics=metrics,
            findings=_findings(metrics, known),
            details={
                "charts": [_chart(series)],
                "untested": _untested(known),
            },
        )


def _training(context: Context) -> TrainingRows | None:
    known = context.job.extras.get("training")
    return known if isinstance(known, TrainingRows) else None


def _known(context: Context) -> TrainingRows:
    known = _training(context)
    if known is None:
        raise TypeError("not planned without a training configuration")
    return known


def _shadows(outcomes: Mapping[str, Outcome]) -> Shadows:
    parts = [item.arrays for item in outcomes.values() if "logits" in item.arrays]
    if not parts:
        return Shadows(np.zeros((0, 0), bool), np.zeros((0, 0, 0), np.float32))
    return Shadows(
        np.concatenate([part["included"] for part in parts]),
        np.concatenate([part["logits"] for part in parts]),
    )


def _scores(
    known: TrainingRows, scores: NDArray[np.float64], shadows: Shadows, form: str
) -> dict[str, NDArray[np.float64]]:
    scores = np.nan_to_num(scores)
    if form == "scores":
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
    chance = np.clip(scores, 1e-12, 1.0)
    chance = chance / chance.sum(axis=1, keepdims=True)
    own = signals.loss(chance, known.labels)
    result = {"loss": own}
    if len(shadows.included) >= 2:
        sure = signals.confidences(np.log(chance), known.labels)
        result["lira"] = signals.lira(sure, shadows, known.labels)
        result["rmia"] = signals.rmia(own, shadows, known.labels)
    return result


def _findings(
    metrics: Mapping[str, Metric], known: TrainingRows
) -> tuple[ScanFinding, ...]:
    rate = metrics["tpr_at_fpr_1pct"]
    findings = []
    bound = _bound(known)
    if rate.low is not None and rate.low > bound:
        findings.append(
            ScanFinding(
                "membership-beyond-claim",
                f"members are recognised more often ({rate.value:.3f}) than the "
                f"claimed epsilon {known.epsilon:g} allows ({bound:.3f})",
                "",
                rate,
            )
        )
    elif rate.low is not None and rate.low > _HIGH_RATE:
        findings.append(
            ScanFinding(
                "membership-exposed",
                f"{rate.value:.1%} of the members are recognised while 1% of others "
                "are accused",
                "",
                rate,
            )
        )
    return tuple(findings)


def _bound(known: TrainingRows) -> float:
    """The highest true positive rate at 1% that (epsilon, delta) allows.

    Kairouz, Oh, Viswanath 2015: TPR <= e^epsilon FPR + delta, and the mirrored bound.
    """
    if known.epsilon is None:
        return 1.0
    delta = known.delta or 0.0
    first = np.exp(known.epsilon) * 0.01 + delta
    second = 1 - np.exp(-known.epsilon) * (0.99 - delta)
    return float(min(1.0, first, second))


def _chart(series: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "title": "Membership attacks, both axes logarithmic; dashed: guessing",
        "x": "others accused (false positive rate)",
        "y": "members found (true positive rate)",
        "log_x": True,
        "log_y": True,
        "diagonal": True,
        "series": series,
    }


def _untested(known: TrainingRows) -> list[str]:
    others = int((~known.member).sum())
    lines = []
    if others < curves.MIN_OTHERS_PER_MILLE:
        lines.append(
            f"Membership at 0.1% false positives: {others} rows that were not trained "
            f"on are too few; {curves.MIN_OTHERS_PER_MILLE} are needed."
        )
    return lines
