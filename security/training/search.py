"""A search for the best settings, private as a whole.

A number of tries is drawn, each trains a candidate taken by lot and is scored with
noise; the best leaves, the others are gone, unseen (`selection`). The whole cost is
booked before the first try touches a row, and stays spent whatever happens then: who
may stop a search and begin again chooses how many tries there are.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from models.architectures import TabularRegressor
from security.errors import TrainingError
from security.training.bundle import Private
from security.training.candidates import candidates, described
from security.training.clamped import tell_clamped
from security.training.config_sections import ModelConfig, TrainingConfig
from security.training.distributed import processes
from security.training.examples import Examples
from security.training.guarantee import (
    Plan,
    check_verdicts,
    make_plan,
    selection_of,
    state_guarantee,
)
from security.training.ledger import Reservation
from security.training.loop import Monitor
from security.training.network import (
    Classifier,
    Network,
    examples_of,
    fresh_network,
)
from security.training.noise import Randomness, gaussian
from security.training.placement import place_of
from security.training.selection import Selection
from security.training.session import Job, against, request_of
from security.training.trainer import Outcome, train_private

__all__ = ["Found", "run_search"]

_PIECE = 4096  # rows scored at once


@dataclass(frozen=True)
class Found:
    """The try that is released.

    Attributes:
        config: with the settings that were chosen.
        network: trained.
        private: what was done, and what it guarantees, the choice included.
    """

    config: TrainingConfig
    network: Network
    private: Private


@dataclass(frozen=True)
class _Try:
    config: TrainingConfig
    network: Network
    outcome: Outcome
    score: float


def run_search(job: Job) -> Found:
    """Choose among the candidates of a configuration by training some of them.

    Raises:
        TrainingError: impossible, interrupted, or not what was planned.
        LedgerError: the budget does not allow it.
    """
    if processes() > 1:
        raise TrainingError("a search runs in one process")
    selection = selection_of(job.config)
    if selection is None or job.going_on:
        raise TrainingError(
            "a search is not taken up where it was stopped: what it booked is spent"
        )
    choices = tuple(candidates(job.config))
    # What cannot be built or exported is refused before anything is booked.
    fresh = {
        model: fresh_network(replace(job.config, model=model), job.train)
        for model in {choice.model for choice in choices}
    }
    plan = make_plan(job.config, job.examples.count)
    noise = plan.mechanism.noise_multiplier
    job.progress("noise", 1.0, f"multiplier {noise:g}, paying for the search too")
    reservation = _book(job, plan)
    try:
        best = _best(job, fresh, plan, choices, selection)
    except BaseException:
        _close(reservation, "interrupted")
        raise
    _close(reservation, "finished")
    job.progress(
        "search", 1.0, f"of {len(choices)} candidates: {described(best.config)}"
    )
    guarantee = state_guarantee(plan, best.outcome)
    job.progress("privacy", 1.0, guarantee.line(plan.mechanism))
    tell_clamped(best.config, plan.mechanism, best.outcome, job.progress)
    return Found(
        best.config, best.network, Private(plan.mechanism, best.outcome, guarantee)
    )


def _book(job: Job, plan: Plan) -> Reservation | None:
    if not job.train.personal:
        return None
    reservation = job.ledger.reserve(request_of(job, plan))
    reservation.take(plan.mechanism.steps)
    return reservation


def _close(reservation: Reservation | None, state: str) -> None:
    if reservation is not None:
        reservation.close(state)


def _best(
    job: Job,
    fresh: Mapping[ModelConfig, Network],
    plan: Plan,
    choices: tuple[TrainingConfig, ...],
    selection: Selection,
) -> _Try:
    """The best of a number of tries that is told to nobody."""
    best: _Try | None = None
    for _ in range(selection.count(float(job.randomness.uniform(1)[0]))):
        job.progress("search", 0.0, "")  # no share: it would tell how many there are
        lot = int(job.randomness.uniform(1)[0] * len(choices))
        tried = _attempt(job, fresh, plan, choices[lot], selection)
        check_verdicts(plan, tried.outcome)
        if best is None or tried.score > best.score:
            best = tried
    if best is None:
        raise TrainingError(
            "the number of tries that was drawn is 0, which the distribution allows; "
            "what was booked is spent"
        )
    return best


def _attempt(
    job: Job,
    fresh: Mapping[ModelConfig, Network],
    plan: Plan,
    config: TrainingConfig,
    selection: Selection,
) -> _Try:
    known = fresh[config.model]
    module = copy.deepcopy(known.module)  # the next try begins with the same weights
    network = replace(known, module=module)
    examples = examples_of(config, module, job.train)
    module.to(place_of(config))
    own = replace(job, config=config, network=network, examples=examples)
    outcome = train_private(
        module.body,
        examples,
        mechanism=plan.mechanism,
        # The loss would be told of every try, so that it is told of none.
        recipe=replace(own.recipe, loss_share=0.0),
        randomness=job.randomness,
        method=config.compute.gradients,
        precision=config.compute.precision,
        monitor=_Stoppable(job.stop),
        **against(config, module),
    )
    score = _score(module, examples, selection.score_noise, job.randomness)
    return _Try(config, network, outcome, score)


def _score(
    module: Classifier, examples: Examples, noise: float, randomness: Randomness
) -> float:
    """How many units it is right about, each from 0 to 1, with noise.

    A number is right by as much of its range as it is not off by.
    """
    module.eval()
    pieces = torch.split(examples.inputs, _PIECE)
    with torch.no_grad():
        logits = torch.cat([module.body(part) for part in pieces])
    if isinstance(module, TabularRegressor):
        shares = torch.sigmoid(logits.squeeze(1).double())
        right = 1.0 - (shares - examples.labels).abs()
    else:
        right = (logits.argmax(dim=1) == examples.labels).double()
    total = float(_by_unit(right, examples).sum())
    return total + noise * float(gaussian(randomness, 1)[0])


def _by_unit(right: Tensor, examples: Examples) -> Tensor:
    """Each unit's share of right rows, so that none counts for more than 1."""
    if examples.units is None:
        return right
    rows = torch.bincount(examples.units, minlength=examples.count)
    total = torch.zeros(examples.count, dtype=right.dtype)
    return total.index_add_(0, examples.units, right) / rows


class _Stoppable(Monitor):
    """Keeps nothing, tells nothing, and ends when asked to."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop

    def before(self, step: int) -> None:
        """See `loop.Monitor.before`."""
        del step
        if self._stop.is_set():
            raise TrainingError("the search was interrupted; what it booked is spent")
