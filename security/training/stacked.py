"""Many copies of one network side by side, trained by one call of the trainer.

For audits, which train the same mechanism thousands of times. A copy's weights are a
slice of one tensor; its rows carry its number as their last column. Sampling, clipping,
noise, optimizer and accounting are the trainer's own, which see one network with many
units: each copy's rows are units of their own, and move that copy alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from security.errors import TrainingError
from security.training.gradients import Batch

__all__ = [
    "StackedLinear",
    "StackedNetwork",
    "StackedOuter",
    "numbered",
    "stackable",
    "stacked_rule",
]

_ELEMENTWISE = (nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.ELU, nn.LeakyReLU, nn.SiLU)


@dataclass(frozen=True, eq=False)
class _Places:
    """Where each row stands in a block of ``(copies, most rows of one, …)``.

    Attributes:
        copies: how many.
        owner: ``(m,)``, ascending: whose each row is.
        slot: ``(m,)``, its number among its copy's rows.
        most: rows of the copy that has most.
    """

    copies: int
    owner: Tensor
    slot: Tensor
    most: int

    @classmethod
    def of(cls, owner: Tensor, copies: int) -> _Places:
        counts = torch.bincount(owner, minlength=copies)
        before = torch.cumsum(counts, 0) - counts
        slot = torch.arange(len(owner)) - before[owner]
        return cls(copies, owner, slot, int(counts.max()) if len(owner) else 0)

    def block(self, rows: Tensor) -> Tensor:
        """Rows by copy; what no row stands in is 0."""
        result = rows.new_zeros(self.copies, self.most, rows.shape[1])
        return result.index_put((self.owner, self.slot), rows)

    def rows(self, block: Tensor) -> Tensor:
        return block[self.owner, self.slot]


class StackedLinear(nn.Module):
    """A linear layer of each copy: weights ``(copies, out, in)``."""

    def __init__(self, layer: nn.Linear, copies: int) -> None:
        """Copy a layer's weights.

        Raises:
            TrainingError: it has no bias, which nothing here leaves out.
        """
        super().__init__()
        if layer.bias is None:
            raise TrainingError("a linear layer without bias cannot be stacked")
        self.weight, self.bias = (
            nn.Parameter(value.detach()[None].repeat(copies, *[1] * value.dim()))
            for value in (layer.weight, layer.bias)
        )

    def forward(self, rows: Tensor, places: _Places) -> Tensor:
        """Rows ``(m, in)`` to ``(m, out)``, each by its copy's weights."""
        block = places.block(rows)
        made = torch.baddbmm(self.bias[:, None], block, self.weight.transpose(1, 2))
        return places.rows(made)


class StackedNetwork(nn.Module):
    """Copies of a perceptron; takes ``(m, d + 1)`` as `numbered` makes it."""

    def __init__(self, body: nn.Module, copies: int) -> None:
        """Copy a network, weights and all.

        Raises:
            TrainingError: it is not made of linear and elementwise layers.
        """
        super().__init__()
        if not stackable(body):
            raise TrainingError("only perceptrons can be trained side by side")
        self.copies = copies
        self.layers = nn.ModuleList(
            StackedLinear(layer, copies) if isinstance(layer, nn.Linear) else layer
            for layer in body.children()
            if not isinstance(layer, nn.Flatten)
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits ``(m, classes)``."""
        places = _Places.of(_owners(inputs), self.copies)
        value = inputs[:, :-1]
        for layer in self.layers:
            stacked = isinstance(layer, StackedLinear)
            value = layer(value, places) if stacked else layer(value)
        return value


@dataclass(frozen=True, eq=False)
class StackedOuter:
    """Gradients of a stacked layer's weights: ``out[i]`` times ``into[i]`` each.

    Attributes:
        out, into: ``(m, out)`` and ``(m, in)``; None for ``into`` is the bias.
        places: of the rows.
    """

    out: Tensor
    into: Tensor | None
    places: _Places

    def squares(self) -> Tensor:
        """Their squared norms, shape ``(m,)``."""
        own = self.out.square().sum(1)
        return own if self.into is None else own * self.into.square().sum(1)

    def total(self, factors: Tensor) -> Tensor:
        """Each copy's own sum, each row by its factor."""
        block = self.places.block(self.out * factors[:, None])
        if self.into is None:
            return block.sum(1)
        return block.transpose(1, 2) @ self.places.block(self.into)


def stacked_rule(
    layer: Any, into: Tensor, out: Tensor, batch: Batch
) -> Iterator[tuple[Any, StackedOuter]]:
    """What `bookkeeping` needs of a stacked layer.

    Raises:
        TrainingError: a unit has several rows.
    """
    if batch.count != len(into):
        raise TrainingError("copies side by side take one row per unit")
    places = _Places.of(_owners(batch.inputs), len(layer.weight))
    yield layer.weight, StackedOuter(out, into, places)
    yield layer.bias, StackedOuter(out, None, places)


def stackable(body: nn.Module) -> bool:
    """Whether a network is linear and elementwise layers, one after another.

    >>> stackable(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)))
    True
    >>> stackable(nn.Sequential(nn.Linear(4, 2), nn.GroupNorm(1, 2)))
    False
    """
    return type(body) is nn.Sequential and all(
        (type(layer) is nn.Linear and layer.bias is not None)
        or type(layer) is nn.Flatten
        or isinstance(layer, _ELEMENTWISE)
        for layer in body
    )


def numbered(rows: Tensor, copy: int) -> Tensor:
    """A copy's rows, flat, with its number as their last column."""
    flat = rows.flatten(1)
    return torch.cat([flat, flat.new_full((len(flat), 1), float(copy))], dim=1)


def _owners(inputs: Tensor) -> Tensor:
    return inputs[:, -1].long()
