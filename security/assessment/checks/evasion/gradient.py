"""Auto-PGD (Croce and Hein 2020) within per-row boxes, L-infinity and L2.

Against the published algorithm: bounds and radii are per row and per column, so that
ranges, directions and immutable columns hold at every step; rows that are broken leave
the batch at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from security.assessment.checks.evasion.losses import Loss, broken

__all__ = ["Ball", "Model", "apgd", "single_step"]

_DECAY = 0.75
_FIRST, _SHORTEST, _SHORTER = 0.22, 0.06, 0.03

Model = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Ball:
    """Where each row may go.

    Attributes:
        centre: ``(n, d)``.
        low, high: ``(n, d)``; for L-infinity they are the ball's own, cut by the box.
        radius: ``(n, 1)``.
        norm: "linf" or "l2".
    """

    centre: Tensor
    low: Tensor
    high: Tensor
    radius: Tensor
    norm: str

    @classmethod
    def of(
        cls,
        centre: Tensor,
        box: tuple[Tensor, Tensor],
        radius: float | Tensor,
        norm: str,
    ) -> Ball:
        """Balls of one radius, or of each row's ``(n, 1)``, in boxes.

        A row outside its box may stay there.
        """
        low, high = box
        if norm == "linf":
            low = torch.maximum(low, centre - radius)
            high = torch.minimum(high, centre + radius)
        low, high = torch.minimum(low, centre), torch.maximum(high, centre)
        own = torch.ones_like(centre[:, :1]) * radius
        return cls(centre, low, high, own, norm)

    def take(self, chosen: Tensor) -> Ball:
        """The same for some rows."""
        return Ball(
            self.centre[chosen],
            self.low[chosen],
            self.high[chosen],
            self.radius[chosen],
            self.norm,
        )

    def project(self, points: Tensor) -> Tensor:
        """Into the ball, then into the box, which keeps it in the ball."""
        if self.norm == "l2":
            moved = points - self.centre
            length = moved.norm(dim=1, keepdim=True).clamp_min(1e-12)
            points = self.centre + moved * (self.radius / length).clamp_max(1.0)
        return torch.minimum(torch.maximum(points, self.low), self.high)

    def random(self, generator: torch.Generator) -> Tensor:
        """A random point of the surface, as the published attack starts."""
        shape, kind = self.centre.shape, self.centre.dtype
        if self.norm == "linf":
            step = 2 * torch.rand(shape, generator=generator, dtype=kind) - 1
            step = step / step.abs().amax(dim=1, keepdim=True).clamp_min(1e-12)
        else:
            step = torch.randn(shape, generator=generator, dtype=kind)
            step = step / step.norm(dim=1, keepdim=True).clamp_min(1e-12)
        reach = torch.where(torch.isfinite(self.radius), self.radius, 1.0)
        return self.project(self.centre + reach * step)

    def step(self, points: Tensor, gradient: Tensor, size: Tensor) -> Tensor:
        """One step of the gradient's direction."""
        if self.norm == "linf":
            direction = gradient.sign()
        else:
            # A column that cannot move has no part in the direction's length.
            gradient = torch.where(self.high > self.low, gradient, 0.0)
            length = gradient.norm(dim=1, keepdim=True)
            direction = gradient / length.clamp_min(1e-12)
        return self.project(points + size * direction)


def apgd(
    model: Model,
    ball: Ball,
    labels: Tensor,
    loss: Loss,
    *,
    steps: int,
    generator: torch.Generator,
    start: Tensor | None = None,
) -> Tensor:
    """Candidates ``(n, d)``: a broken point where one was found, the best elsewhere.

    Args:
        model: to scores.
        ball: of each row.
        labels: ``(n,)``, the classes to leave.
        loss: of scores, labels and the rows' places in the batch.
        steps: gradient steps.
        generator: of the random start.
        start: points to start from instead.
    """
    result = ball.centre.clone()
    place = torch.arange(len(labels))
    points = ball.random(generator) if start is None else ball.project(start)
    look = _look(model, points, labels, loss, place)
    state = _begin(points, ball, labels, place, look)
    period, counter = max(int(_FIRST * steps), 1), 0
    shortest, shorter = max(int(_SHORTEST * steps), 1), max(int(_SHORTER * steps), 1)
    for number in range(steps):
        if state.broken.any():
            result[state.place[state.broken]] = state.points[state.broken]
            state = state.keep(~state.broken)
        if not len(state.place):
            return result
        state.move(model, loss, first=number == 0)
        counter += 1
        if counter == period:
            state.shorten(period)
            counter, period = 0, max(period - shorter, shortest)
    result[state.place] = state.best
    result[state.place[state.broken]] = state.points[state.broken]
    return result


