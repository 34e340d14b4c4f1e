"""Adversarial training: a remedy for a model that fails the robustness policy.

PGD training (Madry et al. 2018) replaces each example by the worst one that an attack
finds near it. TRADES (Zhang et al. 2019) keeps the example and adds beta times the
divergence between the answers on both, so accuracy is traded for robustness by one
number.

Together with DP-SGD it costs no budget. An attack on an example reads that example and
the weights, which are private already, and nothing else. So the gradient at what the
attack found is still a function of one unit's examples and of released weights; it is
clipped like any other, and removing the unit still changes the sum by at most the
clipping norm. The analysis of the Gaussian mechanism asks for no more. It would fail
with one perturbation shared between examples, or with an attack that looks at the
batch's statistics: neither is here. What it does cost is accuracy, because gradients at
hard examples are long and the clipping keeps less of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from security.errors import TrainingError
from security.training.gradients import (
    Batch,
    Network,
    Objective,
    Prepare,
    cross_entropy,
)

__all__ = ["METHODS", "Adversary", "adversarial", "apart", "attack", "box", "trades"]

METHODS = ("pgd", "trades")
_STEP = 2.5  # of the radius, over the number of steps: enough to reach every corner
_START = 1e-3  # spread of TRADES' start, where the divergence has no gradient


@dataclass(frozen=True)
class Adversary:
    """Who attacks the network while it learns.

    Attributes:
        method: "pgd" or "trades".
        radius: in the maximum norm, in the network's inputs: for numbers between public
            ranges, twice the share of the range; for images, over `std`.
        steps: of the attack.
        beta: of TRADES: what robustness weighs beside accuracy.
        low, high: what inputs may be at all.
        movable: 1 where an input may be changed, 0 where not, as categories; None for
            all. Broadcast over examples.
    """

    method: str
    radius: float
    steps: int = 7
    beta: float = 6.0
    low: float = -1.0
    high: float = 1.0
    movable: Tensor | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            known = ", ".join(METHODS)
            raise TrainingError(f"no method {self.method!r}; there are {known}")
        if not (self.radius > 0 and self.steps > 0 and self.beta > 0):
            raise TrainingError("radius, steps and beta must be positive")


def adversarial(
    adversary: Adversary, objective: Objective = cross_entropy
) -> tuple[Prepare, Objective]:
    """What `trainer.train_private` and `train_public` take to train against it.

    Args:
        adversary: who attacks.
        objective: the loss of an example; TRADES has its own, of classes.

    >>> prepare, objective = adversarial(Adversary("pgd", radius=0.2))
    >>> objective is cross_entropy
    True
    """
    if adversary.method == "pgd":
        return _replaced(adversary, objective), objective
    return _paired(adversary), trades(adversary.beta)


def attack(
    network: nn.Module,
    batch: Batch,
    adversary: Adversary,
    objective: Objective = cross_entropy,
) -> Tensor:
    """The worst inputs that projected gradient ascent finds within the radius.

    Each example is attacked by itself: its gradient is of its own loss, and its start
    is drawn by itself. The network's weights get no gradient.

    Returns:
        Inputs of the batch's shape, inside the radius and the range.
    """
    inputs = batch.inputs.detach()
    if not len(inputs):
        return inputs
    goal = _loss(objective, network, batch.labels)
    if adversary.method == "trades":
        goal = _divergence(network, inputs)
    if adversary.method == "trades":
        moved = inputs + _START * torch.randn_like(inputs)
    else:
        moved = inputs + adversary.radius * (2 * torch.rand_like(inputs) - 1)
    moved = _within(moved, inputs, adversary)
    step = _STEP * adversary.radius / adversary.steps
    for _ in range(adversary.steps):
        moved.requires_grad_()
        (gradient,) = torch.autograd.grad(goal(moved), moved)
        moved = _within(moved.detach() + step * gradient.sign(), inputs, adversary)
    return moved


def trades(beta: float) -> Objective:
    """TRADES' loss on pairs of rows: an example, then what the attack made of it.

    The mean over a pair is ``CE(clean) + beta · KL(clean ‖ attacked)``. Both rows
    belong to one unit, so the pair is clipped as one.
    """

    def objective(network: Network, inputs: Tensor, labels: Tensor) -> Tensor:
        logits = network(inputs)
        clean, moved = logits[0::2], logits[1::2]
        loss = functional.cross_entropy(clean, labels[0::2], reduction="none")
        both = [2 * loss, 2 * beta * apart(clean, moved)]
        return torch.stack(both, dim=1).flatten()

    return objective


def apart(clean: Tensor, moved: Tensor) -> Tensor:
    """``KL(clean ‖ moved)`` of logits, one per row."""
    return functional.kl_div(
        functional.log_softmax(moved, dim=1),
        functional.log_softmax(clean, dim=1),
        reduction="none",
        log_target=True,
    ).sum(1)


def box(inputs: Tensor, adversary: Adversary) -> tuple[Tensor, Tensor]:
    """The ends of where an adversary may move each input."""
    return (
        _within(inputs - adversary.radius, inputs, adversary),
        _within(inputs + adversary.radius, inputs, adversary),
    )


def _replaced(adversary: Adversary, objective: Objective) -> Prepare:
    def prepare(network: nn.Module, batch: Batch) -> Batch:
        found = attack(network, batch, adversary, objective)
        return Batch(found, batch.labels, batch.units, batch.count)

    return prepare


def _paired(adversary: Adversary) -> Prepare:
    def prepare(network: nn.Module, batch: Batch) -> Batch:
        found = attack(network, batch, adversary)
        pairs = torch.stack([batch.inputs, found], dim=1).flatten(0, 1)
        labels, units = (
            item.repeat_interleave(2) for item in (batch.labels, batch.units)
        )
        return Batch(pairs, labels, units, batch.count)

    return prepare


def _loss(
    objective: Objective, network: nn.Module, labels: Tensor
) -> Callable[[Tensor], Tensor]:
    return lambda moved: objective(network, moved, labels).sum()


def _divergence(network: nn.Module, inputs: Tensor) -> Callable[[Tensor], Tensor]:
    with torch.no_grad():
        clean = functional.softmax(network(inputs), dim=1)
    return lambda moved: functional.kl_div(
        functional.log_softmax(network(moved), dim=1), clean, reduction="sum"
    )


def _within(moved: Tensor, inputs: Tensor, adversary: Adversary) -> Tensor:
    change = (moved - inputs).clamp(-adversary.radius, adversary.radius)
    if adversary.movable is not None:
        change = change * adversary.movable
    # An input outside of the range, as a clipped one never is, may not be moved back.
    low = torch.minimum(inputs, torch.full_like(inputs, adversary.low))
    high = torch.maximum(inputs, torch.full_like(inputs, adversary.high))
    return torch.clamp(inputs + change, low, high).detach()
