"""The training of an "ebm": planned, booked whole, done in one piece.

As `session` does it for gradient steps. There are no checkpoints: it takes seconds, and
what one holds halfway is in InterpretML's memory alone. So everything is booked as
taken before the first query, and a training that ends early has spent it.
"""

from __future__ import annotations

import torch

from models.additive import AdditiveClassifier
from security.errors import TrainingError
from security.training.bundle import Private
from security.training.distributed import processes
from security.training.guarantee import Plan, make_additive_plan, state_guarantee
from security.training.ledger import Reservation
from security.training.mechanism import Conformance
from security.training.session import Job, request_of
from security.training.trainer import Outcome

__all__ = ["additive_plan", "run_boosted", "try_out"]

METHOD = "interpret"


def additive_plan(job: Job) -> Plan:
    """What is going to be done.

    Raises:
        TrainingError: no noise reaches the target, or too much would.
    """
    terms = _module(job).width
    return make_additive_plan(job.config, job.examples.count, terms=terms)


def run_boosted(job: Job) -> Private:
    """Train an "ebm" under differential privacy, and state what that guarantees.

    Raises:
        TrainingError: impossible, resumed, or not what was planned.
        LedgerError: the budget does not allow it.
    """
    _refuse(job)
    plan = additive_plan(job)
    noise = plan.mechanism.noise_multiplier
    job.progress("noise", 1.0, f"multiplier {noise:g}")
    booked = job.ledger.reserve(request_of(job, plan)) if job.train.personal else None
    outcome = _booked(job, plan, booked)
    queries = plan.mechanism.steps
    job.progress("training", 1.0, f"{queries} noisy queries of {METHOD}")
    guarantee = state_guarantee(plan, outcome)
    job.progress("privacy", 1.0, guarantee.line(plan.mechanism))
    return Private(plan.mechanism, outcome, guarantee)


def try_out(job: Job, plan: Plan) -> None:
    """Train on rows of zeros, as many as there are; none of it is kept."""
    module, real = _module(job), job.examples
    zeros = torch.zeros_like(real.inputs)
    labels = torch.arange(len(real.labels)) % 2
    before = {name: value.clone() for name, value in module.state_dict().items()}
    try:
        _fit(job, plan, zeros, labels)
    finally:
        module.load_state_dict(before)


def _refuse(job: Job) -> None:
    if job.going_on:
        raise TrainingError(
            "an ebm is trained in one piece, so there is nothing to resume: what an "
            "interrupted training booked stays spent, and a new one books its own"
        )
    if processes() > 1:
        raise TrainingError("an ebm is trained by one process")


def _booked(job: Job, plan: Plan, booked: Reservation | None) -> Outcome:
    state = "interrupted"
    try:
        if booked is not None:
            booked.take(plan.mechanism.steps)
        record = _fit(job, plan, job.examples.inputs, job.examples.labels)
        state = "finished"
    finally:
        if booked is not None:
            booked.close(state)
    return Outcome(plan.mechanism, job.examples.count, METHOD, record)


def _fit(
    job: Job, plan: Plan, inputs: torch.Tensor, labels: torch.Tensor
) -> Conformance:
    from security.training.additive import fit  # noqa: PLC0415  (needs interpret)

    return fit(
        _module(job),
        inputs,
        labels,
        boosting=job.config.boosted,
        mechanism=plan.mechanism,
        randomness=job.randomness,
    )


def _module(job: Job) -> AdditiveClassifier:
    module = job.module
    if not isinstance(module, AdditiveClassifier):
        raise TrainingError("no ebm was built")
    return module
