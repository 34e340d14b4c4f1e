"""What gradient attacks climb, per row; larger is closer to another class.

All but cross-entropy are differences of scores: what multiplies all scores does not
change the direction of their gradient. Cross-entropy is taken at a temperature that
keeps confident rows from losing theirs.

Each takes scores, labels and the rows' places in the batch that the attack began with:
rows leave it as they are broken.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "Loss",
    "broken",
    "cross_entropy",
    "dlr",
    "margin",
    "margins",
    "rank_targets",
    "targeted",
]

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
_TINY = 1e-12
# Beyond this difference of logits, single precision begins to lose the gradient.
_CONFIDENT = 10.0


def margins(scores: Tensor, labels: Tensor) -> Tensor:
    """The true class's score above the best other's ``(n,)``: negative is broken."""
    own = scores.gather(1, labels[:, None])[:, 0]
    others = scores.scatter(1, labels[:, None], float("-inf"))
    return own - others.amax(dim=1)


def broken(model: Any, points: Tensor, scores: Tensor, labels: Tensor) -> Tensor:
    """Rows whose class has changed ``(n,)``.

    A model that only resembles what is served has a ``confirm``, whose word it is:
    else an attack would stop at a point that is none.
    """
    wrong = margins(scores, labels) < 0
    confirm = getattr(model, "confirm", None)
    if confirm is not None and bool(wrong.any()):
        wrong[wrong.clone()] = confirm(points[wrong], labels[wrong])
    return wrong


def margin(scores: Tensor, labels: Tensor, _: Tensor) -> Tensor:
    """The best other class's score above the true one's."""
    return -margins(scores, labels)


def cross_entropy(start: Tensor) -> Loss:
    """Cross-entropy at a temperature from the scores at the start, per row."""
    top = start.topk(2, dim=1).values
    heat = ((top[:, 0] - top[:, 1]) / _CONFIDENT).clamp_min(1.0)[:, None]

    def loss(scores: Tensor, labels: Tensor, place: Tensor) -> Tensor:
        scaled = scores / heat[place]
        return nn.functional.cross_entropy(scaled, labels, reduction="none")

    return loss


def dlr(scores: Tensor, labels: Tensor, place: Tensor) -> Tensor:
    """Difference of logits ratio (Croce and Hein 2020); the margin below 3 classes."""
    if scores.shape[1] < 3:
        return margin(scores, labels, place)
    top = scores.topk(3, dim=1).values
    return margin(scores, labels, place) / (top[:, 0] - top[:, 2] + _TINY)


def targeted(targets: Tensor) -> Loss:
    """Towards one class per row; DLR's targeted form from 4 classes on."""

    def loss(scores: Tensor, labels: Tensor, place: Tensor) -> Tensor:
        own = scores.gather(1, labels[:, None])[:, 0]
        aim = scores.gather(1, targets[place][:, None])[:, 0]
        if scores.shape[1] < 4:
            return aim - own
        top = scores.topk(4, dim=1).values
        spread = top[:, 0] - 0.5 * (top[:, 2] + top[:, 3])
        return (aim - own) / (spread + _TINY)

    return loss


def rank_targets(scores: Tensor, labels: Tensor, count: int) -> Tensor:
    """The likeliest other classes ``(n, count)``."""
    others = scores.scatter(1, labels[:, None], float("-inf"))
    return torch.argsort(others, dim=1, descending=True)[:, :count]
