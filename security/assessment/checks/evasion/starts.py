"""Where attacks begin: points that differ in kind, all looked at before any is climbed.

One start on the ball's surface misses what lies near the row, or in a corner, or where
no slope leads. Looking costs a fraction of climbing, so that many points are looked at:

near     a few hundredths of the radius away, where slopes are the row's own
inside   spread evenly through the ball
corner   every one where they are few, random ones elsewhere
rows     towards the nearest known rows of other classes
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from security.assessment.checks.evasion.gradient import Ball
from security.assessment.checks.evasion.ledger import Ledger

__all__ = ["KINDS", "NEIGHBOURS", "Looked", "ball_of", "look", "offer"]

Places = NDArray[np.int64]
Evaluate = Callable[[Tensor], Tensor]

KINDS = ("near", "inside", "corner", "rows")
# What reports call all of it.
_NAME = "starts"
# Of the known rows of other classes.
NEIGHBOURS = 3
_NEAR = (0.02, 0.1, 0.3)
# Of a box with this many free columns every corner is looked at.
_MAX_FREE = 8
# Numbers in one batch of points: what keeps a batch in the processor's cache.
_BATCH = 1 << 17
# Sobol points are kept for what they can fill.
_MAX_SOBOL = 64
_MORE = 16


@dataclass(frozen=True, eq=False)
class Looked:
    """What looking around found.

    Attributes:
        points: by kind, the best point of each row ``(n, d)``.
        margins: by kind, their margins ``(n,)``; negative is broken.
    """

    points: Mapping[str, Tensor]
    margins: Mapping[str, Tensor]

    def broken(self, kind: str) -> NDArray[np.bool_]:
        """Rows whose best point of a kind has another class ``(n,)``."""
        return np.asarray(self.margins[kind] < 0)

    @property
    def best(self) -> Tensor:
        """The best point of each row ``(n, d)``, of any kind."""
        kinds = list(self.points)
        found = torch.stack([self.margins[kind] for kind in kinds]).argmin(dim=0)
        points = torch.stack([self.points[kind] for kind in kinds])
        return points[found, torch.arange(len(found))]


def ball_of(ledger: Ledger, rows: Places, radius: float, dtype: torch.dtype) -> Ball:
    """Where some rows of a ledger may go within a radius."""
    space = ledger.context.job.space
    limits = space.limits(ledger.start[rows])
    span = (space.high - space.low) / space.scale
    whole = float(np.sqrt((span**2).sum()) + 1.0)  # reaches everything
    reach = np.minimum(ledger.reach(rows, radius), whole)[:, None]
    low, high, centre, own = (
        torch.as_tensor(values, dtype=dtype)
        for values in (*map(space.to_z, limits), ledger.z(rows), reach)
    )
    return Ball.of(centre, (low, high), own, ledger.norm)


def offer(ledger: Ledger, rows: Places, looked: Looked, radius: float) -> None:
    """Offer what was looked at and seems broken; every row counts as tried."""
    tried = ledger.tried.get(_NAME, 0)
    for kind in KINDS:
        broken = looked.broken(kind)
        points = looked.points[kind].numpy()[broken].astype(np.float64)
        ledger.offer(_NAME, rows[broken], points, radius)
    ledger.tried[_NAME] = tried + len(rows)


def look(
    evaluate: Evaluate, ball: Ball, others: Tensor, *, count: int, seed: int
) -> Looked:
    """Look at points of every kind.

    Args:
        evaluate: margins ``(k, n)`` of points ``(k, n, d)``.
        ball: of each row.
        others: rows of other classes ``(k, n, d)``, the nearest first.
        count: points of a kind per row: more where there are few columns, of which a
            point says little; all corners where they are few.
        seed: of what is random.
    """
    generator = torch.Generator().manual_seed(seed)
    points, found = {}, {}
    for kind in KINDS:
        best = ball.centre
        value = torch.full_like(ball.centre[:, 0], float("inf"))
        for made in _made(kind, ball, others, count, generator):
            own = torch.nan_to_num(evaluate(made), nan=float("inf"))
            least, place = own.min(dim=0)
            better = least < value
            chosen = made[place, torch.arange(made.shape[1])]
            best = torch.where(better[:, None], chosen, best)
            value = torch.where(better, least, value)
        points[kind], found[kind] = best, value
    return Looked(points, found)


def _made(
    kind: str, ball: Ball, others: Tensor, count: int, generator: torch.Generator
) -> Iterator[Tensor]:
    """Points of one kind ``(part, n, d)``, in batches."""
    size = max(1, _BATCH // max(1, ball.centre.numel()))
    if kind == "rows":
        for rows in torch.split(others, size) if len(others) else ():
            whole = ball.project(rows)
            yield whole
            yield ball.centre + 0.5 * (whole - ball.centre)
        return
    for steps in torch.split(_offsets(kind, ball, count, generator), size):
        yield ball.project(ball.centre + _reach(ball) * steps[:, None])


def _reach(ball: Ball) -> Tensor:
    return torch.where(torch.isfinite(ball.radius), ball.radius, 1.0)


def _offsets(kind: str, ball: Ball, count: int, generator: torch.Generator) -> Tensor:
    """Steps ``(k, d)`` from any row, in radii."""
    width, dtype = ball.centre.shape[1], ball.centre.dtype
    free = torch.nonzero((ball.high > ball.low).any(dim=0))[:, 0]
    if kind == "corner":
        steps = _corners(len(free), count, generator)
        if ball.norm == "l2":
            steps = steps / max(1, len(free)) ** 0.5
    else:
        more = min(max(_MAX_SOBOL // max(1, len(free)), 1), _MORE)
        steps = 2 * _spread(more * count, len(free), generator) - 1
        if ball.norm == "l2":
            length = steps.norm(dim=1, keepdim=True).clamp_min(1e-12)
            steps = steps / length * torch.rand((len(steps), 1), generator=generator)
        if kind == "near":
            shares = torch.tensor(_NEAR).repeat(-(-len(steps) // len(_NEAR)))
            steps = steps * shares[: len(steps), None]
    made = torch.zeros((len(steps), width), dtype=dtype)
    made[:, free] = steps.to(dtype)
    return made


def _corners(free: int, count: int, generator: torch.Generator) -> Tensor:
    if free > _MAX_FREE:
        return 2.0 * torch.randint(0, 2, (count, free), generator=generator) - 1
    numbers = torch.arange(1 << free)[:, None]
    return 2.0 * ((numbers >> torch.arange(free)) & 1) - 1


def _spread(count: int, free: int, generator: torch.Generator) -> Tensor:
    """Points of the unit cube: evenly spread where they are few columns."""
    if not 0 < free <= _MAX_SOBOL:
        return torch.rand((count, free), generator=generator)
    seed = int(torch.randint(0, 1 << 31, (1,), generator=generator))
    engine = torch.quasirandom.SobolEngine(  # type: ignore[no-untyped-call]  # torch has no type for it
        free, scramble=True, seed=seed
    )
    return engine.draw(count)
