"""Ways to clip that hold every example's gradient, or pass backwards twice.

Opacus' hooks take any layer that Opacus knows, and are what the other methods are
tested against. Which method is used when: `gradient_methods.choose`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from opacus import GradSampleModule
from opacus.grad_sample import GradSampleModuleFastGradientClipping
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from security.errors import TrainingError
from security.training.gradients import (
    Batch,
    Clipped,
    Clipping,
    Objective,
    by_unit,
    finite_norms,
    no_units,
)

__all__ = ["GhostMethod", "HooksMethod", "VmapMethod", "clip_held"]

# Examples that one vectorised pass holds; more only spill the cache.
_VMAP_CHUNK = 512


class HooksMethod:
    """Opacus' hooks: every example's gradient is held, then clipped."""

    name = "hooks"

    def __init__(
        self, body: nn.Module, objective: Objective, *, functorch: bool = False
    ) -> None:
        self._module = GradSampleModule(
            body, loss_reduction="sum", strict=True, force_functorch=functorch
        )
        # Off but in here: an attack on the network, which adversarial training makes
        # between two batches, must leave no gradients behind.
        self._module.disable_hooks()
        self._objective = objective
        self._parameters: list[Any] = [p for p in body.parameters() if p.requires_grad]
        if functorch:
            self.name = "functorch"

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


class VmapMethod:
    """Torch's own vectorised gradients: one function per example, run for many."""

    name = "vmap"

    def __init__(self, body: nn.Module, objective: Objective) -> None:
        if getattr(objective, "joins_examples", False):
            raise TrainingError("vmap sees one example at a time: take 'hooks'")
        self._body, self._objective = body, objective
        self._gradients = vmap(
            grad_and_value(self._loss),
            in_dims=(None, 0, 0),
            randomness="different",
            chunk_size=_VMAP_CHUNK,
        )

    def clipped_sums(self, batch: Batch, clipping: Clipping) -> Clipped:
        """See `GradientMethod.clipped_sums`."""
        named = self._body.named_parameters()
        values = {name: p.detach() for name, p in named if p.requires_grad}
        if not len(batch.labels):
            return no_units(list(values.values()))
        gradients, losses = self._gradients(values, batch.inputs, batch.labels)
        held = [by_unit(gradients[name].detach(), batch) for name in values]
        return clip_held(held, by_unit(losses.detach(), batch), clipping)

    def close(self) -> None:
        """Nothing was attached."""

    def _loss(self, values: dict[str, Tensor], row: Tensor, label: Tensor) -> Tensor:
        def network(inputs: Tensor) -> Tensor:
            result: Tensor = functional_call(self._body, values, (inputs,))
            return result

        return self._objective(network, row[None], label[None])[0]


class GhostMethod:
    """Opacus' ghost clipping: norms from a first pass, the clipped sum from a second.

    It holds no example's gradient, so it is the one for what does not fit in memory.
    """

    name = "ghost"

    def __init__(self, body: nn.Module, objective: Objective) -> None:
        # The norm given here is not used: `Clipping` has the factors.
        self._module = GradSampleModuleFastGradientClipping(
            body, loss_reduction="sum", strict=True, max_grad_norm=1.0
        )
        self._module.disable_hooks()
        self._objective = objective
        self._parameters = [p for p in body.parameters() if p.requires_grad]

    def clipped_sums(self, batch: Batch, clipping: Clipping) -> Clipped:
        """See `GradientMethod.clipped_sums`."""
        if batch.count != len(batch.labels):
            raise TrainingError("ghost clipping takes one example per unit: take hooks")
        if not batch.count:
            return no_units(self._parameters)
        with _hooks_on(self._module):
            losses = self._objective(self._module, batch.inputs, batch.labels)
            torch.autograd.backward(losses.sum(), retain_graph=True)
            norms = finite_norms(self._module.get_norm_sample().detach())
        self._clear()
        factors = clipping.factors(norms)
        with _quiet():
            torch.autograd.backward((losses * factors).sum())
        sums = [
            p.grad if p.grad is not None else torch.zeros_like(p)
            for p in self._parameters
        ]
        self._clear()
        return Clipped(sums, norms * factors, losses.detach())

    def close(self) -> None:
        """See `GradientMethod.close`."""
        self._module.to_standard_module()

    def _clear(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None


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
