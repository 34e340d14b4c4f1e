"""The smallest patch of an image that sends everything to one class.

Wang et al., "Neural Cleanse" (2019): a mask and a pattern, the same for all images, by
gradient descent on the cross-entropy to the class plus the mask's size, whose weight
follows the success. All classes at once: they are more images of one batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from security.assessment.checks.descent import Adam

__all__ = ["Patch", "search_patches", "unusual"]

Floats = NDArray[np.float64]

_RATE = 0.1
_FIRST_COST, _STEP_COST = 0.03, 1.2
# Rows turned that raise the mask's cost; below the second, it falls.
_ENOUGH, _TOO_FEW = 0.95, 0.9
_EVERY = 5
# A median's share of the deviation of a normal distribution.
_MAD = 1.4826


@dataclass(frozen=True, eq=False)
class Patch:
    """What was found for one class.

    Attributes:
        label: the class.
        mask: ``(d,)``, 0 to 1: how much of each value is the pattern's.
        pattern: ``(d,)``, in attack coordinates.
        size: of the mask, in pixels.
    """

    label: int
    mask: Floats
    pattern: Floats
    size: float

    def on(self, z: Floats) -> Floats:
        """Rows ``(n, d)`` with the patch."""
        return np.asarray((1 - self.mask) * z + self.mask * self.pattern)


def search_patches(
    model: Callable[[Tensor], Tensor],
    z: Tensor,
    labels: list[int],
    *,
    shape: tuple[int, ...],
    free: NDArray[np.bool_],
    steps: int,
    seed: int,
) -> list[Patch]:
    """The smallest patches that were found, one per class.

    Args:
        model: attack coordinates to scores.
        z: rows ``(n, d)``.
        labels: the classes to reach.
        shape: channels, height, width.
        free: ``(d,)``, values that may change.
        steps: of gradient descent.
        seed: of the start.
    """
    state = _State(model, z, labels, shape, free=torch.as_tensor(free), seed=seed)
    optimizer = Adam(state.variables, rate=_RATE, betas=(0.5, 0.9))
    for number in range(steps):
        loss, success = state.loss()
        gradients = torch.autograd.grad(loss.sum(), state.variables)
        state.remember(success)
        optimizer.step(gradients)
        if number % _EVERY == _EVERY - 1:
            state.weigh()
    return state.patches(labels)


class _State:
    """Masks and patterns of all classes, and the best of each so far."""

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        z: Tensor,
        labels: list[int],
        shape: tuple[int, ...],
        *,
        free: Tensor,
        seed: int,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        count, (channels, height, width) = len(labels), shape
        self._model, self._z, self._channels = model, z, channels
        self._free = free.to(z.dtype)
        self._targets = torch.as_tensor(labels).repeat_interleave(len(z))
        pixels = height * width
        # Sigmoids: half a mask everywhere is where each class starts from.
        mask = torch.zeros(count, pixels, dtype=z.dtype)
        pattern = torch.randn(
            count, channels * pixels, generator=generator, dtype=z.dtype
        )
        self.variables = [mask.requires_grad_(True), pattern.requires_grad_(True)]
        self._cost = torch.full((count,), _FIRST_COST, dtype=z.dtype)
        self._recent: list[Tensor] = []
        self._size = torch.full((count,), float("inf"), dtype=z.dtype)
        self._best = [item.detach().clone() for item in self.variables]

    def _patch(self) -> tuple[Tensor, Tensor]:
        mask = torch.sigmoid(4 * self.variables[0])
        full = mask.repeat(1, self._channels) * self._free
        return full, torch.sigmoid(self.variables[1])

    def loss(self) -> tuple[Tensor, Tensor]:
        """Per class: the loss, and the share of the rows that are turned."""
        mask, pattern = self._patch()
        rows = (1 - mask)[:, None] * self._z[None] + (mask * pattern)[:, None]
        scores = self._model(rows.flatten(0, 1))
        turned = (scores.argmax(dim=1) == self._targets).to(self._z.dtype)
        hard = nn.functional.cross_entropy(scores, self._targets, reduction="none")
        count = len(self._cost)
        loss = hard.view(count, -1).mean(dim=1) + self._cost * self._sizes()
        return loss, turned.view(count, -1).mean(dim=1)

    def _sizes(self) -> Tensor:
        mask, _ = self._patch()
        return mask.sum(dim=1) / self._channels

    def remember(self, success: Tensor) -> None:
        """Keep the smallest masks that turn enough rows."""
        self._recent.append(success)
        size = self._sizes().detach()
        better = (success >= _ENOUGH) & (size < self._size)
        self._size = torch.where(better, size, self._size)
        for best, now in zip(self._best, self.variables, strict=True):
            best[better] = now.detach()[better]

    def weigh(self) -> None:
        """Raise the cost of masks that do, lower it where they do not."""
        success = torch.stack(self._recent).mean(dim=0)
        self._recent.clear()
        up = self._cost * _STEP_COST
        down = self._cost / _STEP_COST**1.5
        self._cost = torch.where(success >= _ENOUGH, up, self._cost)
        self._cost = torch.where(success < _TOO_FEW, down, self._cost)

    def patches(self, labels: list[int]) -> list[Patch]:
        """The best of each class, or what it ended with."""
        never = torch.isinf(self._size)
        for best, now in zip(self._best, self.variables, strict=True):
            best[never] = now.detach()[never]
        self.variables = self._best
        with torch.no_grad():
            masks, patterns = self._patch()
            sizes = self._sizes()
        return [
            Patch(
                label,
                masks[place].numpy().astype(np.float64),
                patterns[place].numpy().astype(np.float64),
                float(sizes[place]),
            )
            for place, label in enumerate(labels)
        ]


def unusual(sizes: Floats) -> Floats:
    """How far below the median each size is, in median absolute deviations."""
    middle = np.median(sizes)
    spread = _MAD * float(np.median(np.abs(sizes - middle)))
    return np.asarray((middle - sizes) / max(spread, 1e-9))
