"""Trainings with and without a planted unit, watched: what an audit of epsilon needs.

DP-SGD's guarantee holds against whoever sees every noisy gradient and plants a unit
of any gradient. So does this: a canary's loss is linear in the logits, so that its
gradient neither fades nor turns, and its share of each noisy gradient is added up as
the likelihood ratio of the two worlds. Nothing is imitated: rows go through the
trainer's own sampler, gradient method, clipping, noise and optimizer; what is watched
is what the optimizer is about to apply.

The direction in which all logits grow is at right angles to every gradient of a cross
entropy, whose parts add up to 0 over the classes. A canary there drowns in nothing but
noise. A network that predicts a number has one logit and no such direction: rows beside
the canary pull back what it moves, so that there should be few of them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from security.errors import TrainingError
from security.training.accounting import Mechanism
from security.training.bookkeeping import BookkeepingMethod, supports
from security.training.examples import Examples
from security.training.gradients import (
    Batch,
    Clipped,
    Clipping,
    Network,
    Objective,
    cross_entropy,
    single_rows,
)
from security.training.loop import Recipe
from security.training.noise import SeededRandomness
from security.training.stacked import StackedNetwork, numbered, stackable
from security.training.trainer import train_private

__all__ = ["LENGTHS", "CanaryTrainings", "Watched"]

# Of a canary's gradient before clipping, in clipping norms. The short one fills what
# the guarantee allows; the long one stands out where nothing is clipped.
LENGTHS = {"gradient": 2.0, "huge": 100.0}
_ONE_RUN_CANARIES = 400
_ONE_RUN_SCALE = 100.0

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Watched:
    """What was seen.

    Attributes:
        scores: ``(n,)``, higher where a canary looks planted.
        planted: ``(n,)``, whether it was.
    """

    scores: Floats
    planted: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class CanaryTrainings:
    """A mechanism to audit: as configured, on a few rows. It can be pickled.

    Attributes:
        body: the network, untrained.
        examples: that are trained on beside the canaries: what is seen tells of them,
            so they are nobody's.
        mechanism, recipe: as trained.
        method: that makes the gradients.
        objective: the loss of ordinary rows.
    """

    body: nn.Module = field(repr=False)
    examples: Examples = field(repr=False)
    mechanism: Mechanism
    recipe: Recipe
    method: str = "auto"
    objective: Objective = cross_entropy

    @property
    def side_by_side(self) -> bool:
        """Whether many trainings run at once."""
        plain = self.method in ("auto", "bookkeeping")
        return stackable(self.body) and plain

    @property
    def numbers(self) -> int:
        """Numbers of noise in one training: what the audit's time depends on."""
        trainable = (p.numel() for p in self.body.parameters() if p.requires_grad)
        return sum(trainable) * self.mechanism.steps

    def several(self, kind: str, trainings: int, seed: int) -> Watched:
        """Train so often, every second time with a canary.

        Args:
            kind: of `LENGTHS`.
            trainings: how many.
            seed: of batches and noise.

        Raises:
            TrainingError: as of the trainer.
        """
        planted = np.arange(trainings) % 2 == 1
        canary = self._canary(LENGTHS[kind])
        if self.side_by_side:
            return Watched(self._stacked(planted, canary, seed), planted)
        seeds = np.random.SeedSequence(seed).generate_state(trainings)
        scores = [
            self._single(bool(has), canary, int(own))
            for has, own in zip(planted, seeds)
        ]
        return Watched(np.array(scores), planted)

    def once(self, seed: int) -> Watched:
        """One training with many canaries, each planted by its own coin."""
        random = np.random.default_rng(seed)
        body = copy.deepcopy(self.body)
        canaries = self._many(random)
        planted = random.random(len(canaries.inputs)) < 0.5
        rows, labels = self._beside()
        chosen = torch.from_numpy(planted)
        examples = Examples(
            torch.cat([rows, canaries.inputs[chosen]]),
            torch.cat([labels, canaries.labels[chosen]]),
        )
        objective = _planting(canaries, self.objective)
        watch = _Products(body, canaries)
        self._train(body, examples, objective, watch, seed)
        return Watched(watch.scores, planted)

    def _canary(self, length: float) -> _Canaries:
        """One canary, in the direction of all logits, of some clipping norms."""
        classes = self._classes()
        flat = _Canaries(
            self.examples.inputs[:1].clone(),
            torch.full((1, classes), 1 / math.sqrt(classes)),
            torch.ones(1),
        )
        return self._scaled(self.body, flat, length)

    def _many(self, random: np.random.Generator) -> _Canaries:
        """Canaries at right angles to each other in a linear network."""
        shape = self.examples.inputs.shape[1:]
        width, classes = math.prod(shape), self._classes()
        most = _ONE_RUN_CANARIES if supports(self.body) else _ONE_RUN_CANARIES // 10
        count = min(width * classes, most)
        basis, _ = np.linalg.qr(random.normal(size=(width, min(width, count))))
        pairs = [
            (c, j) for j in range(basis.shape[1]) for c in range(classes)
        ][:count]  # fmt: skip
        rows = np.stack([basis[:, j] for _, j in pairs]) * _ONE_RUN_SCALE
        inputs = torch.from_numpy(rows.astype(np.float32)).reshape(-1, *shape)
        directions = torch.eye(classes)[[c for c, _ in pairs]]
        bare = _Canaries(inputs, directions, torch.ones(len(pairs)))
        return self._scaled(self.body, bare, LENGTHS["gradient"])

    def _scaled(self, body: nn.Module, bare: _Canaries, length: float) -> _Canaries:
        """The same, with gradients of a length, in clipping norms, before clipping.

        Raises:
            TrainingError: a canary moves nothing.
        """
        norms = _raw_norms(body, bare)
        if not bool((norms > 0).all()):
            raise TrainingError("a canary has no gradient in this network")
        return replace(bare, scales=length * self.recipe.max_grad_norm / norms)

    def _classes(self) -> int:
        with torch.no_grad():
            return int(self.body(self.examples.inputs[:1]).shape[1])

    def _beside(self) -> tuple[Tensor, Tensor]:
        return self.examples.inputs, self.examples.labels

    def _stacked(
        self, planted: NDArray[np.bool_], canary: _Canaries, seed: int
    ) -> Floats:
        body = StackedNetwork(self.body, len(planted))
        rows, labels = self._beside()
        inputs, truth = [], []
        for place, has in enumerate(planted):
            own = torch.cat([rows, canary.inputs]) if has else rows
            inputs.append(numbered(own, place))
            truth.append(torch.cat([labels, canary.labels]) if has else labels)
        every = [numbered(canary.inputs, place) for place in range(len(planted))]
        objective = _planting(canary, self.objective)
        watch = _Sums(
            self,
            body,
            (torch.cat(every), canary.labels.repeat(len(planted))),
            objective,
            copies=len(planted),
        )
        examples = Examples(torch.cat(inputs), torch.cat(truth))
        self._train(body, examples, objective, watch, seed)
        return watch.scores

    def _single(self, planted: bool, canary: _Canaries, seed: int) -> float:
        body = copy.deepcopy(self.body)
        rows, labels = self._beside()
        if planted:
            rows = torch.cat([rows, canary.inputs])
            labels = torch.cat([labels, canary.labels])
        objective = _planting(canary, self.objective)
        pair = canary.inputs, canary.labels
        watch = _Sums(self, body, pair, objective, copies=1)
        self._train(body, Examples(rows, labels), objective, watch, seed)
        return float(watch.scores[0])

    def _train(
        self,
        body: nn.Module,
        examples: Examples,
        objective: Objective,
        watch: Callable[[list[Tensor]], None],
        seed: int,
    ) -> None:
        with _watching(body, watch):
            train_private(
                body,
                examples,
                mechanism=self.mechanism,
                recipe=self.recipe,
                randomness=SeededRandomness(seed),
                method=self.method,
                objective=objective,
            )