def single_step(model: Model, ball: Ball, labels: Tensor, loss: Loss) -> Tensor:
    """One step of the whole radius: what iterated attacks must not be weaker than."""
    place = torch.arange(len(labels))
    _, gradient, _ = _look(model, ball.centre, labels, loss, place)
    return ball.step(ball.centre, gradient, ball.radius)


@dataclass(eq=False)
class _State:
    """Rows that still stand, and where each is."""

    ball: Ball
    labels: Tensor
    place: Tensor
    points: Tensor
    before: Tensor
    gradient: Tensor
    value: Tensor
    best: Tensor
    best_gradient: Tensor
    best_value: Tensor
    size: Tensor
    rises: Tensor
    checked_value: Tensor
    reduced: Tensor
    broken: Tensor

    def keep(self, chosen: Tensor) -> _State:
        kept: dict[str, Any] = {
            name: value[chosen] if isinstance(value, Tensor) else value.take(chosen)
            for name, value in vars(self).items()
        }
        return _State(**kept)

    def move(self, model: Model, loss: Loss, *, first: bool) -> None:
        momentum = self.points - self.before
        self.before = self.points
        stepped = self.ball.step(self.points, self.gradient, self.size)
        share = 1.0 if first else _DECAY
        moved = share * (stepped - self.points) + (1 - share) * momentum
        self.points = self.ball.project(self.points + moved)
        previous = self.value
        self.value, self.gradient, self.broken = _look(
            model, self.points, self.labels, loss, self.place
        )
        self.rises += (self.value > previous).to(self.rises.dtype)
        better = self.value > self.best_value
        self.best = torch.where(better[:, None], self.points, self.best)
        self.best_gradient = torch.where(
            better[:, None], self.gradient, self.best_gradient
        )
        self.best_value = torch.where(better, self.value, self.best_value)

    def shorten(self, period: int) -> None:
        """Halve the step of rows that oscillate or stand still, and go back to best."""
        stuck = self.rises <= _DECAY * period
        still = ~self.reduced & (self.checked_value >= self.best_value)
        self.reduced = stuck | still
        self.checked_value = self.best_value
        self.rises = torch.zeros_like(self.rises)
        rows = self.reduced[:, None] & ~self.broken[:, None]
        self.size = torch.where(self.reduced[:, None], self.size / 2, self.size)
        self.points = torch.where(rows, self.best, self.points)
        self.gradient = torch.where(rows, self.best_gradient, self.gradient)


def _begin(
    points: Tensor,
    ball: Ball,
    labels: Tensor,
    place: Tensor,
    look: tuple[Tensor, Tensor, Tensor],
) -> _State:
    value, gradient, broken = look
    reach = torch.where(torch.isfinite(ball.radius), ball.radius, 1.0)
    return _State(
        ball=ball,
        labels=labels,
        place=place,
        points=points,
        before=points,
        gradient=gradient,
        value=value,
        best=points,
        best_gradient=gradient,
        best_value=value,
        size=2.0 * reach,
        rises=torch.zeros_like(value),
        checked_value=value,
        reduced=torch.ones_like(broken),
        broken=broken,
    )


def _look(
    model: Model, points: Tensor, labels: Tensor, loss: Loss, place: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, gradient, and whether the class has changed, per row."""
    points = points.detach().requires_grad_(True)
    scores = model(points)
    value = loss(scores, labels, place)
    (gradient,) = torch.autograd.grad(value.sum(), points)
    wrong = broken(model, points.detach(), scores.detach(), labels)
    return value.detach(), torch.nan_to_num(gradient), wrong
