"""Adam (Kingma and Ba 2015), as torch.optim computes it, without what it loads.

Making any of torch's optimizers imports its compiler: two and a half seconds, more than
a small model's attacks take. The arithmetic is the same, operation by operation: so are
the figures.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Adam"]

_STABILISER = 1e-8


class Adam:
    """Moves variables down their gradients.

    >>> variable = torch.tensor([1.0])
    >>> Adam([variable], rate=0.1).step([torch.tensor([5.0])])
    >>> variable
    tensor([0.9000])
    """

    def __init__(
        self,
        variables: Sequence[Tensor],
        *,
        rate: float,
        betas: tuple[float, float] = (0.9, 0.999),
    ) -> None:
        """Begin.

        Args:
            variables: changed in place.
            rate: how far a step goes at most, about.
            betas: what is kept of the means of gradients and of their squares.
        """
        self._variables, self._rate, self._betas = list(variables), rate, betas
        self._means = [torch.zeros_like(item) for item in variables]
        self._squares = [torch.zeros_like(item) for item in variables]
        self._steps = 0

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor]) -> None:
        """One step, by a gradient of each variable."""
        self._steps += 1
        first, second = self._betas
        size = self._rate / (1 - first**self._steps)
        scale = (1 - second**self._steps) ** 0.5
        for variable, mean, square, gradient in zip(
            self._variables, self._means, self._squares, gradients, strict=True
        ):
            mean.lerp_(gradient, 1 - first)
            square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
            spread = square.sqrt().div_(scale).add_(_STABILISER)
            variable.addcdiv_(mean, spread, value=-size)
