"""Membership inference as a check of a scan, with shadow models of the same recipe.

The rows are the training's own and held-out ones. Where the recipe is known, shadows
are trained on random halves of all of them, so that for every row there are models that
knew it and models that did not. The worst attack is the stated one.

Attackers see what a bundle's output policy leaves, of the target and of their shadows.
What they would find if all scores left stands beside that, from the same answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.report import Check, Metric
from security.assessment.checks.estimators import asking_estimator
from security.assessment.checks.privacy import answers, curves, signals
from security.assessment.checks.privacy.left import (
    chances,
    chances_left,
    conformal_of,
    hidden_rows,
    shadow_logits,
)
from security.assessment.checks.privacy.shadows import (
    Shadows,
    random_halves,
    train_shadows,
)
from security.assessment.checks.privacy.trained import KnownRows, known_rows
from security.assessment.plan.checks import Outcome, Unit
from security.assessment.plan.context import Context
from security.assessment.results.result import CheckResult, ScanFinding
from security.assessment.targets.answers import Answers

__all__ = [
    "MembershipCheck",
    "exposure_findings",
    "known_of",
    "policy_finding",
    "roc_chart",
]

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

_MIN_ROWS = 50
_PER_UNIT = 8
_HIGH_RATE = 0.05
_HIGH_AUC = 0.65
_LABEL_ONLY = "label_only"
_RATES = ("auc", "tpr_at_fpr_1pct")
_WHOLE = "whole_"  # of arrays about all that the model answers
# Rows of either kind, and steps, of the attack by labels alone: thousands of questions
# about each row.
_BOUNDARY = {"standard": (40, 3), "thorough": (100, 5)}


class MembershipCheck:
    """The loss attack, the rule, a learned one; with shadows LiRA and RMIA."""

    name = "membership"
    title = "who was in the training data"

    def missing(self, context: Context) -> str | None:
        """The rows that were trained on must be given."""
        known = known_rows(context)
        if known is None:
            return "no rows that were trained on are given (--training, --train-data)"
        fewest = min(int(known.member.sum()), int((~known.member).sum()))
        if fewest < _MIN_ROWS:
            return f"{fewest} rows of one kind; {_MIN_ROWS} are needed to conclude"
        return None

    def units(self, context: Context) -> list[Unit]:
        """The target's own answers, then shadows, some at a time."""
        known = known_of(context)
        units = [Unit(self.name, "membership/target", {"part": "target"}, weight=0.3)]
        asked = not (context.job.remote or context.job.texts)
        if context.job.options.profile in _BOUNDARY and asked:
            units.append(
                Unit(self.name, f"membership/{_LABEL_ONLY}", {"part": _LABEL_ONLY})
            )
        if known.training is not None and known.training.recipe is not None:
            count = context.job.options.effort.shadows
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
        known = known_of(context)
        part = unit.params.get("part")
        if part == "target":
            return _asked(known, context, context.seed(unit.key))
        if part == _LABEL_ONLY:
            return _by_labels(known, context, context.seed(unit.key))
        if known.training is None or known.training.recipe is None:
            raise TypeError("no shadows without a recipe")
        halves = random_halves(
            context.job.options.effort.shadows,
            len(known.labels),
            context.random("membership/halves"),
        )
        first = unit.params["first"]
        shadows = train_shadows(
            known.training.inputs,
            known.labels,
            halves[first : first + _PER_UNIT],
            known.training.recipe,
            seed=context.seed(unit.key),
        )
        return Outcome({}, {"included": shadows.included, "logits": shadows.logits})

    def conclude(
        self, context: Context, outcomes: Mapping[str, Outcome]
    ) -> CheckResult:
        """The rates of each attack; the worst are the stated ones."""
        known = known_of(context)
        if "membership/target" not in outcomes:
            return CheckResult(
                self.name, status="skipped", reason="no budget was left for the target"
            )
        scores, judged = _judged(context, known, outcomes)
        metrics, series = _measured(known, scores, judged)
        policy_findings: tuple[ScanFinding, ...] = ()
        if context.leaving.withholds and not context.job.remote:
            whole = _measured(known, *_judged(context, known, outcomes, whole=True))[0]
            metrics |= {f"all_scores_{name}": whole[name] for name in _RATES}
            policy_findings = (policy_finding(str(context.leaving), metrics),)
        return CheckResult(
            self.name,
            kind="membership",
            datasets=known.datasets,
            conditions={
                "access": "black_box",
                "output_policy": str(context.leaving),
                "attacks": ", ".join(scores),
                "stated_attack": max(
                    _stated(scores), key=lambda name: metrics[f"{name}_auc"].value
                ),
                "learned_attack": "random forest on answers and classes",
                "fitted_on": "half of each kind, judged on the other rows",
                "false_positive_rate": 0.01,
                "auc_interval": "newcombe",
                "tpr_interval": "wilson",
                "shadow_models": len(_shadows(outcomes).included),
                "rows_judged_by_label_only": int(
                    judged.get(_LABEL_ONLY, np.zeros(1)).sum()
                ),
                "seed": context.job.options.seed,
                "covered_by_dp": False,
            },
            metrics=metrics,
            checks=(_finite(scores),),
            findings=(*exposure_findings(metrics, known), *policy_findings),
            details={
                "charts": [roc_chart(series)],
                "untested": _untested(known),
            },
            public={
                name: {
                    "members": int((known.member & judged[name]).sum()),
                    "others": int((~known.member & judged[name]).sum()),
                }
                for name in scores
            },
        )


