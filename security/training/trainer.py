"""The training loop: batches by Poisson sampling, clipped, noisy, accounted, resumable.

Seams, for what is not here: `gradients.GradientMethod` makes the clipped sums, a
`Prepare` changes a batch before that (augmentation, adversarial examples), a `Monitor`
is asked before each step and told after it (ledger, checkpoints, progress).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from opacus.accountants import PRVAccountant
from torch import Tensor, nn

from security.errors import TrainingError
from security.training.accounting import Mechanism
from security.training.distributed import (
    DistributedNoisyOptimizer,
    first_alone,
    leads,
    merged,
    processes,
    synchronise,
)
from security.training.examples import Examples, parts
from security.training.gradient_methods import choose, make_method
from security.training.gradients import (
    Batch,
    Clipping,
    GradientMethod,
    Objective,
    cross_entropy,
    in_precision,
    probe,
    without_dropout,
)
from security.training.mechanism import (
    Conformance,
    Noise,
    NoisyOptimizer,
    check_history,
    poisson,
)
from security.training.noise import Randomness

__all__ = [
    "Examples",
    "FirstAsked",
    "Monitor",
    "Outcome",
    "Prepare",
    "Recipe",
    "State",
    "StepReport",
    "finish_private",
    "train_private",
    "train_public",
    "trained",
]

# Changes a physical batch before gradients; must treat every unit by itself.
Prepare = Callable[[nn.Module, Batch], Batch]

_PROBES = 10  # times a training checks clipping from outside, at most
_PROBE_GAP = 20  # steps between two of them, at least
_PROBE_UNITS = 128  # looked at in each but the first, which takes all of its batch
_LOSS_DECAY = 0.9


@dataclass(frozen=True)
class Recipe:
    """How the mechanism is applied; none of it alters epsilon.

    Attributes:
        max_grad_norm: L2 norm of everything that one unit adds to a step's sum.
        expected_batch: public divisor of the summed gradient.
        learning_rate, momentum, optimizer, schedule, warmup, ema: as in
            `config.OptimizerConfig`.
        clipping: "flat" or "automatic".
        loss_share: share of the norm that tells the loss; 0 tells none.
        loss_ceiling: a unit's loss is told as this where it is more.
        physical_batch: examples in memory at once, 0 for all of a batch.
    """

    max_grad_norm: float
    expected_batch: int
    learning_rate: float
    momentum: float = 0.0
    optimizer: str = "sgd"
    schedule: str = "constant"
    warmup: float = 0.0
    ema: float = 0.0
    clipping: str = "flat"
    loss_share: float = 0.0
    loss_ceiling: float = 2.0
    physical_batch: int = 0


@dataclass
class State:
    """Where a training stands; everything but its record has been made private.

    Attributes:
        step: steps behind these weights.
        body: the trained parameters, by name.
        average: the averaged weights, empty where there are none.
        optimizer: momentum and the like: by parameter, then by name.
        loss: smoothed noisy loss, None before the first.
        record: of the mechanism in these steps, `Conformance.counts`; not private.
    """

    step: int
    body: dict[str, Tensor]
    average: list[Tensor]
    optimizer: dict[int, dict[str, Tensor]]
    loss: float | None = None
    record: tuple[float, ...] = field(default=(0.0,) * 7, repr=False)


@dataclass(frozen=True)
class StepReport:
    """What may be shown after a step.

    Attributes:
        step: counted from 1.
        loss: smoothed, with noise, part of the accounted mechanism; None for none.
    """

    step: int
    loss: float | None


class Monitor:
    """Asked before, told after each step; this one says nothing."""

    def before(self, step: int) -> None:
        """Called before a step, counted from 1, touches the data; may refuse it."""

    def after(self, report: StepReport, state: Callable[[], State]) -> None:
        """Called after the step."""


class FirstAsked(Monitor):
    """In every process: asks the first one's monitor, and stops where it does."""

    def __init__(self, watcher: Monitor | None) -> None:
        """Take the first process's monitor; None in the others."""
        self._watcher = watcher or Monitor()

    def before(self, step: int) -> None:
        """See `Monitor.before`."""
        first_alone(lambda: self._watcher.before(step))

    def after(self, report: StepReport, state: Callable[[], State]) -> None:
        """See `Monitor.after`."""
        first_alone(lambda: self._watcher.after(report, state))


