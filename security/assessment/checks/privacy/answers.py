"""Membership by answers alone, as scores per row: higher for a likelier member.

The rule: who is classified rightly was trained on. The learned one: a forest on
answers and classes, fitted where membership is known, judged elsewhere (Shokri et al.
2017, without their shadows). Labels alone: how far a row is from where the model
changes its mind (Choquette-Choo et al. 2021; Li and Zhang 2021), by HopSkipJump.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from security.assessment.art_library import art, repeatable
from security.assessment.sklearn_library import sklearn

__all__ = ["boundary_scores", "learned_scores", "rule_scores"]

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]
Mask = NDArray[np.bool_]
# Full-grown trees learn single rows by heart and give coarse scores.
_LEAF = 5


def rule_scores(scores: Floats, labels: Labels) -> Floats:
    """1 where the model is right, 0 elsewhere ``(n,)``."""
    return np.asarray(scores.argmax(axis=1) == labels, np.float64)


def learned_scores(
    scores: Floats, labels: Labels, member: Mask, fitted: Mask, *, seed: int
) -> Floats:
    """A random forest's chance of each row to be a member ``(n,)``; 0 if fitted.

    Args:
        scores: ``(n, classes)``, the model's answers.
        labels: ``(n,)``, the rows' classes.
        member: ``(n,)``, what the forest learns.
        fitted: ``(n,)``, rows that it learns from: as many members as others, or it
            learns how many there are of each.
        seed: of the forest.
    """
    inputs = np.c_[scores, np.eye(scores.shape[1])[labels]]
    forest = sklearn("ensemble").RandomForestClassifier(
        min_samples_leaf=_LEAF, random_state=seed % (1 << 32)
    )
    forest.fit(inputs[fitted], member[fitted])
    made = np.zeros(len(labels))
    made[~fitted] = forest.predict_proba(inputs[~fitted])[:, -1]
    return made


def boundary_scores(
    estimator: Any, rows: NDArray[Any], labels: Labels, *, steps: int, seed: int
) -> Floats:
    """The L2 distance to another label, as far as HopSkipJump comes ``(n,)``.

    As ART's LabelOnlyDecisionBoundary, which begins where an unseeded generator says:
    here a search begins at the nearest of the other rows that has another label.

    Args:
        estimator: ART's, that asks the target.
        rows: in the estimator's coordinates.
        labels: of the rows.
        steps: of HopSkipJump.
        seed: of its random numbers.
    """
    points = rows.astype(np.float32)
    given = estimator.predict(points).argmax(axis=1)
    gaps = np.linalg.norm(points[:, None] - points[None], axis=2)
    gaps[given[:, None] == given[None]] = np.inf
    nearest = gaps.argmin(axis=1)
    # Who is wrong already is at no distance; nor can anyone search without an end.
    able = (given == labels) & np.isfinite(gaps.min(axis=1))
    distance = np.zeros(len(points))
    if not able.any():
        return distance
    start = points[able]
    with repeatable(seed % (1 << 32)):
        attack = art().HopSkipJump(
            estimator,
            norm=2,
            max_iter=steps,
            max_eval=100,
            init_eval=20,
            batch_size=256,
            verbose=False,
        )
        made = attack.generate(x=start, y=given[able], x_adv_init=points[nearest[able]])
    distance[able] = np.linalg.norm(made - start, axis=1)
    return distance
