"""Steps with a gradient: what rounds or compares lets an attack through.

The value is the operator's own; the gradient is that of a smooth stand-in. An attack on
such a graph is checked on onnxruntime like any other, so a poor gradient can only make
it find less.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["compare", "soft", "stepped"]

# How steep a comparison's stand-in is, in units of what is compared.
_STEEPNESS = 4.0


def soft(value: Any, attributes: Mapping[str, Any]) -> bool:
    """Whether a step of this value shall have a gradient."""
    return bool(
        attributes.get("_soft")
        and isinstance(value, Tensor)
        and value.is_floating_point()
        and value.requires_grad
    )


def stepped(source: Tensor, result: Tensor) -> Tensor:
    """The result's value, exactly, with the source's gradient."""
    value: Tensor = _Through.apply(source, result.detach())  # type: ignore[no-untyped-call]  # torch has no type for it
    return value


def compare(
    function: Callable[[Tensor, Tensor], Tensor], sign: int
) -> Callable[[Sequence[Any], Mapping[str, Any]], Tensor]:
    """A comparison; where it carries a gradient, a float of 0 or 1.

    Args:
        function: of torch.
        sign: 1 where a larger first input makes it true, -1 where a smaller one does.
    """

    def run(inputs: Sequence[Any], attributes: Mapping[str, Any]) -> Tensor:
        left, right = inputs[0], inputs[1]
        result = function(left, right)
        if not (soft(left, attributes) or soft(right, attributes)):
            return result
        gap = sign * _STEEPNESS * (left - right)
        return stepped(torch.sigmoid(gap), result.to(gap.dtype))

    return run


class _Through(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, source: Tensor, result: Tensor) -> Tensor:
        del ctx, source
        return result.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        del ctx
        return gradients[0], None
