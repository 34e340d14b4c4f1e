"""One training, from its plan to what can be claimed: booked, kept, shown."""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from models.data.datasets import AnyDataset, multiset_digest
from models.report import Condition
from sealgate.protocol import strict_json
from security.errors import TrainingError
from security.training.adversarial import Adversary, adversarial
from security.training.bundle import Private
from security.training.certified import Certifying, Schedule
from security.training.checkpoint import read_checkpoints
from security.training.clamped import tell_clamped, tell_exactly
from security.training.config_sections import PrivacyConfig, TrainingConfig
from security.training.curve import Curve
from security.training.data import earlier_split
from security.training.distributed import first_alone, processes
from security.training.examples import Examples
from security.training.gradients import (
    Objective,
    binary_cross_entropy,
    cross_entropy,
)
from security.training.guarantee import Plan, make_plan, state_guarantee
from security.training.keeper import Identity, Keeper, Taken, begin, resume, work_folder
from security.training.ledger import Ledger, Request
from security.training.loop import FirstAsked, Recipe, State, StepReport
from security.training.network import Classifier, Network
from security.training.noise import Randomness
from security.training.placement import physical_batch
from security.training.trainer import (
    Outcome,
    finish_private,
    train_private,
    train_public,
)

__all__ = [
    "Job",
    "Progress",
    "Seen",
    "against",
    "begun_with",
    "booked_data",
    "check_declared",
    "group_of",
    "objective_of",
    "owners_of",
    "plain_request",
    "recipe_of",
    "request_of",
    "run_private",
    "run_public",
    "unseen",
]

# Called with a stage's name, the share of it that is done, its result at the end, and
# perhaps a note while it runs.
Progress = Callable[..., None]
# Called after a step with its number and what may be known of it: it is paid for.
Seen = Callable[[int, Mapping[str, float]], None]


def unseen(step: int, values: Mapping[str, float]) -> None:
    """Nobody looks."""


@dataclass(frozen=True)
class Job:
    """A training that is ready to start; attributes as of `run.train_bundle`.

    Also what DVC has recorded of the rows, as `data.tracked_sources` gives it.
    """

    config: TrainingConfig
    train: AnyDataset
    holdout: AnyDataset
    network: Network
    examples: Examples
    randomness: Randomness
    progress: Progress
    out: Path
    ledger: Ledger
    going_on: bool
    stop: threading.Event
    seen: Seen = unseen
    tracked: Mapping[str, Condition] = field(default_factory=dict)

    @property
    def module(self) -> Classifier:
        """What is trained."""
        return self.network.module

    @property
    def recipe(self) -> Recipe:
        """How steps are made."""
        recipe = recipe_of(self.config, self.train.outputs)
        inputs, body = self.examples.inputs, self.module.body
        size = physical_batch(self.config, body, inputs)
        return replace(recipe, physical_batch=size)


def run_private(job: Job) -> Private:
    """Train with DP-SGD, and state what that guarantees.

    Raises:
        TrainingError: impossible, interrupted, or not what was planned.
        LedgerError: the budget does not allow it.
    """
    config, progress = job.config, job.progress
    group = group_of(config, job.train)
    plan = first_alone(lambda: make_plan(config, job.examples.count, group=group))
    progress("noise", 1.0, f"multiplier {plan.mechanism.noise_multiplier:g}")
    kept: list[Keeper] = []  # one, in the first process alone
    start, steps = first_alone(lambda: _begin(job, plan, kept))
    state = "interrupted"
    try:
        outcome = _train(job, plan, start, steps, FirstAsked(kept[0] if kept else None))
        state = "finished"
    finally:
        for keeper in kept:
            keeper.close(state)
    progress("training", 1.0, f"{plan.mechanism.steps} noisy steps")
    guarantee = first_alone(lambda: state_guarantee(plan, outcome))
    progress("privacy", 1.0, guarantee.line(plan.mechanism))
    tell_clamped(config, plan.mechanism, outcome, progress)
    return Private(plan.mechanism, outcome, guarantee)


def _train(
    job: Job, plan: Plan, start: State | None, steps: int, monitor: FirstAsked
) -> Outcome:
    """Take the steps that are left; perhaps all that is left is to release."""
    config, mechanism = job.config, plan.mechanism
    if start is not None and not steps:
        return finish_private(
            job.module.body,
            job.examples,
            mechanism=mechanism,
            recipe=job.recipe,
            method=config.compute.gradients,
            start=start,
        )
    return train_private(
        job.module.body,
        job.examples,
        mechanism=replace(mechanism, steps=steps),
        recipe=job.recipe,
        randomness=job.randomness,
        method=config.compute.gradients,
        precision=config.compute.precision,
        monitor=monitor,
        start=start,
        **against(config, job.module),
    )


