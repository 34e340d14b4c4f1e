"""Fast adaptive boundary attack (Croce and Hein 2020), towards chosen classes.

Finds small changes, not any change within a radius, so one run serves a whole curve.
Each step goes to the boundary that the gradient predicts, inside the row's box, biased
towards where the row began.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from security.assessment.checks.evasion.losses import broken

__all__ = ["fab", "to_plane"]

_ALPHA_MAX, _OVERSHOOT, _BACK = 0.1, 1.05, 0.9


def fab(
    model: Callable[[Tensor], Tensor],
    centre: Tensor,
    box: tuple[Tensor, Tensor],
    labels: Tensor,
    targets: Tensor,
    *,
    norm: str,
    steps: int,
) -> tuple[Tensor, Tensor]:
    """The closest broken points ``(n, d)`` and their distances, infinite for none.

    Args:
        model: to scores.
        centre: rows, in their boxes.
        box: lowest and highest ``(n, d)``.
        labels: the classes to leave.
        targets: the class each row is led to.
        norm: "linf" or "l2".
        steps: per row.
    """
    low, high = box
    points = centre.clone()
    best, closest = centre.clone(), torch.full_like(centre[:, 0], float("inf"))
    for _ in range(steps):
        gap, normal = _plane(model, points, labels, targets)
        # The plane {x: gap + normal * (x - points) = 0}; from the point and the centre.
        offset = ((centre - points) * normal).sum(dim=1)
        first = to_plane(points, -gap, normal, box, norm)
        second = to_plane(centre, -(gap + offset), normal, box, norm)
        share = _share(first, second, norm)
        ahead = points + _OVERSHOOT * first
        back = centre + _OVERSHOOT * second
        points = (1 - share) * ahead + share * back
        points = torch.minimum(torch.maximum(points, low), high)
        with torch.no_grad():
            wrong = broken(model, points, model(points), labels)
        distance = _length(points - centre, norm)
        better = wrong & (distance < closest)
        best = torch.where(better[:, None], points, best)
        closest = torch.where(better, distance, closest)
        returned = centre + _BACK * (points - centre)
        points = torch.where(wrong[:, None], returned, points)
    return best, closest


def to_plane(
    points: Tensor,
    wanted: Tensor,
    normal: Tensor,
    box: tuple[Tensor, Tensor],
    norm: str,
) -> Tensor:
    """The smallest step inside the box that changes ``normal * x`` by ``wanted``.

    Where the box ends first, the step that comes closest. Each coordinate moves in the
    direction that helps, as far as its room allows: how far is found by filling rooms
    in the order in which they are used up.

    Args:
        points: ``(n, d)``, in the box.
        wanted: ``(n,)``.
        normal: ``(n, d)``.
        box: lowest and highest.
        norm: "linf" or "l2".
    """
    low, high = box
    sign = torch.where(wanted < 0, -1.0, 1.0).to(points.dtype)[:, None] * normal.sign()
    room = torch.where(sign > 0, high - points, points - low).clamp_min(0.0)
    slope = normal.abs()
    if norm == "linf":
        weight, cap = slope, room
    else:
        weight, cap = slope**2, room / slope.clamp_min(1e-30)
    weight = torch.where(room > 0, weight, 0.0)
    level = _fill(weight, cap, wanted.abs())[:, None]
    step = torch.minimum(level if norm == "linf" else level * slope, room)
    return torch.where(weight > 0, sign * step, 0.0)


def _fill(weight: Tensor, cap: Tensor, amount: Tensor) -> Tensor:
    """The level t with ``sum(weight * min(t, cap)) = amount``, or the highest cap."""
    cap = torch.where(weight > 0, cap, 0.0)
    order = torch.argsort(cap, dim=1)
    caps, weights = cap.gather(1, order), weight.gather(1, order)
    filled = torch.cumsum(weights * caps, dim=1)
    rest = weights.sum(dim=1, keepdim=True) - torch.cumsum(weights, dim=1)
    total = filled + caps * rest.clamp_min(0.0)
    enough = total >= amount[:, None]
    index = torch.where(enough.any(dim=1), enough.to(torch.int8).argmax(dim=1), -1)
    place = index.clamp_min(0)[:, None]
    before = (filled - weights * caps).gather(1, place)[:, 0]
    open_weight = (rest + weights).gather(1, place)[:, 0]
    level = (amount - before) / open_weight.clamp_min(1e-30)
    return torch.where(index < 0, caps[:, -1], level)


def _share(first: Tensor, second: Tensor, norm: str) -> Tensor:
    """How much of the step starts at the centre."""
    one, two = _length(first, norm), _length(second, norm)
    total = (one + two).clamp_min(1e-12)
    return (one / total).clamp(0.0, _ALPHA_MAX)[:, None]


def _length(moved: Tensor, norm: str) -> Tensor:
    if norm == "linf":
        return moved.abs().amax(dim=1)
    return moved.norm(dim=1)


def _plane(
    model: Callable[[Tensor], Tensor], points: Tensor, labels: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor]:
    """The target's score above the true one's, and its gradient."""
    points = points.detach().requires_grad_(True)
    scores = model(points)
    own = scores.gather(1, labels[:, None])[:, 0]
    gap = scores.gather(1, targets[:, None])[:, 0] - own
    (normal,) = torch.autograd.grad(gap.sum(), points)
    return gap.detach(), torch.nan_to_num(normal)
