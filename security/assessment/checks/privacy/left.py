"""What an output policy leaves of answers, and what an attacker makes of that.

The policy is applied by the code that applies it to every answer that is served,
`models.output_policy`. What it withholds an attacker fills in as far as it can be:
probabilities add up to 1, and of a row without an answer all classes of its set are
alike, or all that there are. Intervals, and sets of rows that are answered, follow from
what leaves (`models.conforming`): they tell an attacker nothing more.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.conformal import Conformal
from models.output_policy import OutputPolicy, scores_left
from security.assessment.plan.context import Context
from security.assessment.targets.answers import Answers

__all__ = [
    "chances",
    "chances_left",
    "conformal_of",
    "hidden_rows",
    "shadow_logits",
]

Floats = NDArray[np.float64]
_TINY = 1e-12


def conformal_of(context: Context) -> Conformal | None:
    """What the sets of a bundle are made by; None of what else is scanned."""
    manifest = context.job.source.manifest
    return None if manifest is None else manifest.conformal


def chances(scores: NDArray[Any], form: str) -> Floats:
    """Answers as probabilities ``(n, classes)``, none of them 0.

    Args:
        scores: ``(n, classes)``; what is no number counts as 0.
        form: as `Reading.form`.
    """
    values = np.nan_to_num(scores)
    if form == "scores":
        values = np.exp(values - values.max(axis=1, keepdims=True))
    values = np.clip(values, _TINY, 1.0)
    return np.asarray(values / values.sum(axis=1, keepdims=True), np.float64)


def chances_left(
    policy: OutputPolicy,
    answers: Answers,
    form: str,
    conformal: Conformal | None = None,
) -> Floats:
    """The same of what a policy leaves.

    Args:
        policy: of the target.
        answers: as it gives them.
        form: as `Reading.form`.
        conformal: makes the sets that it abstains by, which leave where scores do;
            None of an endpoint, whose answers say where it did.

    >>> answers = Answers(np.array([[0.7, 0.2, 0.1]]), np.array([0]))
    >>> chances_left(OutputPolicy(top_k=1), answers, "probabilities").round(2).tolist()
    [[0.7, 0.15, 0.15]]
    """
    left = _left(policy, answers, form)
    hidden = hidden_rows(policy, answers, conformal)
    if not hidden.any():
        return left
    possible = np.ones(left.shape, np.bool_)
    inside = _sets(policy, answers, conformal)
    if policy.tells_sets and inside is not None:
        possible = inside | ~inside.any(axis=1, keepdims=True)
    left[hidden] = chances(possible[hidden].astype(np.float64), "probabilities")
    return left


def hidden_rows(
    policy: OutputPolicy, answers: Answers, conformal: Conformal | None
) -> NDArray[np.bool_]:
    """Rows that get no answer ``(n,)``; the arguments are those of `chances_left`."""
    if not policy.abstain:
        return np.zeros(len(answers), np.bool_)
    inside = _sets(policy, answers, conformal)
    if inside is None:
        return np.asarray(~np.nan_to_num(answers.scores).any(axis=1))
    other = inside.argmax(axis=1) != answers.labels
    return np.asarray((inside.sum(axis=1) != 1) | other)


def _sets(
    policy: OutputPolicy, answers: Answers, conformal: Conformal | None
) -> NDArray[np.bool_] | None:
    """The classes in each row's set ``(n, classes)``; None where nobody knows."""
    if conformal is None or not conformal.of_classes:
        return None
    scores = answers.scores
    if policy.decimals is not None:
        scores = scores_left(OutputPolicy(decimals=policy.decimals), scores)
    return conformal.sets(scores)


def _left(policy: OutputPolicy, answers: Answers, form: str) -> Floats:
    if not policy.withholds or form == "labels":
        return chances(answers.scores, form)
    alone = np.nan_to_num(answers.decisions)
    if policy.label_only:
        return chances(alone, "probabilities")
    left = scores_left(policy, np.nan_to_num(answers.scores))
    kept = np.sort(left, axis=1)[:, -min(policy.top_k or 1 << 20, left.shape[1])]
    gone = (left < kept[:, None]) | (left == 0)
    left = np.where(gone, 0.0, left)
    if form == "scores" and not _are_shares(left):
        return chances(left, form)
    if policy.top_k is not None:
        rest = np.maximum(0, 1 - left.sum(axis=1, keepdims=True))
        left += gone * rest / np.maximum(1, gone.sum(axis=1, keepdims=True))
    elif answers.stated:  # of a row whose scores are all rounded to 0 the label is left
        left = np.where(left.sum(axis=1, keepdims=True) > 0, left, alone)
    return chances(left, "probabilities")


def shadow_logits(
    policy: OutputPolicy,
    logits: NDArray[np.float32],
    form: str,
    conformal: Conformal | None = None,
) -> NDArray[np.float32]:
    """What shadow models would answer under a policy, as logits of their own shape.

    Args:
        policy: of the target.
        logits: ``(models, n, classes)``.
        form: of the target's answers.
        conformal: as of `chances_left`.
    """
    flat = logits.reshape(-1, logits.shape[-1]).astype(np.float64)
    scores = chances(flat, "scores") if form == "probabilities" else flat
    answers = Answers(scores, scores.argmax(axis=1))
    left = np.log(chances_left(policy, answers, form, conformal))
    return left.reshape(logits.shape).astype(np.float32)


def _are_shares(left: Floats) -> bool:
    """Whether what an endpoint left of its scores looks like probabilities."""
    return bool(left.min(initial=0.0) >= 0 and left.max(initial=0.0) <= 1)
