"""The worst a sum over columns can do in a box: each column by itself, all at once.

Of a model whose score is a sum of one function per column, the worst point of an
L-infinity ball is found column by column, and no other attack finds a worse one but
where a step lies between two of the values that are tried. Where such functions have
steps, a gradient says little of what is behind the next one; so gradients alone would
flatter a boosted additive model.
"""

from __future__ import annotations

import torch
from torch import Tensor

from security.assessment.checks.evasion.gradient import Ball, Model
from security.assessment.checks.evasion.losses import margins

__all__ = ["by_columns", "is_stepped_sum"]

_VALUES = 65  # of each column, both ends among them
_AT_ONCE = 1 << 14  # rows
_TRIED = 64
_SLACK = 1e-4
_STEPS = frozenset(("Greater", "GreaterOrEqual", "Less", "LessOrEqual"))


def is_stepped_sum(model: Model, rows: Tensor, operators: frozenset[str]) -> bool:
    """Whether scores are sums over columns, some of which have steps.

    Two rows may trade some of their columns: of a sum, what one gains the other loses.

    Args:
        model: to scores ``(n, 2)``; of more classes there is no such test.
        rows: some real ones ``(n, d)``.
        operators: of the graph.
    """
    if not operators & _STEPS or len(rows) < 2 or rows.shape[1] < 2:
        return False
    random = torch.Generator().manual_seed(0)
    rows = rows[:_TRIED]
    others = rows[torch.randperm(len(rows), generator=random)]
    mask = torch.rand(rows.shape, generator=random) < 0.5
    given = (rows, others, torch.where(mask, rows, others))
    with torch.no_grad():
        scores = [model(item) for item in (*given, torch.where(mask, others, rows))]
    if scores[0].shape[1] != 2:
        return False
    first, second, traded, back = (item[:, 1] - item[:, 0] for item in scores)
    gap = (first + second - traded - back).abs().max()
    scale = torch.cat([first, second]).abs().max().clamp_min(1.0)
    return bool(gap <= _SLACK * scale)


def by_columns(model: Model, ball: Ball, labels: Tensor) -> Tensor:
    """Candidates ``(n, d)``: of each column the value that hurts most.

    Args:
        model: to scores ``(n, classes)``.
        ball: in L-infinity: where each row may go.
        labels: ``(n,)``, the classes to leave.
    """
    count = max(1, _AT_ONCE // _VALUES)
    parts = [
        _worst(model, ball.take(part), labels[part])
        for part in torch.split(torch.arange(len(labels)), count)
    ]
    return torch.cat(parts) if parts else ball.centre.clone()


def _worst(model: Model, ball: Ball, labels: Tensor) -> Tensor:
    result = ball.centre.clone()
    shares = torch.linspace(0, 1, _VALUES, dtype=result.dtype)[:, None]
    for column in range(result.shape[1]):
        low, high = ball.low[:, column], ball.high[:, column]
        if bool((low == high).all()):
            continue
        values = torch.cat([low + shares * (high - low), ball.centre[:, column][None]])
        tried = ball.centre.repeat(len(values), 1)
        tried[:, column] = values.flatten()
        with torch.no_grad():
            left = margins(model(tried), labels.repeat(len(values)))
        worst = left.reshape(len(values), -1).argmin(dim=0)
        result[:, column] = values.gather(0, worst[None])[0]
    return result