@dataclass(frozen=True)
class Outcome:
    """What a training did, as counted while it ran.

    Attributes:
        mechanism: what the accountant recorded; equal to the plan.
        units: how many were sampled from, in all processes.
        method: that made the gradients.
        record: of the mechanism in every step behind the weights, for its verdicts.
        processes: how many trained together.
    """

    mechanism: Mechanism
    units: int
    method: str
    record: Conformance = field(repr=False)
    processes: int = 1


def train_private(
    body: nn.Module,
    examples: Examples,
    *,
    mechanism: Mechanism,
    recipe: Recipe,
    randomness: Randomness,
    method: str = "auto",
    precision: str = "float32",
    objective: Objective = cross_entropy,
    prepare: Prepare | None = None,
    monitor: Monitor | None = None,
    start: State | None = None,
) -> Outcome:
    """Train a network in place with DP-SGD.

    Args:
        body: maps inputs to logits ``(n, classes)``, without mixing rows.
        examples: what to train on.
        mechanism: the sampling rate, the noise, and how many steps are still to do.
        recipe: what does not alter the guarantee.
        randomness: of batches and noise; never repeated, also after a resume.
        method: of `gradient_methods.METHODS`, or "auto".
        precision: of the network's products, "float32" or "bfloat16"; clipping, sums
            and noise keep theirs.
        objective: the loss.
        prepare: changes each physical batch.
        monitor: asked before each step, told after it.
        start: where an interrupted training stood.

    Raises:
        TrainingError: no rows, gradients or weights that are not finite, or the
            accountant's record differs from the plan. The body is then not to be
            released.
    """
    _check(examples)
    units, examples = examples.count, examples.share()
    synchronise(body)
    maker = make_method(body.train(), method, in_precision(objective, precision))
    loop = _Loop(body, recipe, monitor or Monitor(), start, steps=mechanism.steps)
    record, accountant = _begun(start), PRVAccountant()
    optimizer = _noisy(loop.plain, mechanism, recipe, randomness, record)
    optimizer.account(accountant, mechanism.sample_rate)
    private = _Private(maker, recipe, optimizer, record, prepare)
    try:
        for index in loop.steps():
            taken = poisson(examples.count, mechanism.sample_rate, randomness)
            record.saw_coins(len(taken), int(taken.sum()))
            probed = index % max(_PROBE_GAP, -(-mechanism.steps // _PROBES)) == 0
            count = _PROBE_UNITS if index and probed else probed * examples.count
            private.accumulate(body, examples.batch(taken), probed=count)
            optimizer.step()
            whole = merged(record)
            loop.finish(optimizer.noisy_loss, whole)
    finally:
        maker.close()
    loop.release()
    check_history(accountant.history, mechanism)
    if whole.steps != loop.done:
        raise TrainingError(f"{whole.steps} of {loop.done} steps were checked")
    return Outcome(mechanism, units, maker.name, whole, processes())


def train_public(
    body: nn.Module,
    examples: Examples,
    *,
    sample_rate: float,
    steps: int,
    recipe: Recipe,
    randomness: Randomness,
    objective: Objective = cross_entropy,
    prepare: Prepare | None = None,
    monitor: Monitor | None = None,
    start: State | None = None,
) -> None:
    """Train in place on public data, without any guarantee: no clipping, no noise.

    Raises:
        TrainingError: no rows, or weights that are not finite.
    """
    _check(examples)
    loop = _Loop(body.train(), recipe, monitor or Monitor(), start, steps=steps)
    for _ in loop.steps():
        batch = examples.batch(poisson(examples.count, sample_rate, randomness))
        batch = batch.to(next(body.parameters()).device)
        batch = batch if prepare is None else prepare(body, batch)
        loop.plain.zero_grad()
        losses = objective(body, batch.inputs, batch.labels)
        torch.autograd.backward(losses.sum() / max(1, len(losses)))
        loop.plain.step()
        loop.finish(float(losses.detach().mean()) if len(losses) else None)
    loop.release()


def finish_private(
    body: nn.Module,
    examples: Examples,
    *,
    mechanism: Mechanism,
    recipe: Recipe,
    method: str,
    start: State,
) -> Outcome:
    """What a training gave whose every step is taken, or lost: nothing is drawn.

    Args:
        body: gets the weights to release.
        examples: that were trained on.
        mechanism: of all steps that were booked.
        recipe: as of `train_private`.
        method: as of `train_private`.
        start: where it stands.

    Raises:
        TrainingError: the weights are not finite.
    """
    _Loop(body, recipe, Monitor(), start, steps=0).release()
    name = choose(body.train(), method)
    return Outcome(
        mechanism, examples.count, name, Conformance(start.record), processes()
    )


def trained(body: nn.Module) -> dict[str, nn.Parameter]:
    """What noisy gradients move, by name."""
    return {name: p for name, p in body.named_parameters() if p.requires_grad}


def _begun(start: State | None) -> Conformance:
    """The record so far; the first process has that of all."""
    if start is None or not leads():
        return Conformance()
    return Conformance(start.record)


def _check(examples: Examples) -> None:
    rows = len(examples.inputs)
    if rows == 0 or rows != len(examples.labels):
        raise TrainingError(f"{rows} rows and {len(examples.labels)} labels")


def _noisy(
    plain: torch.optim.Optimizer,
    mechanism: Mechanism,
    recipe: Recipe,
    randomness: Randomness,
    record: Conformance,
) -> NoisyOptimizer:
    noise = Noise(
        mechanism.noise_multiplier, recipe.max_grad_norm, recipe.expected_batch
    )
    loss_norm = recipe.loss_share * recipe.max_grad_norm
    kind = DistributedNoisyOptimizer if processes() > 1 else NoisyOptimizer
    return kind(plain, noise, randomness=randomness, record=record, loss_norm=loss_norm)


class _Private:
    """A batch to clipped sums, in physical batches, with clipping checked."""

    def __init__(
        self,
        maker: GradientMethod,
        recipe: Recipe,
        optimizer: NoisyOptimizer,
        record: Conformance,
        prepare: Prepare | None,
    ) -> None:
        # The gradient and the loss are one vector; together they keep the norm.
        share = math.sqrt(1 - recipe.loss_share**2)
        self._clipping = Clipping(recipe.max_grad_norm * share, recipe.clipping)
        self._maker, self._optimizer, self._record = maker, optimizer, record
        self._size, self._prepare = recipe.physical_batch, prepare
        self._ceiling = recipe.loss_ceiling
        self._device = optimizer.params[0].device

    def accumulate(self, body: nn.Module, batch: Batch, *, probed: int) -> None:
        """Add a logical batch to the step's sum, and probe so many units of a part."""
        most = self._clipping.max_grad_norm
        for part in parts(batch, self._size):
            part = part.to(self._device)  # noqa: PLW2901  (the same one elsewhere)
            ready = part if self._prepare is None else self._prepare(body, part)
            if ready.count != part.count:
                raise TrainingError("preparing a batch changed how many units it has")
            clipped = self._maker.clipped_sums(ready, self._clipping)
            if not all(bool(torch.isfinite(total).all()) for total in clipped.sums):
                raise TrainingError("a gradient is not finite; nothing was released")
            if ready.count:
                self._record.saw_norms(float(clipped.norms.max()), most)
            if probed and ready.count:
                some = ready.take(torch.arange(ready.count).to(self._device) < probed)
                with without_dropout(body):
                    found = probe(self._maker, some, self._clipping)
                self._record.saw_norms(found, most)
            self._optimizer.accumulate(clipped, clipped.losses / self._ceiling)


class _Loop:
    """Steps with a schedule, averaged weights, and a monitor."""

    def __init__(
        self,
        body: nn.Module,
        recipe: Recipe,
        monitor: Monitor,
        start: State | None,
        *,
        steps: int,
    ) -> None:
        self._recipe, self._monitor = recipe, monitor
        self._named = trained(body)
        self._parameters = list(self._named.values())
        self._done = 0 if start is None else start.step
        self._end = self._done + steps
        self._loss = None if start is None else start.loss
        self.plain = _optimizer(self._parameters, recipe)
        self._record: Conformance | None = None
        self._average: list[Tensor] = []
        if start is not None:
            self._restore(start)
        elif recipe.ema:
            self._average = [p.detach().clone() for p in self._parameters]

    def steps(self) -> Iterator[int]:
        """Numbers of the steps to do, from 0 for the first of this run."""
        for index in range(self._end - self._done):
            self._monitor.before(self._done + 1)
            rate = self._recipe.learning_rate * self._factor()
            for group in self.plain.param_groups:
                group["lr"] = rate
            yield index

    @property
    def done(self) -> int:
        """Steps behind the weights."""
        return self._done

    def finish(self, loss: float | None, record: Conformance | None = None) -> None:
        """Book a step that is done, with its noisy loss from 0 to 1."""
        self._done += 1
        self._record = record
        if loss is not None:
            before = loss if self._loss is None else self._loss
            self._loss = _LOSS_DECAY * before + (1 - _LOSS_DECAY) * loss
        decay = min(self._recipe.ema, self._done / (10 + self._done))
        for average, parameter in zip(self._average, self._parameters):
            average.lerp_(parameter.detach(), 1 - decay)
        shown = None if self._loss is None else self._loss * self._recipe.loss_ceiling
        self._monitor.after(StepReport(self._done, shown), self.state)

    def state(self) -> State:
        """Where it stands: copies, so that the next step does not change them."""
        numbers = {id(p): i for i, p in enumerate(self._parameters)}
        return State(
            step=self._done,
            body={k: v.detach().clone() for k, v in self._named.items()},
            average=[item.clone() for item in self._average],
            optimizer={
                numbers[id(parameter)]: _tensors(values)
                for parameter, values in self.plain.state.items()
            },
            loss=self._loss,
            record=Conformance().counts()
            if self._record is None
            else self._record.counts(),
        )

    def release(self) -> None:
        """Put the weights to export into the body.

        Raises:
            TrainingError: they are not finite.
        """
        with torch.no_grad():
            for parameter, average in zip(self._parameters, self._average):
                parameter.copy_(average)
        if not all(bool(torch.isfinite(p).all()) for p in self._parameters):
            raise TrainingError("the weights are not finite: lower the learning rate")

    def _restore(self, start: State) -> None:
        with torch.no_grad():
            for name, parameter in self._named.items():
                if name not in start.body:
                    raise TrainingError(f"the checkpoint lacks {name}")
                parameter.copy_(start.body[name])
        self._average = [
            item.detach().clone().to(parameter.device)
            for item, parameter in zip(start.average, self._parameters)
        ]
        for number, values in start.optimizer.items():
            parameter = self._parameters[number]
            self.plain.state[parameter] = {
                name: value.clone().to(parameter.device)
                for name, value in values.items()
            }

    def _factor(self) -> float:
        """The schedule's share of the highest learning rate at this step."""
        share = self._done / max(1, self._end)
        if self._recipe.warmup and share < self._recipe.warmup:
            return (self._done + 1) / math.ceil(self._recipe.warmup * self._end)
        if self._recipe.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * share))
        return 1 - share if self._recipe.schedule == "linear" else 1.0


def _optimizer(parameters: list[nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    if recipe.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=recipe.learning_rate)
    return torch.optim.SGD(
        parameters, lr=recipe.learning_rate, momentum=recipe.momentum
    )


def _tensors(values: dict[str, Any]) -> dict[str, Tensor]:
    return {
        name: value.detach().clone()
        for name, value in values.items()
        if isinstance(value, Tensor)
    }
