"""Steps of a training: schedule, averaged weights, monitors, and where it stands."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from security.errors import TrainingError
from security.training.distributed import first_alone
from security.training.mechanism import Conformance

__all__ = ["FirstAsked", "Loop", "Monitor", "Recipe", "State", "StepReport", "trained"]

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
        clamped_share: share of the norm that counts clamped targets; 0 counts none.
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
    clamped_share: float = 0.0
    physical_batch: int = 0

    @property
    def gradient_norm(self) -> float:
        """What is left for the gradient: with what is told it is one vector."""
        told = self.loss_share**2 + self.clamped_share**2
        return self.max_grad_norm * math.sqrt(1 - told)


@dataclass
class State:
    """Where a training stands; everything but its record has been made private.

    Attributes:
        step: steps behind these weights.
        body: the trained parameters, by name.
        average: the averaged weights, empty where there are none.
        optimizer: momentum and the like: by parameter, then by name.
        loss: smoothed noisy loss, None before the first.
        clamped: noisy numbers of clamped targets, added up over the steps.
        record: of the mechanism in these steps, `Conformance.counts`; not private.
    """

    step: int
    body: dict[str, Tensor]
    average: list[Tensor]
    optimizer: dict[int, dict[str, Tensor]]
    loss: float | None = None
    clamped: float = 0.0
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


class Loop:
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
        """Nothing is done yet.

        Args:
            body: to train.
            recipe: of its steps.
            monitor: asked before, told after each.
            start: where an interrupted training stood.
            steps: to do now.
        """
        self._recipe, self._monitor = recipe, monitor
        self._named = trained(body)
        self._parameters = list(self._named.values())
        self._done = 0 if start is None else start.step
        self._end = self._done + steps
        self._loss = None if start is None else start.loss
        self._clamped = 0.0 if start is None else start.clamped
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
    def share(self) -> float:
        """Of all steps, those done and the one under way: above 0, at most 1."""
        return (self._done + 1) / max(1, self._end)

    @property
    def done(self) -> int:
        """Steps behind the weights."""
        return self._done

    @property
    def clamped(self) -> float:
        """Noisy numbers of clamped targets in the steps behind the weights, in all."""
        return self._clamped

    def finish(
        self,
        loss: float | None,
        record: Conformance | None = None,
        *,
        clamped: float | None = None,
    ) -> None:
        """Book a step that is done, with what it told.

        Args:
            loss: with noise, from 0 to 1.
            record: of the mechanism so far.
            clamped: how many units' targets were clamped, with noise.
        """
        self._done += 1
        self._clamped += clamped or 0.0
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
            clamped=self._clamped,
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


def trained(body: nn.Module) -> dict[str, nn.Parameter]:
    """What noisy gradients move, by name."""
    return {name: p for name, p in body.named_parameters() if p.requires_grad}


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
