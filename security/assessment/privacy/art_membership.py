"""ART's membership attacks, as scores per row: higher for a likelier member.

The rule: who is classified rightly was trained on. The learned one: a forest on
answers and classes, fitted where membership is known, judged elsewhere. Labels alone:
how far a row is from where the model changes its mind (Choquette-Choo et al. 2021; Li
and Zhang 2021), by HopSkipJump.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from security.assessment.art_library import art, repeatable

__all__ = ["boundary_scores", "learned_scores", "rule_scores"]

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]
Rows = NDArray[Any]
# Full-grown trees learn single rows by heart and give coarse scores.
_LEAF = 5


def rule_scores(estimator: Any, rows: Rows, labels: Labels) -> Floats:
    """1 where the model is right, 0 elsewhere ``(n,)``."""
    attack = art().MembershipInferenceBlackBoxRuleBased(estimator)
    # One-hot with the model's own classes: ART counts those that it sees.
    truth = np.eye(estimator.nb_classes)[labels]
    return np.asarray(attack.infer(rows, truth), np.float64).reshape(-1)


def learned_scores(
    estimator: Any,
    members: tuple[Rows, Labels],
    others: tuple[Rows, Labels],
    judged: tuple[Rows, Labels],
    *,
    seed: int,
) -> Floats:
    """A random forest's chance of each judged row to be a member ``(n,)``.

    Args:
        estimator: ART's, of the target.
        members: that the forest is fitted to.
        others: the same; as many, or it learns how many there are of each.
        judged: other rows.
        seed: of the forest.
    """
    method = art().MembershipInferenceBlackBox(estimator, attack_model_type="rf")
    method.attack_model.set_params(
        min_samples_leaf=_LEAF, random_state=seed % (1 << 32)
    )
    with repeatable(seed % (1 << 32)):
        method.fit(*members, *others)
        inferred = method.infer(*judged, probabilities=True)
    scores = np.asarray(inferred, dtype=np.float64)
    # ART returns both classes' probabilities, or the second's alone.
    return scores.reshape(len(scores), -1)[:, -1]


def boundary_scores(
    estimator: Any, rows: Rows, labels: Labels, *, steps: int, seed: int
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
