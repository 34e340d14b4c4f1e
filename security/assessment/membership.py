"""Who was in the training data: membership inference against the model as served.

Two attacks, black box. The learned one is ART's: a classifier on the model's answers,
fitted on some rows whose membership is known and judged on others. The other has
nothing to fit: rows that the model is surer about are called members (Yeom et al.
2018). The stronger result is the stated one; picking it overstates the attack, if
anything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from models.bundle import Bundle
from models.data.datasets import AnyDataset
from models.report import Check, Condition, Metric
from security.assessment import intervals
from security.assessment.art_library import art
from security.assessment.privacy.art_membership import learned_scores
from security.assessment.scaled_model import ServedModel
from security.errors import AssessmentError

__all__ = ["FALSE_POSITIVE_RATE", "MIN_ROWS", "Membership", "attack", "roc_point"]

MIN_ROWS = 50
FALSE_POSITIVE_RATE = 0.01
_SEED = 0

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Membership:
    """What came out; as in a report."""

    conditions: dict[str, Condition]
    metrics: dict[str, Metric]
    checks: tuple[Check, ...]
    details: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class _Scores:
    """How sure an attack is that rows were trained on; none of them were fitted on."""

    members: Floats
    others: Floats

    @property
    def auc(self) -> Metric:
        return intervals.auc(self.members, self.others)

    @property
    def tpr(self) -> Metric:
        return roc_point(self.members, self.others, FALSE_POSITIVE_RATE)


def attack(
    bundle: Bundle,
    train: AnyDataset,
    holdout: AnyDataset,
    on_step: Callable[[float], None] = lambda _: None,
) -> Membership:
    """Attack a bundle's model with rows it was trained on and rows it was not.

    Raises:
        AssessmentError: too few rows of either kind to conclude.
    """
    if min(len(train), len(holdout)) < MIN_ROWS:
        raise AssessmentError(
            f"membership needs {MIN_ROWS} rows or more of each kind, "
            f"there are {len(train)} and {len(holdout)}"
        )
    served = ServedModel(bundle)
    scores = {"loss": _loss_attack(served, train, holdout)}
    on_step(0.2)
    scores["learned"] = _learned_attack(served, train, holdout)
    on_step(1.0)
    worst = max(scores, key=lambda name: scores[name].auc.value)
    return Membership(
        conditions=_conditions(worst),
        metrics={
            "auc": scores[worst].auc,
            "tpr_at_fpr_1pct": max(
                (item.tpr for item in scores.values()), key=lambda metric: metric.value
            ),
            **{f"{name}_auc": item.auc for name, item in scores.items()},
            **{f"{name}_tpr_at_fpr_1pct": item.tpr for name, item in scores.items()},
        },
        checks=(_finite(scores),),
        details={
            name: {"members": len(item.members), "others": len(item.others)}
            for name, item in scores.items()
        },
    )


def roc_point(members: Floats, others: Floats, rate: float) -> Metric:
    """True positive rate where at most a share of the others is called a member.

    The threshold lies above enough of the others' scores; with few others none may be
    called a member, and the result is what such a cautious attacker gets.

    >>> roc_point(np.array([0.9, 0.2]), np.array([0.5, 0.1]), 0.01).value
    0.5
    """
    allowed = int(rate * len(others))
    threshold = np.sort(others)[::-1][allowed]
    return intervals.proportion(int((members > threshold).sum()), len(members))


def _loss_attack(
    served: ServedModel, train: AnyDataset, holdout: AnyDataset
) -> _Scores:
    def sureness(rows: AnyDataset) -> Floats:
        probabilities = served.probabilities(rows.features)
        chosen: Floats = probabilities[np.arange(len(rows)), rows.labels]
        return chosen

    return _Scores(sureness(train), sureness(holdout))


def _learned_attack(
    served: ServedModel, train: AnyDataset, holdout: AnyDataset
) -> _Scores:
    """ART's black box attack, a random forest, fitted on one half of either kind."""
    fit_train, judge_train = _halves(train)
    fit_holdout, judge_holdout = _halves(holdout)
    # As many members as others, or the forest learns how many there are of each.
    size = min(len(fit_train), len(fit_holdout))
    fit_train, fit_holdout = _head(fit_train, size), _head(fit_holdout, size)
    model = art().BlackBoxClassifierNeuralNetwork(
        served.probabilities,
        input_shape=train.features.shape[1:],
        nb_classes=served.classes,
    )
    members, others = (
        learned_scores(
            model,
            (_numbers(fit_train), fit_train.labels),
            (_numbers(fit_holdout), fit_holdout.labels),
            (_numbers(item), item.labels),
            seed=_SEED,
        )
        for item in (judge_train, judge_holdout)
    )
    return _Scores(members, others)


def _numbers(rows: AnyDataset) -> NDArray[np.floating]:
    """Features as ART takes them: it refuses pixels without a sign."""
    whole = rows.features.dtype.kind == "u"
    return rows.features.astype(np.float32) if whole else rows.features


def _head(rows: AnyDataset, size: int) -> AnyDataset:
    return rows.take(np.arange(size))


def _halves(rows: AnyDataset) -> tuple[AnyDataset, AnyDataset]:
    order = np.random.default_rng(_SEED).permutation(len(rows))
    middle = len(rows) // 2
    return rows.take(order[:middle]), rows.take(order[middle:])


def _finite(scores: dict[str, _Scores]) -> Check:
    parts = [part for item in scores.values() for part in (item.members, item.others)]
    finite = all(bool(np.isfinite(part).all()) for part in parts)
    return Check("finite", finite, "every score is a number")


def _conditions(worst: str) -> dict[str, Condition]:
    return {
        "access": "black_box",
        "attacks": "loss, learned",
        "stated_attack": worst,
        "attack_library": "adversarial-robustness-toolbox",
        "learned_attack": "MembershipInferenceBlackBox, random forest",
        "fitted_on": "half of each kind, judged on the other half",
        "false_positive_rate": FALSE_POSITIVE_RATE,
        "auc_interval": "delong",
        "tpr_interval": "wilson",
        "shadow_models": 0,
        "seed": _SEED,
        "covered_by_dp": False,
    }
