"""Shadow models: the target's recipe, applied to many random halves of the rows.

All of them are trained at once: a layer's weights are one tensor with a model per
slice, and a step is a few batched matrix products. Perceptrons only. Where the recipe
is DP-SGD, so are the shadows: each example's gradient has a norm that follows from a
layer's inputs and output gradients (Goodfellow, "Efficient Per-Example Gradient
Computations", 2015), so that clipping needs no gradient per example.

Noise here only makes shadows resemble the target; it protects nobody, and comes from a
seeded generator.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from security.assessment.checks.descent import Adam

__all__ = ["ShadowRecipe", "Shadows", "random_halves", "train_shadows"]

_STABILISER = 0.01  # of automatic clipping, as in training


@dataclass(frozen=True)
class ShadowRecipe:
    """What of a training's configuration a shadow follows.

    Attributes:
        classes: how many logits; 1 where the place of a number in its range is learnt.
        hidden: widths of the hidden layers; none for a linear model.
        steps: of gradient descent.
        sampling_rate: chance of each row to be in a step's batch.
        learning_rate, momentum: of SGD.
        adam: Adam in place of SGD.
        ema: decay of the averaged weights that answer; 0 for the last ones.
        max_grad_norm: of clipping; infinity for none.
        automatic: every example's gradient is scaled to about the norm, not cut to it.
        noise_multiplier: standard deviation of the noise over the norm; 0 for none.
    """

    classes: int
    hidden: tuple[int, ...] = ()
    steps: int = 100
    sampling_rate: float = 1.0
    learning_rate: float = 1.0
    momentum: float = 0.0
    adam: bool = False
    ema: float = 0.0
    max_grad_norm: float = math.inf
    automatic: bool = False
    noise_multiplier: float = 0.0


@dataclass(frozen=True, eq=False)
class Shadows:
    """Trained shadows.

    Attributes:
        included: ``(models, n)``: which rows each was trained on.
        logits: ``(models, n, classes)``, of every row; of a number's place one each.
    """

    included: NDArray[np.bool_]
    logits: NDArray[np.float32]


def random_halves(
    models: int, rows: int, random: np.random.Generator
) -> NDArray[np.bool_]:
    """``(models, rows)``: every row in exactly half of the models, chosen at random.

    In pairs, a model and its complement: so few shadows still hold each row both ways.
    """
    half = random.random((math.ceil(models / 2), rows)) < 0.5
    return np.concatenate([half, ~half])[:models]


def train_shadows(
    inputs: NDArray[np.float32],
    labels: NDArray[Any],
    included: NDArray[np.bool_],
    recipe: ShadowRecipe,
    *,
    seed: int,
) -> Shadows:
    """Train a model per row of ``included``.

    Args:
        inputs: ``(n, d)``, preprocessed as the target's network gets them.
        labels: ``(n,)``: classes, or places of numbers from 0 to 1, float32.
        included: ``(models, n)``.
        recipe: of each.
        seed: of weights, batches and noise.
    """
    random = torch.Generator().manual_seed(seed)
    features, truth = torch.from_numpy(inputs), torch.from_numpy(labels)
    member = torch.from_numpy(included)
    network = _Network(inputs.shape[1], len(included), recipe, random)
    size = max(1.0, recipe.sampling_rate * float(member.sum(dim=1).float().mean()))
    for _ in range(recipe.steps):
        drawn = torch.rand(len(labels), generator=random) < recipe.sampling_rate
        # One draw for all models: each still sees a Poisson sample of its own rows.
        chosen = drawn.nonzero().flatten()
        if len(chosen):
            network.step(
                features[chosen], truth[chosen], member[:, chosen].float(), size
            )
    return Shadows(included, network.answer(features).numpy())


class _Network:
    """Perceptrons side by side; weights are ``(models, inputs, outputs)``."""

    def __init__(
        self, inputs: int, models: int, recipe: ShadowRecipe, random: torch.Generator
    ) -> None:
        widths = (inputs, *recipe.hidden, recipe.classes)
        self._recipe, self._random = recipe, random
        self._weights: list[Tensor] = []
        for last, (fan_in, fan_out) in enumerate(pairwise(widths), 2 - len(widths)):
            bound = 0.0 if last == 0 else 1 / math.sqrt(fan_in)
            for shape in ((models, fan_in, fan_out), (models, 1, fan_out)):
                drawn = torch.rand(shape, generator=random)
                self._weights.append((2 * drawn - 1) * bound)
        self._speed = [torch.zeros_like(item) for item in self._weights]
        self._adam = Adam(self._weights, rate=recipe.learning_rate)
        self._mean = [item.clone() for item in self._weights]

    def step(
        self, features: Tensor, labels: Tensor, member: Tensor, size: float
    ) -> None:
        """One step; ``member``, ``(models, batch)``, is 1 where a row is a model's."""
        activations = list(self._forward(features, self._weights))
        logits = activations.pop()
        error = self._error(logits, labels)
        errors = list(self._backward(error, activations))[::-1]
        share = member * self._clip(activations, errors)
        gradients = []
        for inputs, delta in zip(activations, errors, strict=True):
            weighted = delta * share[:, :, None]
            gradients.append(inputs.transpose(1, 2) @ weighted)
            gradients.append(weighted.sum(dim=1, keepdim=True))
        self._update([self._noisy(item) / size for item in gradients])

    def _error(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss's gradient by the logits: probabilities minus the one-hot truth."""
        if self._recipe.classes == 1:
            return torch.sigmoid(logits) - labels[None, :, None]
        error = torch.softmax(logits, dim=2)
        error[:, torch.arange(len(labels)), labels] -= 1.0
        return error

    def answer(self, features: Tensor) -> Tensor:
        """Logits ``(models, n, classes)``, by the averaged weights if there are any."""
        weights = self._mean if self._recipe.ema else self._weights
        *_, logits = self._forward(features, weights)
        return logits

    def _forward(self, features: Tensor, weights: list[Tensor]) -> Iterator[Tensor]:
        value = features.expand(len(weights[0]), *features.shape)
        for place in range(0, len(weights), 2):
            yield value
            value = torch.baddbmm(weights[place + 1], value, weights[place])
            if place < len(weights) - 2:
                value = torch.relu(value)
        yield value

    def _backward(self, error: Tensor, activations: list[Tensor]) -> Iterator[Tensor]:
        """Output gradients of each layer, the last first."""
        yield error
        for place in range(len(activations) - 1, 0, -1):
            error = error @ self._weights[2 * place].transpose(1, 2)
            error = error * (activations[place] > 0)
            yield error

    def _clip(self, activations: list[Tensor], errors: list[Tensor]) -> Tensor:
        """``(models, batch)``: what each example's gradient is multiplied by."""
        bound = self._recipe.max_grad_norm
        if math.isinf(bound):
            return torch.ones(errors[0].shape[:2])
        squares = torch.zeros(errors[0].shape[:2])
        for inputs, delta in zip(activations, errors, strict=True):
            # Weights and bias of a layer: |input|^2 |delta|^2 + |delta|^2.
            squares += (inputs.square().sum(2) + 1) * delta.square().sum(2)
        if self._recipe.automatic:
            return bound / (squares.sqrt() + _STABILISER)
        return (bound / squares.sqrt().clamp_min(1e-12)).clamp_max(1.0)

    def _noisy(self, gradient: Tensor) -> Tensor:
        multiplier = self._recipe.noise_multiplier
        if not multiplier:
            return gradient
        noise = torch.randn(gradient.shape, generator=self._random)
        return gradient + multiplier * self._recipe.max_grad_norm * noise

    def _update(self, gradients: list[Tensor]) -> None:
        recipe = self._recipe
        if recipe.adam:
            self._adam.step(gradients)
        else:
            for weight, speed, gradient in zip(self._weights, self._speed, gradients):
                speed.mul_(recipe.momentum).add_(gradient)
                weight.sub_(recipe.learning_rate * speed)
        if recipe.ema:
            for mean, weight in zip(self._mean, self._weights):
                mean.mul_(recipe.ema).add_(weight, alpha=1 - recipe.ema)