def _begin(job: Job, plan: Plan, kept: list[Keeper]) -> tuple[State | None, int]:
    """Reserve the budget; where to start from, and how many steps to take."""
    keeper, taken = _keeper(job, request_of(job, plan), show=_Shown(job, plan))
    kept.append(keeper)
    if taken.steps < 1 and (taken.start is None or not taken.start.step):
        keeper.close("interrupted")
        raise TrainingError(
            "every step was lost before one was kept: nothing is left to take, and "
            "what it spent stays spent"
        )
    return taken.start, taken.steps


def check_declared(job: Job) -> None:
    """Refuse to treat as public what the ledger has booked as personal.

    Raises:
        LedgerError: the data is in the ledger, by name, by rows or by their owners.
    """
    if not job.train.personal:
        digests = [_digest(job), *booked_data(*_rows_of(job))["former"]]
        owners = owners_of(*_rows_of(job))
        job.ledger.check_public(job.config.data.name, digests, owners)
    elif job.train.units is None:
        _warn_of_copies(job)


def _warn_of_copies(job: Job) -> None:
    """Tell whoever holds the rows how many are another's copy, and nobody else.

    The number is about private rows: it is shown here, and written nowhere.
    """
    names = list(owners_of(job.config, job.train, job.holdout))
    copies = len(names) - len(set(names))
    if copies:
        job.progress(
            "warning",
            1.0,
            f"{copies} of {len(names)} rows are the same as another, and each is "
            "protected by itself: if a person may own several rows, name data.unit",
        )


def owners_of(
    config: TrainingConfig, train: AnyDataset, holdout: AnyDataset
) -> Iterator[bytes]:
    """What names each row's owner, as the ledger compares data sets."""
    for part in [train] if config.data.holdout_source else [train, holdout]:
        if part.units is not None:
            own = (f"{config.data.unit}\0{name}" for name in part.units)
            yield from (name.encode() for name in own)
        elif part.keys is not None:
            yield from (bytes(key) for key in part.keys)
        else:
            yield from (row.tobytes() for row in part.features)


def run_public(job: Job) -> None:
    """Train without privacy, on data that is declared public.

    Raises:
        TrainingError: interrupted, weights that are not finite, or several processes.
    """
    if processes() > 1:
        raise TrainingError("several processes train privately, or not at all")
    steps = job.config.privacy.steps
    keeper, taken = _keeper(job, None, show=_Shown(job, None))
    train_public(
        job.module.body,
        job.examples,
        sample_rate=job.config.privacy.sampling_rate,
        steps=taken.steps,
        recipe=job.recipe,
        randomness=job.randomness,
        monitor=keeper,
        start=taken.start,
        **against(job.config, job.module),
    )
    job.progress("training", 1.0, f"{steps} steps")
    job.progress("privacy", 1.0, "NONE: trained without privacy, on public data")
    tell_exactly(job.config, job.train, job.progress)


def _keeper(
    job: Job, request: Request | None, *, show: Callable[[StepReport], None]
) -> tuple[Keeper, Taken]:
    """Reserve the budget, or take an interrupted training up."""
    network = job.network
    identity = Identity(
        _config_digest(job.config),
        _digest(job),
        network.bound_sha256,
        unbound=network.draws_nothing and not network.brought,
    )
    ledger = job.ledger if request is not None and job.train.personal else None
    steps = job.config.privacy.steps
    if job.going_on:
        taken = resume(job.out, ledger, identity, steps=steps)
    else:
        taken = begin(job.out, ledger, request, steps=steps)
    keeper = Keeper(
        work_folder(job.out),
        taken,
        identity,
        show=show,
        stop=job.stop,
        chunk=job.config.compute.checkpoint_steps,
    )
    if taken.start is None:
        keeper.keep(_fresh(job))
    return keeper, taken


def begun_with(config: TrainingConfig, out: Path) -> TrainingConfig:
    """The configuration of an interrupted training, where an earlier release began it.

    What it calls one row stays what it was, and clamped targets are not counted if they
    were not; everything else must agree.
    """
    folder = work_folder(out)
    found = read_checkpoints(folder) if folder.is_dir() else {}
    began = {item.config_sha256 for item in found.values()}
    known = (item for item in _as_begun(config) if _config_digest(item) in began)
    return next(known, config)


def _as_begun(config: TrainingConfig) -> Iterator[TrainingConfig]:
    """What the same file meant: first now, then to earlier releases."""
    privacy, data = config.privacy, config.data
    ways = [config]
    if privacy.clamped_share == PrivacyConfig.clamped_share:
        uncounted = replace(privacy, clamped_share=0.0)
        ways.append(replace(config, privacy=uncounted))
    yield from ways
    if data.source:
        yield from (replace(way, data=replace(data, row_identity=1)) for way in ways)


def _config_digest(config: TrainingConfig) -> str:
    return hashlib.sha256(strict_json.dumps(config.to_object())).hexdigest()


def _fresh(job: Job) -> State:
    """Step 0: public weights."""
    body = job.module.body
    average = [p.detach().clone() for p in body.parameters() if p.requires_grad]
    return State(
        step=0,
        body={name: value.clone() for name, value in body.state_dict().items()},
        average=average if job.config.optimizer.ema else [],
        optimizer={},
    )


