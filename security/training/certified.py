"""Training for certificates: beside an attack, the worst that bounds cannot rule out.

The loss of an example is ``(1 - w) · attacked + w · certified``: what an attack found,
as in `adversarial`, and the cross entropy of the least margins that interval bounds
prove within the radius (Gowal et al. 2018; with attacked examples in place of clean
ones, De Palma et al. 2024, "Expressive Losses for Verified Robustness via Convex
Combinations"). Bounds of a network that was never trained for them are loose, and their
gradient drowns the rest; so radius and weight grow from 0 over the first steps.

Together with DP-SGD it costs no budget, for the reasons that `adversarial` gives: the
loss of an example reads that example and the weights, and the schedule reads nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from security.errors import TrainingError
from security.training.adversarial import Adversary, apart, attack, box
from security.training.gradients import Batch, Network
from security.training.intervals import BoundedNetwork, views_of

__all__ = ["Certifying", "Schedule"]


@dataclass(frozen=True)
class Schedule:
    """How much bounds count.

    Attributes:
        weight: of the certified loss at the end, above 0, at most 1.
        ramp: share of the steps over which radius and weight grow from 0.
    """

    weight: float = 0.5
    ramp: float = 0.5

    def __post_init__(self) -> None:
        if not (0 < self.weight <= 1 and 0 <= self.ramp <= 1):
            raise TrainingError("weight must be above 0, at most 1; ramp from 0 to 1")

    def grown(self, share: float) -> float:
        """How far radius and weight have grown, when this share of steps is done.

        >>> Schedule(ramp=0.5).grown(0.25), Schedule(ramp=0.0).grown(0.01)
        (0.5, 1.0)
        """
        return min(1.0, share / self.ramp) if self.ramp else 1.0


class Certifying:
    """Training against an adversary and for bounds: the trainer's three seams."""

    def __init__(self, adversary: Adversary, schedule: Schedule) -> None:
        """Nothing has grown before the first `begin`: what counts is the end."""
        self._adversary, self._schedule = adversary, schedule
        self._grown = 1.0

    def network(self, body: nn.Module, shape: tuple[int, ...]) -> nn.Module:
        """See `gradients.Curriculum.network`.

        Raises:
            TrainingError: a layer has no bounds here.
        """
        return BoundedNetwork(body, shape)

    def begin(self, share: float) -> None:
        """See `gradients.Curriculum.begin`."""
        self._grown = self._schedule.grown(share)

    def prepare(self, network: nn.Module, batch: Batch) -> Batch:
        """See `gradients.Prepare`: points and boxes, as `BoundedNetwork` takes them."""
        radius = self._adversary.radius * self._grown
        adversary = replace(self._adversary, radius=radius)
        found = attack(network, batch, adversary)
        clean = [batch.inputs] if adversary.method == "trades" else []
        ends = box(batch.inputs, adversary)
        views = views_of([*clean, found], *ends, batch.labels)
        return Batch(views, batch.labels, batch.units, batch.count)

    def objective(self, network: Network, views: Tensor, labels: Tensor) -> Tensor:
        """See `gradients.Objective`."""
        answers = network(views)
        points, margins = answers[:, :-1], answers[:, -1]
        weight = self._schedule.weight * self._grown
        certified = functional.cross_entropy(-margins, labels, reduction="none")
        return torch.lerp(self._attacked(points, labels), certified, weight)

    def _attacked(self, points: Tensor, labels: Tensor) -> Tensor:
        loss = functional.cross_entropy(points[:, 0], labels, reduction="none")
        if self._adversary.method == "trades":
            loss = loss + self._adversary.beta * apart(points[:, 0], points[:, 1])
        return loss
