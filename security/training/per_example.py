"""Opacus' hooks: every example's gradient is held, then clipped.

They take any layer that Opacus knows, by torch's own per-example gradients where it has
no rule, and are what bookkeeping is tested against.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from opacus import GradSampleModule
from torch import Tensor, nn

from security.training.gradients import (
    Batch,
    Clipped,
    Clipping,
    Objective,
    by_unit,
    finite_norms,
    no_units,
)

__all__ = ["HooksMethod", "clip_held"]


class HooksMethod:
    """See the module."""

    name = "hooks"

    def __init__(self, body: nn.Module, objective: Objective) -> None:
        self._module = GradSampleModule(body, loss_reduction="sum", strict=True)
        # Off but in here: an attack on the network, which adversarial training makes
        # between two batches, must leave no gradients behind.
        self._module.disable_hooks()
        self._objective = objective
        self._parameters: list[Any] = [p for p in body.parameters() if p.requires_grad]

    def clipped_sums(self, batch: Batch, clipping: Clipping) -> Clipped:
        """See `GradientMethod.clipped_sums`."""
        if not len(batch.labels):
            return no_units(self._parameters)
        with _hooks_on(self._module):
            losses = self._objective(self._module, batch.inputs, batch.labels)
            torch.autograd.backward(losses.sum())
        held = [by_unit(p.grad_sample, batch) for p in self._parameters]
        for parameter in self._parameters:
            parameter.grad_sample = parameter.grad = None
        return clip_held(held, by_unit(losses.detach(), batch), clipping)

    def close(self) -> None:
        """See `GradientMethod.close`."""
        self._module.to_standard_module()


def clip_held(held: list[Tensor], losses: Tensor, clipping: Clipping) -> Clipped:
    """Clip gradients of shape ``(count, …)``, one tensor per parameter."""
    norms = torch.stack([g.flatten(1).norm(dim=1) for g in held]).norm(dim=0)
    factors = clipping.factors(finite_norms(norms))
    sums = [torch.einsum("i,i...", factors, g) for g in held]
    return Clipped(sums, norms * factors, losses)


@contextmanager
def _hooks_on(module: Any) -> Iterator[None]:
    module.enable_hooks()
    try:
        with _quiet():
            yield
    finally:
        module.disable_hooks()


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        # Torch remarks that inputs need no gradient: they are data.
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        yield