@dataclass(frozen=True, eq=False)
class _Canaries:
    """Units whose loss is linear in the logits.

    Attributes:
        inputs: ``(n, …)``.
        directions: ``(n, classes)``, of the loss.
        scales: ``(n,)``, of the loss.
    """

    inputs: Tensor
    directions: Tensor
    scales: Tensor

    @property
    def labels(self) -> Tensor:
        """Which one, as a label below 0: -1 is the first."""
        return -1 - torch.arange(len(self.inputs))


def _planting(canaries: _Canaries, ordinary: Objective = cross_entropy) -> Objective:
    """The usual loss for ordinary rows, a canary's own loss for it."""

    def objective(network: Network, inputs: Tensor, labels: Tensor) -> Tensor:
        logits = network(inputs)
        usual = ordinary(lambda _: logits, inputs, labels.clamp_min(0))
        which = (-1 - labels).clamp_min(0).long()
        own = (logits * canaries.directions[which]).sum(1) * canaries.scales[which]
        return torch.where(labels >= 0, usual, own)

    return objective


def _raw_norms(body: nn.Module, canaries: _Canaries) -> Tensor:
    """Of each canary's gradient, unclipped, ``(n,)``."""
    method = _watcher(body.train(), _planting(canaries))
    batch = single_rows(canaries.inputs, canaries.labels)
    return method.clipped_sums(batch, Clipping(math.inf)).norms