def known_of(context: Context) -> KnownRows:
    """The rows whose membership is known, of a check that was planned."""
    known = known_rows(context)
    if known is None:
        raise TypeError("not planned without training rows")
    return known


def _judged(
    context: Context,
    known: KnownRows,
    outcomes: Mapping[str, Outcome],
    *,
    whole: bool = False,
) -> tuple[dict[str, Floats], dict[str, Mask]]:
    """Scores by attack, and which rows each is judged on.

    Args:
        context: of the scan.
        known: the rows.
        outcomes: of the units.
        whole: of all that the model answers, whatever leaves of it.
    """
    target = outcomes["membership/target"].arrays
    leaving, form = context.leaving, context.job.reading.form
    shadows = _shadows(outcomes)
    if leaving.withholds and not whole and len(shadows.included):
        logits = shadow_logits(leaving, shadows.logits, form, conformal_of(context))
        shadows = Shadows(shadows.included, logits)
    prefix = _WHOLE if whole else ""
    scores = _scores(known, target[f"{prefix}chances"], shadows)
    judged = {name: np.ones(len(known.labels), bool) for name in scores}
    scores |= {name: target[f"{prefix}{name}"] for name in ("rule", "learned")}
    judged["rule"], judged["learned"] = judged["loss"], target["learned_judged"]
    by_labels = outcomes.get(f"membership/{_LABEL_ONLY}")
    if by_labels is not None:
        scores[_LABEL_ONLY] = by_labels.arrays["scores"]
        judged[_LABEL_ONLY] = by_labels.arrays["judged"]
    return scores, judged


def _measured(
    known: KnownRows, scores: Mapping[str, Floats], judged: Mapping[str, Mask]
) -> tuple[dict[str, Metric], list[dict[str, Any]]]:
    """Each attack's rates and curve; and the worst rates, which are the stated ones."""
    metrics: dict[str, Metric] = {}
    series = []
    for name, values in scores.items():
        members = values[known.member & judged[name]]
        others = values[~known.member & judged[name]]
        for rate, metric in curves.rates(members, others).items():
            metrics[f"{name}_{rate}"] = metric
        series.append({"name": name, "points": curves.roc(members, others)})
    for rate in _RATES:
        own = [metrics[f"{name}_{rate}"] for name in _stated(scores)]
        metrics[rate] = max(own, key=lambda metric: metric.value)
    return metrics, series


def _stated(scores: Mapping[str, Floats]) -> list[str]:
    """The attacks whose worst is stated: of few rows the worst is the luckiest."""
    return [name for name in scores if name != _LABEL_ONLY]


def _finite(scores: Mapping[str, Floats]) -> Check:
    finite = all(bool(np.isfinite(values).all()) for values in scores.values())
    return Check("finite", finite, "every score is a number")


def _asked(known: KnownRows, context: Context, seed: int) -> Outcome:
    """The target's answers, and the attacks that need nothing else."""
    given = context.target.ask(known.rows)
    form, leaving = context.job.reading.form, context.leaving
    random = np.random.default_rng(seed)
    fitted = np.zeros(len(known.rows), bool)
    half = min(int(known.member.sum()), int((~known.member).sum())) // 2
    for which in (known.member, ~known.member):
        fitted[random.permutation(np.flatnonzero(which))[:half]] = True

    def learned(usable: Floats) -> Floats:
        return answers.learned_scores(
            usable, known.labels, known.member, fitted, seed=seed
        )

    usable = np.nan_to_num(given.scores)
    rule = answers.rule_scores(usable, known.labels)
    found = {
        "chances": chances_left(leaving, given, form, conformal_of(context)),
        # Of a row without an answer nobody is told that it is right.
        "rule": rule * ~_hidden(context, given),
        "learned_judged": ~fitted,
    }
    if not leaving.withholds:
        return Outcome({}, {**found, "learned": learned(usable)})
    if context.job.remote:  # nobody sees more than it answers
        return Outcome({}, {**found, "learned": learned(found["chances"])})
    whole = {"chances": chances(given.scores, form), "learned": learned(usable)}
    whole["rule"] = rule
    found |= {f"{_WHOLE}{name}": values for name, values in whole.items()}
    return Outcome({}, {**found, "learned": learned(found["chances"])})


