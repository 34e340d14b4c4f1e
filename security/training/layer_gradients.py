"""Gradients of one parameter for every unit: their norms, and their clipped sum.

What a rule of `bookkeeping` gives for a layer, and what such rules share.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["ROUNDING", "Held", "Part", "patches", "squares", "weight_shape"]

# Patches of so few are copied a row at once; of more, all channels of a pixel at once.
_FEW_CHANNELS = 4
# Of sums of float64: what 131,072 operations round by, more than a layer has.
ROUNDING = 2.0**-36


class Part(Protocol):
    """One parameter's gradients, of every unit."""

    def squares(self) -> Tensor:
        """Their squared norms, shape ``(count,)``."""

    def total(self, factors: Tensor) -> Tensor:
        """Their sum, each by its factor."""


def _as_it_is(total: Tensor) -> Tensor:
    return total


@dataclass(frozen=True, eq=False)
class Held:
    """Gradients that are held, shape ``(count, …)``.

    Attributes:
        shape: of their total, where the parameter has another.
        known: their squared norms, where somebody has them already.
    """

    gradients: Tensor
    shape: Callable[[Tensor], Tensor] = _as_it_is
    known: Tensor | None = None

    def squares(self) -> Tensor:
        """See `Part.squares`."""
        return squares(self.gradients) if self.known is None else self.known

    def total(self, factors: Tensor) -> Tensor:
        """See `Part.total`."""
        flat = factors @ self.gradients.flatten(1)
        return self.shape(flat.view(self.gradients.shape[1:]))


def patches(layer: Any, images: Tensor) -> Tensor:
    """What a convolution sees at each place: ``(m, groups, places, features)``.

    Channels are last, so that they are copied together: `functional.unfold`, which
    copies one number at a time, takes three times as long.
    """
    high, wide = layer.padding
    spread = functional.pad(images.permute(0, 2, 3, 1), (0, 0, wide, wide, high, high))
    for axis in (0, 1):
        reach = layer.dilation[axis] * (layer.kernel_size[axis] - 1) + 1
        spread = spread.unfold(1 + axis, reach, layer.stride[axis])
    # (m, height, width, channels, kernel height, kernel width)
    spread = spread[..., :: layer.dilation[0], :: layer.dilation[1]]
    groups = layer.groups, spread.shape[3] // layer.groups
    spread = spread.view(*spread.shape[:3], *groups, *spread.shape[4:])
    if spread.shape[4] < _FEW_CHANNELS:
        spread = spread.permute(0, 3, 5, 6, 4, 1, 2)
        return spread.flatten(5).flatten(2, 4).transpose(2, 3)
    return spread.permute(0, 3, 1, 2, 5, 6, 4).flatten(4).flatten(2, 3)


def weight_shape(layer: Any) -> Callable[[Tensor], Tensor]:
    """From ``(…, groups, wide, features)``, as `patches` has them, to its weight's."""
    wide, deep, *kernel = layer.weight.shape

    def shape(total: Tensor) -> Tensor:
        kept = total.shape[:-3]
        return total.reshape(*kept, wide, *kernel, deep).movedim(-1, -3)

    return shape


def squares(rows: Tensor) -> Tensor:
    """Squared norms of what each row holds; twice as fast as squaring first."""
    return torch.linalg.vector_norm(rows.flatten(1), dim=1).square()
