"""A training without its rows: what it would be, cost and take. Nothing is booked.

Everything that a training does before its first step is done, so what would be refused
is refused. Its steps are taken on rows of zeros, as many and as large as the real ones,
with a copy of the network; then the untrained network is exported, which shows before
any budget is spent whether it can be.
"""

from __future__ import annotations

import copy
import resource
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from security.training import accounting
from security.training.boosted import additive_plan, try_out
from security.training.clamped import counting_of
from security.training.config_sections import TrainingConfig
from security.training.examples import Examples
from security.training.exporting import export
from security.training.guarantee import Plan, claims, make_plan
from security.training.ledger import DEFAULT_CAP, Forecast, Ledger
from security.training.run import prepared, randomness_of
from security.training.session import (
    Job,
    Progress,
    against,
    group_of,
    plain_request,
    request_of,
)
from security.training.trainer import train_private, train_public

__all__ = ["rehearse"]

# Steps that are timed go on for about so long, and are at most so many.
_TIMED_S = 2.0
_MOST_STEPS = 50
# Where a bundle would be written, which is not asked for.
_NO_FOLDER = "nowhere/bundle"


def rehearse(config: TrainingConfig, progress: Progress, *, ledger: Ledger) -> None:
    """Tell what a training would be: noise, epsilon, ledger, time, memory.

    Args:
        config: of the training.
        progress: told each of these, as of `security.training.run.train_bundle`.
        ledger: read, and not written to.

    Raises:
        TrainingError, LedgerError, DatasetError, BundleError: what the training would
            be refused for.
    """
    torch.set_num_threads(config.compute.threads)
    began = time.monotonic()
    job = prepared(
        config,
        Path(_NO_FOLDER),
        progress,
        ledger=ledger,
        randomness=randomness_of(config),
        going_on=False,
        stop=threading.Event(),
    )
    plan = _planned(job) if config.private else None
    around = time.monotonic() - began
    if plan is not None and plan.exact:
        whole_s = _timed(lambda: try_out(job, plan))
        line = f"{plan.mechanism.steps} queries took {whole_s:.0f} s on rows of zeros"
    else:
        step_s, timed = _step_seconds(job, plan)
        line = ""
    began = time.monotonic()
    job.network.module.to("cpu")
    compared = export(job.network, job.holdout)
    progress("export", 1.0, f"works: ONNX, {len(compared.model)} bytes")
    around += time.monotonic() - began
    line = line or _time_line(config, step_s, timed, around)
    progress("time", 1.0, line)
    progress("memory", 1.0, f"about {_peak_mb():.0f} MB, the most that this run took")


def _planned(job: Job) -> Plan:
    config = job.config
    if config.additive:
        plan = additive_plan(job)
    else:
        group = group_of(config, job.train)
        plan = make_plan(config, job.examples.count, group=group)
    mechanism = plan.mechanism
    claim, second = claims(plan)
    job.progress(
        "noise",
        1.0,
        f"multiplier {mechanism.noise_multiplier:g} in {mechanism.steps} steps at "
        f"sampling rate {mechanism.sample_rate:g}",
    )
    job.progress(
        "privacy",
        1.0,
        f"epsilon {claim:.2f} at delta {plan.delta:.1e}; by another accountant "
        f"{second:.2f}",
    )
    if config.clamped_share:
        units, steps = job.examples.count, mechanism.steps
        made = counting_of(config, mechanism, steps=steps, units=units)
        line = f"those beyond their range are counted, with noise of {made.noise:.2%}"
        job.progress("targets", 1.0, line)
    job.progress("ledger", 1.0, _ledger_line(job, plan))
    return plan


def _ledger_line(job: Job, plan: Plan) -> str:
    if not job.train.personal:
        return "not booked: the data is declared public"
    if job.ledger.is_new:
        request = plain_request(job, plan)
        spent = accounting.Spent(
            request.rate, request.noise, request.steps, request.group, request.selection
        )
        after = accounting.compose([spent], request.delta)
        found = Forecast((request.name,), DEFAULT_CAP, request.delta, 0.0, after)
    else:
        found = job.ledger.forecast(request_of(job, plan))
    return (
        f"{', '.join(found.names)}: epsilon {found.before:.2f} of {found.cap:g} is "
        f"taken at delta {found.delta:.1e}, {found.after:.2f} with this training"
    )


def _step_seconds(job: Job, plan: Plan | None) -> tuple[float, int]:
    """Seconds of a step, and on how many that rests."""
    rehearsed = _steps_of(job, plan)
    first = _timed(lambda: rehearsed(1))
    again = _timed(lambda: rehearsed(1))
    count = int(min(_MOST_STEPS, _TIMED_S / max(again, 1e-6)))
    job.progress("steps", 0.5, "")
    if count < 1:  # one step takes longer than all should
        return min(first, again), 1
    return max(1e-6, (_timed(lambda: rehearsed(1 + count)) - again) / count), count


def _steps_of(job: Job, plan: Plan | None) -> Callable[[int], object]:
    """Takes so many steps on zeros, with a copy of the network."""
    real, config = job.examples, job.config
    labels = torch.zeros_like(real.labels)
    clamped = None if real.clamped is None else torch.zeros_like(real.clamped)
    zeros = Examples(torch.zeros_like(real.inputs), labels, real.units, clamped)
    body, recipe = copy.deepcopy(job.module.body), job.recipe
    attack = against(config, job.module)
    if plan is None:
        return lambda steps: train_public(
            body,
            zeros,
            sample_rate=config.privacy.sampling_rate,
            steps=steps,
            recipe=recipe,
            randomness=job.randomness,
            **attack,
        )
    return lambda steps: train_private(
        body,
        zeros,
        mechanism=replace(plan.mechanism, steps=steps),
        recipe=recipe,
        randomness=job.randomness,
        method=config.compute.gradients,
        precision=config.compute.precision,
        **attack,
    )


def _timed(act: Callable[[], object]) -> float:
    began = time.monotonic()
    act()
    return time.monotonic() - began


def _time_line(
    config: TrainingConfig, step_s: float, timed: int, around_s: float
) -> str:
    steps = config.privacy.steps
    tries = "" if config.search is None else f" in about {config.search.tries:g} tries"
    times = 1.0 if config.search is None else config.search.tries
    total = steps * step_s * times + around_s
    return (
        f"about {total:.0f} s here: {steps} steps{tries} of {1000 * step_s:.3g} ms, as "
        f"{timed} on rows of zeros took, and {around_s:.0f} s around them"
    )


def _peak_mb() -> float:
    """Of this process, so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)