def _by_labels(known: KnownRows, context: Context, seed: int) -> Outcome:
    """The distance to another label, of some rows of either kind."""
    count, steps = _BOUNDARY[context.job.options.profile]
    random = np.random.default_rng(seed)
    chosen = np.zeros(len(known.labels), bool)
    for which in (known.member, ~known.member):
        chosen[random.permutation(np.flatnonzero(which))[:count]] = True
    scores = np.zeros(len(known.labels))
    hidden = partial(_hidden, context) if context.leaving.abstain else None
    scores[chosen] = answers.boundary_scores(
        asking_estimator(context, hidden),
        context.job.space.to_z(known.rows[chosen]),
        known.labels[chosen],
        steps=steps,
        seed=seed,
    )
    return Outcome({}, {"scores": scores, "judged": chosen})


def _hidden(context: Context, given: Answers) -> Mask:
    return hidden_rows(context.leaving, given, conformal_of(context))


def _shadows(outcomes: Mapping[str, Outcome]) -> Shadows:
    parts = [item.arrays for item in outcomes.values() if "logits" in item.arrays]
    if not parts:
        return Shadows(np.zeros((0, 0), bool), np.zeros((0, 0, 0), np.float32))
    return Shadows(
        np.concatenate([part["included"] for part in parts]),
        np.concatenate([part["logits"] for part in parts]),
    )


def _scores(
    known: KnownRows, chance: NDArray[np.float64], shadows: Shadows
) -> dict[str, NDArray[np.float64]]:
    own = signals.loss(chance, known.labels)
    result = {"loss": own}
    if len(shadows.included) >= 2:
        sure = signals.confidences(np.log(chance), known.labels)
        result["lira"] = signals.lira(sure, shadows, known.labels)
        result["rmia"] = signals.rmia(own, shadows, known.labels)
    return result


def exposure_findings(
    metrics: Mapping[str, Metric], known: KnownRows
) -> tuple[ScanFinding, ...]:
    """Where members are recognised more often than is claimed, or than is good."""
    rate, auc = metrics["tpr_at_fpr_1pct"], metrics["auc"]
    findings = []
    bound = _bound(known)
    claimed = known.training.epsilon if known.training else None
    if rate.low is not None and rate.low > bound:
        findings.append(
            ScanFinding(
                "membership-beyond-claim",
                f"members are recognised more often ({rate.value:.3f}) than the "
                f"claimed epsilon {claimed:g} allows ({bound:.3f})",
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
    elif auc.low is not None and auc.low > _HIGH_AUC:
        findings.append(
            ScanFinding(
                "membership-exposed",
                f"of a member and another row, the member is told in {auc.value:.1%} "
                "of pairs",
                "",
                auc,
            )
        )
    return tuple(findings)


def policy_finding(leaving: str, metrics: Mapping[str, Metric]) -> ScanFinding:
    """How much the policy takes from attackers, which is little or nothing."""
    left, whole = metrics["auc"], metrics["all_scores_auc"]
    overlap = (left.high or 1.0) >= (whole.low or 0.0)
    told = "it is no protection here" if overlap else "it is less, and no bound"
    return ScanFinding(
        "membership-output-policy",
        f"what leaves ({leaving}) gives the best attack an AUC of {_shown(left)}, all "
        f"scores {_shown(whole)}: {told}",
        "",
        left,
    )


def _shown(metric: Metric) -> str:
    ends = "" if metric.low is None else f" [{metric.low:.3f}, {metric.high:.3f}]"
    return f"{metric.value:.3f}{ends}"


def _bound(known: KnownRows) -> float:
    """The highest true positive rate at 1% that (epsilon, delta) allows.

    Kairouz, Oh, Viswanath 2015: TPR <= e^epsilon FPR + delta, and the mirrored bound.
    """
    training = known.training
    if training is None or training.epsilon is None:
        return 1.0
    delta = training.delta or 0.0
    first = np.exp(training.epsilon) * 0.01 + delta
    second = 1 - np.exp(-training.epsilon) * (0.99 - delta)
    return float(min(1.0, first, second))


def roc_chart(series: list[dict[str, Any]]) -> dict[str, Any]:
    """How many members each attack finds, by how many others it accuses."""
    return {
        "title": "Membership attacks, both axes logarithmic; dashed: guessing",
        "x": "others accused (false positive rate)",
        "y": "members found (true positive rate)",
        "log_x": True,
        "log_y": True,
        "diagonal": True,
        "series": series,
    }


def _untested(known: KnownRows) -> list[str]:
    others = int((~known.member).sum())
    lines = []
    if known.training is None or known.training.recipe is None:
        lines.append("Membership by shadow models: how to train them is not known.")
    if others < curves.MIN_OTHERS_PER_MILLE:
        lines.append(
            f"Membership at 0.1% false positives: {others} rows that were not trained "
            f"on are too few; {curves.MIN_OTHERS_PER_MILLE} are needed."
        )
    return lines
