"""Attacks that follow a gradient, by name, on rows in boxes and balls of their own.

ART's Square takes images only, its DLR fails on two classes, its AutoAttack takes
twenty times as long as it must, it has no FAB, and none of them knows bounds per row:
ours stand in (decision 0055).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from security.assessment.checks.evasion import losses
from security.assessment.checks.evasion.fab import fab
from security.assessment.checks.evasion.gradient import Ball, Model, apgd, single_step

__all__ = ["METHODS", "propose"]

_LOSSES: Mapping[str, Callable[[Tensor], losses.Loss]] = {
    "apgd-ce": losses.cross_entropy,
    "apgd-dlr": lambda _: losses.dlr,
    "apgd-margin": lambda _: losses.margin,
}
METHODS = (*_LOSSES, "apgd-t", "fab", "fgsm")


def propose(
    name: str,
    model: Model,
    ball: Ball,
    labels: Tensor,
    *,
    steps: int = 1,
    targets: int = 9,
    seed: int = 0,
    start: Tensor | None = None,
) -> Tensor:
    """Candidates ``(n, d)``; rows that no change was found for may differ.

    Args:
        name: of `METHODS`.
        model: to scores ``(n, classes)``.
        ball: where each row may go; FAB heeds its box alone.
        labels: ``(n,)``, the classes to leave.
        steps: of the attack, per class aimed at.
        targets: classes that "apgd-t" and "fab" aim at, the likeliest first.
        seed: of random starts.
        start: points that Auto-PGD starts from instead.
    """
    with torch.no_grad():
        scores = model(ball.centre)
    generator = torch.Generator().manual_seed(seed)
    if name in _LOSSES:
        loss = _LOSSES[name](scores)
        return apgd(
            model, ball, labels, loss, steps=steps, generator=generator, start=start
        )
    if name == "fgsm":
        return single_step(model, ball, labels, losses.cross_entropy(scores))
    aims = losses.rank_targets(scores, labels, min(targets, scores.shape[1] - 1))
    if name == "fab":
        return _closest(model, ball, labels, aims, steps)
    return _towards(model, ball, labels, aims, steps, generator=generator)


def _towards(
    model: Model,
    ball: Ball,
    labels: Tensor,
    aims: Tensor,
    steps: int,
    *,
    generator: torch.Generator,
) -> Tensor:
    """APGD-T: towards each of the likeliest other classes, while rows stand."""
    result = ball.centre.clone()
    left = torch.arange(len(labels))
    for aim in aims.unbind(dim=1):
        made = apgd(
            model,
            ball.take(left),
            labels[left],
            losses.targeted(aim[left]),
            steps=steps,
            generator=generator,
        )
        result[left] = made
        with torch.no_grad():
            wrong = losses.broken(model, made, model(made), labels[left])
            left = left[~wrong]
        if not len(left):
            break
    return result


def _closest(
    model: Model, ball: Ball, labels: Tensor, aims: Tensor, steps: int
) -> Tensor:
    """FAB towards each class; of each row the closest point."""
    best = ball.centre.clone()
    closest = torch.full_like(best[:, 0], float("inf"))
    for aim in aims.unbind(dim=1):
        points, distance = fab(
            model,
            ball.centre,
            (ball.low, ball.high),
            labels,
            aim,
            norm=ball.norm,
            steps=steps,
        )
        nearer = distance < closest
        best = torch.where(nearer[:, None], points, best)
        closest = torch.where(nearer, distance, closest)
    return best
