"""DP-SGD with Opacus: Poisson sampling, per-row clipping, Gaussian noise.

Opacus' parts are used one by one, not through PrivacyEngine.make_private: that rounds
the sampling rate to 1/len(loader) and divides by a batch size taken from the number of
private rows (opacus#819). Here both are what the configuration says.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from opacus import GradSampleModule
from opacus.accountants import PRVAccountant
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn

from security.errors import TrainingError
from security.training.accounting import Mechanism
from security.training.noise import Randomness, gaussian

__all__ = ["Outcome", "Recipe", "train_private"]

Step = Callable[[int], None]


@dataclass(frozen=True)
class Recipe:
    """How the mechanism is applied; none of it alters epsilon.

    Attributes:
        max_grad_norm: L2 norm that each row's gradient is clipped to.
        expected_batch: public divisor of the summed gradient.
        learning_rate, momentum: of gradient descent.
    """

    max_grad_norm: float
    expected_batch: int
    learning_rate: float
    momentum: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """What a training did, as counted while it ran.

    Attributes:
        mechanism: equal to the planned one, or `train_private` raised.
        empty_batches: steps that were noise alone.
    """

    mechanism: Mechanism
    empty_batches: int


class _NoisyDescent(DPOptimizer):
    """Opacus' optimizer around a plain one that it makes, keeps and guards.

    Calling the original optimizer's step by mistake trains without clipping or noise
    and raises nothing. So nobody else gets hold of it, and it refuses to step unless
    clipping and noise have just been applied.
    """

    def __init__(
        self,
        module: nn.Module,
        recipe: Recipe,
        noise_multiplier: float,
        randomness: Randomness,
    ) -> None:
        self._armed = False
        self._randomness = randomness
        plain = torch.optim.SGD(
            module.parameters(), lr=recipe.learning_rate, momentum=recipe.momentum
        )
        plain.register_step_pre_hook(self._guard)
        super().__init__(
            plain,
            noise_multiplier=noise_multiplier,
            max_grad_norm=recipe.max_grad_norm,
            expected_batch_size=recipe.expected_batch,
        )

    def add_noise(self) -> None:
        """Opacus' add_noise, with the mechanism's own randomness."""
        deviation = self.noise_multiplier * self.max_grad_norm
        for parameter in self.params:
            noise = gaussian(self._randomness, parameter.numel()) * deviation
            noise = torch.from_numpy(noise).to(parameter).view_as(parameter)
            parameter.grad = parameter.summed_grad.view_as(parameter) + noise
            # Opacus' own mark, against adding noise to one sum twice.
            parameter.summed_grad._processed = True  # noqa: SLF001

    def step(self, closure: Any = None) -> Any:
        """Clip, add noise, record the step with the accountant, then descend."""
        self._armed = True
        try:
            return super().step(closure)
        finally:
            self._armed = False

    def _guard(self, *_: object) -> None:
        if not self._armed:
            raise TrainingError("a step without clipping and noise was attempted")


def train_private(
    body: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    mechanism: Mechanism,
    recipe: Recipe,
    randomness: Randomness,
    on_step: Step = lambda _: None,
) -> Outcome:
    """Train a network in place with DP-SGD.

    Args:
        body: maps ``(n, d)`` to logits ``(n, classes)``; no batch normalisation, which
            mixes rows.
        inputs: float32 ``(n, d)``, in a range that is public.
        labels: int64 ``(n,)``.
        mechanism: what the guarantee was computed for.
        recipe: what does not alter it.
        randomness: of batches and noise.
        on_step: called with the number of finished steps.

    Raises:
        TrainingError: no rows, gradients that are not finite, or the accountant's
            record differs from the plan. The body is then not to be released.
    """
    if len(inputs) == 0 or len(inputs) != len(labels):
        raise TrainingError(f"{len(inputs)} rows and {len(labels)} labels")
    wrapped = GradSampleModule(body.train(), loss_reduction="sum", strict=True)
    optimizer = _NoisyDescent(wrapped, recipe, mechanism.noise_multiplier, randomness)
    accountant = PRVAccountant()
    optimizer.attach_step_hook(
        accountant.get_optimizer_hook_fn(sample_rate=mechanism.sample_rate)
    )
    empty = 0
    for step in range(mechanism.steps):
        chosen = _poisson(len(inputs), mechanism.sample_rate, randomness)
        empty += not len(chosen)
        _backward(wrapped, inputs[chosen], labels[chosen])
        optimizer.step()
        optimizer.zero_grad()
        on_step(step + 1)
    wrapped.to_standard_module()
    _check_history(accountant, mechanism)
    return Outcome(mechanism=mechanism, empty_batches=empty)


def _poisson(rows: int, rate: float, randomness: Randomness) -> Tensor:
    """Every row by its own coin: the batch's size is random, and may be 0."""
    return torch.from_numpy(randomness.uniform(rows) < rate).nonzero().flatten()


def _backward(module: GradSampleModule, inputs: Tensor, labels: Tensor) -> None:
    """Leave one gradient per row in ``grad_sample``, also where there are no rows."""
    with warnings.catch_warnings():
        # Torch remarks that inputs need no gradient: they are data.
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        logits = module(inputs)
        loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
        torch.autograd.backward(loss)
    for parameter in module.parameters():
        if not torch.isfinite(parameter.grad_sample).all():
            raise TrainingError("a gradient is not finite; nothing was released")


def _check_history(accountant: PRVAccountant, planned: Mechanism) -> None:
    wanted = (planned.noise_multiplier, planned.sample_rate, planned.steps)
    if accountant.history != [wanted]:
        raise TrainingError(
            f"the accountant recorded {accountant.history}, planned was {wanted}"
        )