def request_of(job: Job, plan: Plan) -> Request:
    """What a training is about to spend."""
    sketch = job.ledger.sketch(owners_of(*_rows_of(job)))
    return replace(plain_request(job, plan), sketch=sketch)


def plain_request(job: Job, plan: Plan) -> Request:
    """As `request_of`, without the marks of owners, for which a ledger has a key."""
    return Request(
        **booked_data(*_rows_of(job)),
        rate=plan.mechanism.sample_rate,
        noise=plan.mechanism.noise_multiplier,
        group=plan.group,
        steps=plan.mechanism.steps,
        delta=plan.delta,
        selection=plan.selection,
    )


def booked_data(
    config: TrainingConfig, train: AnyDataset, holdout: AnyDataset
) -> dict[str, Any]:
    """What a request says of whose budget it is: name, digests, unit and model."""
    digest, before = _booked(config, train, holdout), earlier_split(config)
    # The digest that an earlier version of what a row is gives, if it is another.
    former = {_booked(config, *before)} - {digest} if before is not None else set()
    owned = train.units is not None
    return {
        "name": config.data.name,
        "digest": digest,
        "former": tuple(former),
        "unit": f"owner by {config.data.unit}" if owned else "row",
        "model": f"{config.model.name}:{config.model.version}",
    }


def _rows_of(job: Job) -> tuple[TrainingConfig, AnyDataset, AnyDataset]:
    return job.config, job.train, job.holdout


def _digest(job: Job) -> str:
    return _booked(*_rows_of(job))


def _booked(config: TrainingConfig, train: AnyDataset, holdout: AnyDataset) -> str:
    """Digest of everything that came with the training rows, however it was split."""
    if config.data.holdout_source:
        return multiset_digest(train)
    return multiset_digest(train, holdout)


class _Shown:
    """What a person sees while it trains: all of it is paid for."""

    def __init__(self, job: Job, plan: Plan | None) -> None:
        self._progress, self._steps = job.progress, job.config.privacy.steps
        self._seen = job.seen
        self._epsilon = (
            None
            if plan is None
            else Curve(plan.mechanism, plan.mechanism_delta, plan.target)
        )

    def __call__(self, report: StepReport) -> None:
        values = {} if report.loss is None else {"loss": report.loss}
        notes = [f"loss {value:.3f}" for value in values.values()]
        if self._epsilon is not None:
            values["epsilon"] = self._epsilon(report.step)
            notes.append(f"epsilon about {values['epsilon']:.2f}")
        self._seen(report.step, values)
        share = report.step / self._steps
        self._progress("training", share, "", ", ".join(notes))


def against(config: TrainingConfig, module: Classifier) -> dict[str, Any]:
    """The trainer's arguments for what is learnt, and for adversarial training.

    The configured radius is a share of each range; the network sees ranges stretched.
    """
    chosen, objective = config.adversarial, objective_of(config)
    if chosen is None:
        return {"objective": objective} if config.predicts_number else {}
    low, high = module.input_bounds()
    adversary = Adversary(
        chosen.method,
        radius=chosen.radius * (high - low),
        steps=chosen.steps,
        beta=chosen.beta,
        low=low,
        high=high,
        movable=module.movable(),
    )
    if chosen.certified:
        schedule = Schedule(chosen.certified_weight, chosen.certified_ramp)
        certifying = Certifying(adversary, schedule)
        return {
            "prepare": certifying.prepare,
            "objective": certifying.objective,
            "curriculum": certifying,
        }
    prepare, objective = adversarial(adversary, objective)
    return {"prepare": prepare, "objective": objective}


def objective_of(config: TrainingConfig) -> Objective:
    """The loss of a row."""
    return binary_cross_entropy if config.predicts_number else cross_entropy


def group_of(config: TrainingConfig, train: AnyDataset) -> int:
    """Rows that one owner has at most, where rows are sampled and clipped.

    Raises:
        TrainingError: no public bound on them is configured.
    """
    if train.units is None or config.privacy.unit_bound == "clip":
        return 1
    if not config.data.max_rows_per_unit:
        raise TrainingError("privacy.unit_bound 'group' needs data.max_rows_per_unit")
    return config.data.max_rows_per_unit


def recipe_of(config: TrainingConfig, outputs: int) -> Recipe:
    """What of a configuration the trainer needs beside the mechanism.

    Args:
        config: the configuration.
        outputs: of the network: one of each class, or one for a number.
    """
    privacy, optimizer = config.privacy, config.optimizer
    return Recipe(
        max_grad_norm=privacy.max_grad_norm,
        expected_batch=privacy.expected_batch,
        learning_rate=optimizer.learning_rate,
        momentum=optimizer.momentum,
        optimizer=optimizer.kind,
        schedule=optimizer.schedule,
        warmup=optimizer.warmup,
        ema=optimizer.ema,
        clipping=privacy.clipping,
        loss_share=privacy.loss_share,
        loss_ceiling=2 * math.log(max(2, outputs)),
        clamped_share=config.clamped_share,
    )
