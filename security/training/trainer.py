"""The training loop: batches by Poisson sampling, clipped, noisy, accounted, resumable.

Seams, for what is not here: `gradients.GradientMethod` makes the clipped sums, a
`Prepare` changes a batch before that (augmentation, adversarial examples), a `Monitor`
is asked before each step and told after it (ledger, checkpoints, progress).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from opacus.accountants import PRVAccountant
from torch import nn

from security.errors import TrainingError
from security.training.accounting import Mechanism
from security.training.distributed import (
    DistributedNoisyOptimizer,
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
    Curriculum,
    GradientMethod,
    Objective,
    Prepare,
    cross_entropy,
    in_precision,
    probe,
    without_dropout,
)
from security.training.loop import Loop, Monitor, Recipe, State
from security.training.mechanism import (
    Conformance,
    Noise,
    NoisyOptimizer,
    check_history,
    poisson,
)
from security.training.noise import Randomness

__all__ = [
    "Outcome",
    "finish_private",
    "train_private",
    "train_public",
]

_PROBES = 10  # times a training checks clipping from outside, at most
_PROBE_GAP = 20  # steps between two of them, at least
_PROBE_UNITS = 128  # looked at in each but the first, which takes all of its batch


@dataclass(frozen=True)
class Outcome:
    """What a training did, as counted while it ran.

    Attributes:
        mechanism: what the accountant recorded; equal to the plan.
        units: how many were sampled from, in all processes.
        method: that made the gradients.
        record: of the mechanism in every step behind the weights, for its verdicts.
        processes: how many trained together.
        clamped: noisy numbers of clamped targets, added up over the steps behind the
            weights; None where they were not counted.
    """

    mechanism: Mechanism
    units: int
    method: str
    record: Conformance = field(repr=False)
    processes: int = 1
    clamped: float | None = None


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
    curriculum: Curriculum | None = None,
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
        curriculum: how the body is looked at, and what changes from step to step.
        monitor: asked before each step, told after it.
        start: where an interrupted training stood.

    Raises:
        TrainingError: no rows, gradients or weights that are not finite, or the
            accountant's record differs from the plan. The body is then not to be
            released.
    """
    _check(examples)
    if recipe.clamped_share and examples.clamped is None:
        raise TrainingError("whose targets were clamped is not known")
    units, examples = examples.count, examples.share()
    synchronise(body)
    taught = _taught(body.train(), examples, curriculum)
    maker = make_method(taught, method, in_precision(objective, precision))
    loop = Loop(body, recipe, monitor or Monitor(), start, steps=mechanism.steps)
    record, accountant = _begun(start), PRVAccountant()
    optimizer = _noisy(loop.plain, mechanism, recipe, randomness, record)
    optimizer.account(accountant, mechanism.sample_rate)
    private = _Private(maker, recipe, optimizer, record, prepare)
    try:
        for index in loop.steps():
            _begin(curriculum, loop)
            taken = poisson(examples.count, mechanism.sample_rate, randomness)
            record.saw_coins(len(taken), int(taken.sum()))
            probed = index % max(_PROBE_GAP, -(-mechanism.steps // _PROBES)) == 0
            watched = _PROBE_UNITS if index and probed else probed * examples.count
            private.accumulate(body, examples.batch(taken), probed=watched)
            if examples.clamped is not None:
                optimizer.count_clamped(examples.clamped[taken])
            optimizer.step()
            whole = merged(record)
            told = optimizer.noisy_clamped
            loop.finish(optimizer.noisy_loss, whole, clamped=told)
    finally:
        maker.close()
    loop.release()
    check_history(accountant.history, mechanism)
    if whole.steps != loop.done:
        raise TrainingError(f"{whole.steps} of {loop.done} steps were checked")
    counted = loop.clamped if recipe.clamped_share else None
    return Outcome(mechanism, units, maker.name, whole, processes(), counted)


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
    curriculum: Curriculum | None = None,
    monitor: Monitor | None = None,
    start: State | None = None,
) -> None:
    """Train in place on public data, without any guarantee: no clipping, no noise.

    Raises:
        TrainingError: no rows, or weights that are not finite.
    """
    _check(examples)
    loop = Loop(body.train(), recipe, monitor or Monitor(), start, steps=steps)
    taught = _taught(body, examples, curriculum)
    for _ in loop.steps():
        _begin(curriculum, loop)
        batch = examples.batch(poisson(examples.count, sample_rate, randomness))
        batch = batch.to(next(body.parameters()).device)
        batch = batch if prepare is None else prepare(body, batch)
        loop.plain.zero_grad()
        losses = objective(taught, batch.inputs, batch.labels)
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
    Loop(body, recipe, Monitor(), start, steps=0).release()
    name = choose(body.train(), method)
    counted = start.clamped if recipe.clamped_share else None
    record = Conformance(start.record)
    return Outcome(mechanism, examples.count, name, record, processes(), counted)


def _begun(start: State | None) -> Conformance:
    """The record so far; the first process has that of all."""
    if start is None or not leads():
        return Conformance()
    return Conformance(start.record)


def _taught(
    body: nn.Module, examples: Examples, curriculum: Curriculum | None
) -> nn.Module:
    """What the objective sees: the body itself, or another with its parameters."""
    if curriculum is None:
        return body
    return curriculum.network(body, tuple(examples.inputs.shape[1:])).train()


def _begin(curriculum: Curriculum | None, loop: Loop) -> None:
    if curriculum is not None:
        curriculum.begin(loop.share)


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
    kind = DistributedNoisyOptimizer if processes() > 1 else NoisyOptimizer
    return kind(
        plain,
        noise,
        randomness=randomness,
        record=record,
        loss_norm=recipe.loss_share * recipe.max_grad_norm,
        clamped_norm=recipe.clamped_share * recipe.max_grad_norm,
    )


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
        self._clipping = Clipping(recipe.gradient_norm, recipe.clipping)
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
