"""Clipped per-unit gradients: the part of DP-SGD that bounds what one unit can move.

A unit is what the guarantee protects: a row, or a person with all of their rows. A
method gives the sum over a batch's units of their clipped gradients; how it gets there
is its own matter, as long as removing a unit changes the sum by at most the clipping
norm. `probe` checks that from outside, on units taken alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from security.errors import TrainingError

__all__ = [
    "Batch",
    "Clipped",
    "Clipping",
    "Curriculum",
    "GradientMethod",
    "Network",
    "Objective",
    "Prepare",
    "binary_cross_entropy",
    "by_unit",
    "cross_entropy",
    "finite_norms",
    "in_precision",
    "no_units",
    "probe",
    "single_rows",
    "without_dropout",
]

# Automatic clipping's stabiliser (Bu, Wang, Zha and Karypis 2023).
_AUTOMATIC = 0.01
_PROBED_UNITS = 4
# Of the clipping norm: what rounding may move of other units' gradients, and for each
# of them in a sum. A row at the kink of a ReLU may move more; not twice.
_ROUNDING, _ROUNDING_EACH = 0.05, 1e-6

# Inputs to logits: a module, or a module with other weights.
Network = Callable[[Tensor], Tensor]
# Examples to one loss each: (network, inputs, labels) -> (m,).
Objective = Callable[[Network, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Batch:
    """Examples, and whose they are.

    Attributes:
        inputs: shape ``(m, …)``.
        labels: ``(m,)``: classes, int64; or shares of a target's range, float32.
        units: int64 ``(m,)``, sorted, from 0 to ``count - 1``.
        count: how many units; 0 for an empty batch.
    """

    inputs: Tensor
    labels: Tensor
    units: Tensor
    count: int

    def to(self, device: torch.device) -> Batch:
        """The same batch, there."""
        if self.labels.device == device:
            return self
        return Batch(
            self.inputs.to(device),
            self.labels.to(device),
            self.units.to(device),
            self.count,
        )

    def take(self, chosen: Tensor) -> Batch:
        """The examples of the chosen units, a boolean for each."""
        rows = chosen[self.units]
        names, units = torch.unique_consecutive(self.units[rows], return_inverse=True)
        return Batch(self.inputs[rows], self.labels[rows], units, len(names))


# Changes a physical batch before gradients; must treat every unit by itself.
Prepare = Callable[[nn.Module, Batch], Batch]


class Curriculum(Protocol):
    """What an objective needs beside the network, and what changes while it learns.

    Nothing of it may depend on examples: it is public, and the same for all of them.
    """

    def network(self, body: nn.Module, shape: tuple[int, ...]) -> nn.Module:
        """What the objective is given: the body, or a network of its parameters.

        Args:
            body: that is trained.
            shape: of one of its inputs.
        """

    def begin(self, share: float) -> None:
        """A step begins; of all steps, this share is done with it."""


@dataclass(frozen=True)
class Clipping:
    """How a unit's gradient is bounded.

    Attributes:
        max_grad_norm: L2 norm that none exceeds afterwards.
        kind: "flat" cuts longer ones; "automatic" scales every one to about that norm
            (Bu, Wang, Zha and Karypis 2023).
    """

    max_grad_norm: float
    kind: str = "flat"

    def factors(self, norms: Tensor) -> Tensor:
        """What to multiply gradients of these norms with.

        >>> Clipping(2.0).factors(torch.tensor([1.0, 4.0]))
        tensor([1.0000, 0.5000])
        """
        if self.kind == "automatic":
            return self.max_grad_norm / (norms + _AUTOMATIC)
        return (self.max_grad_norm / norms.clamp_min(1e-30)).clamp(max=1.0)


@dataclass(frozen=True)
class Clipped:
    """What a method makes of a batch.

    Attributes:
        sums: over units, of clipped gradients; one per trainable parameter, in order.
        norms: of each unit's gradient after clipping, shape ``(count,)``.
        losses: of each unit, the mean over its examples, without gradient.
    """

    sums: list[Tensor] = field(repr=False)
    norms: Tensor = field(repr=False)
    losses: Tensor = field(repr=False)


class GradientMethod(Protocol):
    """A way to make clipped gradients of a network that it was given."""

    @property
    def name(self) -> str:
        """What the evidence calls it."""

    def clipped_sums(self, batch: Batch, clipping: Clipping) -> Clipped:
        """Clip the mean gradient of each unit's examples, then add them up.

        Raises:
            TrainingError: a gradient is not finite.
        """

    def close(self) -> None:
        """Take from the network whatever was attached to it."""


def cross_entropy(module: Network, inputs: Tensor, labels: Tensor) -> Tensor:
    """The usual loss of a classifier, one per example."""
    return nn.functional.cross_entropy(module(inputs), labels, reduction="none")


def binary_cross_entropy(module: Network, inputs: Tensor, labels: Tensor) -> Tensor:
    """The loss of a number's share of its range, one per example.

    By the logit its derivative is the prediction's share minus the truth's, from -1 to
    1 whatever the number: so the input bounds every gradient, as a classifier's.
    """
    logits = module(inputs).squeeze(1)
    return nn.functional.binary_cross_entropy_with_logits(
        logits, labels.to(logits), reduction="none"
    )


def in_precision(objective: Objective, precision: str) -> Objective:
    """The objective, with the network's products in "bfloat16" if that is asked for.

    The weights stay float32, and so does everything after the pass.
    """
    if precision == "float32":
        return objective

    @functools.wraps(objective)
    def mixed(network: Network, inputs: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast(inputs.device.type, dtype=torch.bfloat16):
            losses = objective(network, inputs, labels)
        return losses.float()

    return mixed


def single_rows(inputs: Tensor, labels: Tensor) -> Batch:
    """A batch in which every row is a unit of its own."""
    return Batch(inputs, labels, torch.arange(len(labels)), len(labels))


def probe(method: GradientMethod, batch: Batch, clipping: Clipping) -> float:
    """What removing a unit of the batch changes at most, as far as a few units show.

    It needs nothing that the method says about itself. The sum over one unit alone is
    that unit's clipped gradient; beside it, the sums over the batch and over the batch
    without these units must differ by just these gradients. If they differ by more,
    units move each other's gradients, and the clipping norm bounds nothing.

    Returns:
        The longest gradient of a unit alone; if units move each other's, more than the
        clipping norm.
    """
    every = torch.arange(batch.count, device=batch.units.device)
    near_the_ends = torch.minimum(every, every.flip(0))
    alone, moved = _removed(method, batch, clipping, near_the_ends)
    most = clipping.max_grad_norm
    allowed = most * (_ROUNDING + _ROUNDING_EACH * batch.count)
    if moved > allowed:  # rounding at a kink does it once, with these units alone
        moved = _removed(method, batch, clipping, -near_the_ends)[1]
    return alone if moved <= allowed else max(alone, most + moved)


def _removed(
    method: GradientMethod, batch: Batch, clipping: Clipping, order: Tensor
) -> tuple[float, float]:
    """The longest gradient of the first units in an order, each alone; and how much the
    sum over the batch misses, beside them, when they are gone.
    """
    chosen = torch.argsort(order, stable=True)[:_PROBED_UNITS]
    rest = torch.ones(batch.count, dtype=torch.bool, device=order.device)
    rest[chosen] = False
    missing = _flat_sum(method, batch, clipping)
    missing -= _flat_sum(method, batch.take(rest), clipping)
    longest = 0.0
    for unit in chosen:
        own = torch.zeros_like(rest)
        own[unit] = True
        alone = _flat_sum(method, batch.take(own), clipping)
        longest = max(longest, float(alone.norm()))
        missing -= alone
    return longest, float(missing.norm())


def _flat_sum(method: GradientMethod, batch: Batch, clipping: Clipping) -> Tensor:
    sums = method.clipped_sums(batch, clipping).sums
    return torch.cat([total.detach().double().flatten() for total in sums])


@contextmanager
def without_dropout(body: nn.Module) -> Iterator[None]:
    """Within it, what is random on purpose is not: two passes can be compared."""
    kind = nn.modules.dropout._DropoutNd  # noqa: SLF001  (their base)
    layers = [m for m in body.modules() if isinstance(m, kind) and m.training]
    for layer in layers:
        layer.eval()
    try:
        yield
    finally:
        for layer in layers:
            layer.train()


def by_unit(values: Tensor, batch: Batch) -> Tensor:
    """The mean over each unit's examples, shape ``(count, …)``."""
    if batch.count == len(batch.labels):
        return values  # every example is a unit of its own
    counts = torch.bincount(batch.units, minlength=batch.count)
    total = values.new_zeros((batch.count, *values.shape[1:]))
    total.index_add_(0, batch.units, values)
    return total / counts.reshape(-1, *[1] * (values.dim() - 1))


def finite_norms(norms: Tensor) -> Tensor:
    """The same norms.

    Raises:
        TrainingError: one is not finite: a factor made of it would not clip.
    """
    if not torch.isfinite(norms).all():
        raise TrainingError("a gradient is not finite; nothing was released")
    return norms


def no_units(parameters: Sequence[Tensor]) -> Clipped:
    """What an empty batch adds up to; not every layer can be asked with no rows."""
    none = torch.zeros(0, device=parameters[0].device)
    return Clipped([torch.zeros_like(p) for p in parameters], none, none)