class _Singly:
    """One row after another, by torch alone: attaches nothing to any network."""

    def __init__(self, body: nn.Module, objective: Objective) -> None:
        self._body, self._objective = body, objective
        self._parameters = [p for p in body.parameters() if p.requires_grad]

    def clipped_sums(self, batch: Batch, clipping: Clipping) -> Clipped:
        """As of a `gradients.GradientMethod`."""
        sums = [torch.zeros_like(p) for p in self._parameters]
        norms = torch.zeros(len(batch.labels))
        losses = self._objective(self._body, batch.inputs, batch.labels)
        for place, loss in enumerate(losses):
            own = torch.autograd.grad(loss, self._parameters, retain_graph=True)
            norm = torch.stack([g.norm() for g in own]).norm()
            factor = clipping.factors(norm)
            norms[place] = norm * factor
            sums = [total + factor * g for total, g in zip(sums, own)]
        return Clipped(sums, norms, losses.detach())


def _watcher(body: nn.Module, objective: Objective) -> BookkeepingMethod | _Singly:
    """What computes a canary's gradient beside the training, and leaves no trace."""
    if supports(body):
        return BookkeepingMethod(body, objective)
    return _Singly(body, objective)


def _clipping(recipe: Recipe) -> Clipping:
    return Clipping(recipe.gradient_norm, recipe.clipping)


class _Sums:
    """The likelihood ratio of a canary in each copy, from what will be applied."""

    def __init__(
        self,
        plan: CanaryTrainings,
        body: nn.Module,
        canary: tuple[Tensor, Tensor],
        objective: Objective,
        *,
        copies: int,
    ) -> None:
        self._maker = _watcher(body, objective)
        self._batch, self._clipping = single_rows(*canary), _clipping(plan.recipe)
        self._divisor = plan.recipe.expected_batch
        mechanism = plan.mechanism
        self._deviation = mechanism.noise_multiplier * plan.recipe.max_grad_norm
        self._rate, self._copies = mechanism.sample_rate, copies
        self.scores = np.zeros(copies)

    def __call__(self, gradients: list[Tensor]) -> None:
        """See the noisy gradients of a step, before the weights move."""
        wanted = self._maker.clipped_sums(self._batch, self._clipping).sums
        flat = [
            (ours.reshape(self._copies, -1).double(), seen.reshape(self._copies, -1))
            for ours, seen in zip(wanted, gradients)
        ]
        square = torch.stack([ours.square().sum(1) for ours, _ in flat]).sum(0)
        inner = torch.stack([(a * b.double()).sum(1) for a, b in flat]).sum(0)
        length = square.sqrt().numpy() / self._deviation
        seen = inner.numpy() * self._divisor / self._deviation**2
        self.scores += _log_ratio(seen - length**2 / 2, self._rate)


def _log_ratio(present: Floats, rate: float) -> Floats:
    """log(1 - q + q e^x): the canary may have been left out of the step's batch."""
    if rate >= 1:
        return present
    result: Floats = np.logaddexp(math.log1p(-rate), math.log(rate) + present)
    return result


class _Products:
    """Each canary's share of the noisy gradients of one training."""

    def __init__(self, body: nn.Module, canaries: _Canaries) -> None:
        self._body, self._canaries = body, canaries
        self.scores = np.zeros(len(canaries.inputs))

    def __call__(self, gradients: list[Tensor]) -> None:
        """See the noisy gradients of a step, before the weights move."""
        canaries = self._canaries
        logits = self._body(canaries.inputs)
        losses = (logits * canaries.directions).sum(1) * canaries.scales
        # Backwards twice: every canary's gradient times the noisy one, and none is
        # held. The first pass is linear in these weights; the second reads them off.
        weights = torch.ones_like(losses, requires_grad=True)
        parameters = [p for p in self._body.parameters() if p.requires_grad]
        own = torch.autograd.grad(losses, parameters, weights, create_graph=True)
        inner = torch.stack([(a * b).sum() for a, b in zip(own, gradients)]).sum()
        (products,) = torch.autograd.grad(inner, weights)
        norms = _raw_norms(self._body, canaries)
        self.scores += (products / norms.clamp_min(1e-30)).double().numpy()


@contextmanager
def _watching(body: nn.Module, watch: Callable[[list[Tensor]], None]) -> Iterator[None]:
    """Show the gradients that a plain optimizer is about to apply to a network."""
    parameters = [p for p in body.parameters() if p.requires_grad]
    ours = {id(p) for p in parameters}

    def before(optimizer: Any, *_: Any) -> None:
        if isinstance(optimizer, DPOptimizer) or not _moves(optimizer, ours):
            return
        gradients: Sequence[Tensor | None] = [p.grad for p in parameters]
        shown = [g.detach().clone() for g in gradients if g is not None]
        if len(shown) != len(parameters):
            raise TrainingError("a step leaves a weight as it is")
        with torch.enable_grad():
            watch(shown)

    handle = register_optimizer_step_pre_hook(before)
    try:
        yield
    finally:
        handle.remove()


def _moves(optimizer: Any, ours: set[int]) -> bool:
    return any(
        id(p) in ours for group in optimizer.param_groups for p in group["params"]
    )
