"""Units of work, done: in this process, in several, or on a Ray cluster.

Whoever does them, each finished unit is saved by this process, at once. What runs
where changes nothing in the result.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import multiprocessing
import os
import secrets
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from typing import Any

from security.assessment.engine.store import RunStore
from security.assessment.plan.checks import Outcome, ScanCheck, Unit
from security.assessment.plan.context import Context, Job
from security.errors import AssessmentError, BudgetError

__all__ = ["Progress", "run_units"]

Result = tuple[Unit, Outcome | None]
Results = Generator[Result, None, None]
Factory = Callable[[str], ScanCheck]
# Of processor time that is left: with less, starting processes takes what they save.
_WORTH_S = 20.0


@dataclass(frozen=True)
class Progress:
    """Where a scan stands.

    Attributes:
        done, total: units.
        running: key of a unit that is being worked on, or "".
        latest: the outcome that just came in, or None.
        left_s: estimate, or None while nothing is known.
    """

    done: int
    total: int
    running: str
    latest: Outcome | None = None
    left_s: float | None = None


def run_units(
    context: Context,
    units: Sequence[Unit],
    store: RunStore,
    checks: Factory,
    on_progress: Callable[[Progress], None] = lambda _: None,
    *,
    ray: bool = False,
) -> Mapping[str, Outcome]:
    """Do what is not done yet.

    Args:
        context: of this process.
        units: all of them, the important ones first.
        store: of finished units.
        checks: a check by its name; a function of a module, so that others can import
            it.
        on_progress: told after every unit.
        ray: use a Ray cluster.

    Returns:
        Outcomes by key; without the units that no budget was left for.

    Raises:
        AssessmentError: a unit failed, or a process died. What is done is saved.
    """
    found = ((unit.key, store.load(unit.key)) for unit in units)
    outcomes = {key: outcome for key, outcome in found if outcome is not None}
    left = [unit for unit in units if unit.key not in outcomes]
    clock = _Clock(units, len(outcomes), left)
    for unit in left[:1]:
        on_progress(clock.progress(len(outcomes), unit.key))
    with contextlib.closing(_results(context, left, checks, ray=ray)) as results:
        for unit, outcome in results:
            if outcome is None:
                continue
            store.save(unit.key, outcome)
            context.end()
            outcomes[unit.key] = outcome
            clock.finished(unit)
            on_progress(clock.progress(len(outcomes), unit.key, outcome))
    return outcomes


def _results(
    context: Context, units: Sequence[Unit], checks: Factory, *, ray: bool
) -> Results:
    if ray:
        return _on_ray(context.job, units, checks)
    jobs = context.job.options.jobs
    if context.job.remote or jobs == 1 or len(units) < 2:
        return _here(context, units, checks)
    if jobs is None:
        return _spread(context, units, checks)
    return _in_processes(context.job, units, checks, jobs)


def _here(context: Context, units: Iterable[Unit], checks: Factory) -> Results:
    for unit in units:
        yield unit, _run(checks(unit.check), unit, context)


def _spread(context: Context, units: Sequence[Unit], checks: Factory) -> Results:
    """Here; what is left goes to a process per processor once that saves time.

    Processes import for seconds what this one has imported: a small model's attacks
    take less.
    """
    jobs, rate = _processors(), 0.0
    began, done = time.process_time(), 0.0
    for place, unit in enumerate(units):
        left = units[place:]
        left_s = rate * sum(item.weight for item in left)
        if left_s > _WORTH_S and min(jobs, len(left)) > 1:
            yield from _in_processes(context.job, left, checks, jobs)
            return
        yield unit, _run(checks(unit.check), unit, context)
        done += unit.weight
        rate = (time.process_time() - began) / done


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


def _run(check: ScanCheck, unit: Unit, context: Context) -> Outcome | None:
    try:
        context.check_time()
        context.begin(unit.key)
        return check.run(unit, context)
    except BudgetError:
        return None


def _in_processes(
    job: Job, units: Sequence[Unit], checks: Factory, jobs: int
) -> Results:
    # A fork server starts clean, imports the libraries once, and copies itself: no
    # thread and no lock of this process is copied in the middle of something.
    jobs = min(jobs, len(units))
    method = multiprocessing.get_context("forkserver")
    used = {type(checks(unit.check)).__module__: None for unit in units}
    method.set_forkserver_preload([__name__, *used])
    pool = ProcessPoolExecutor(
        jobs, mp_context=method, initializer=_start, initargs=(job, checks)
    )
    try:
        # No more than are needed to keep everyone busy: a budget ends soon after.
        waiting = list(reversed(units))
        running: dict[Future[Outcome | None], Unit] = {}
        while waiting or running:
            while waiting and len(running) < 2 * jobs:
                unit = waiting.pop()
                running[pool.submit(_work, unit)] = unit
            done, _ = concurrent.futures.wait(
                running, return_when=concurrent.futures.FIRST_COMPLETED
            )
            for future in done:
                yield running.pop(future), future.result()
    except BrokenProcessPool:
        raise AssessmentError("a process of the scan died; run it again") from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_HERE: dict[str, Any] = {}


def _start(job: Job, checks: Factory) -> None:
    _HERE["context"] = Context(job)
    _HERE["checks"] = checks


def _work(unit: Unit) -> Outcome | None:
    return _run(_HERE["checks"](unit.check), unit, _HERE["context"])


def _on_ray(job: Job, units: Sequence[Unit], checks: Factory) -> Results:
    try:
        import ray  # type: ignore[import-not-found]  # noqa: PLC0415  (optional)
    except ImportError:
        raise AssessmentError("--ray needs the package 'ray'") from None
    with contextlib.suppress(ValueError):  # a cluster's address in the environment
        ray.init(ignore_reinit_error=True, log_to_driver=False)
    # Clocks of other machines say nothing about ours: the time is kept here.
    shared = ray.put((secrets.token_hex(8), replace(job, deadline=None), checks))
    task = ray.remote(num_cpus=1, max_retries=2)(_ray_work)
    most = 2 * int(ray.cluster_resources().get("CPU", 1))
    waiting = list(reversed(units))
    running: dict[Any, Unit] = {}
    try:
        while waiting or running:
            while waiting and len(running) < most:
                unit = waiting.pop()
                if job.deadline is not None and time.monotonic() > job.deadline:
                    yield unit, None
                else:
                    running[task.remote(shared, unit)] = unit
            done, _ = ray.wait(list(running), num_returns=1) if running else ([], [])
            for reference in done:
                yield running.pop(reference), ray.get(reference)
    except ray.exceptions.RayError as error:
        line = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        raise AssessmentError(f"Ray: {line[0][:200]}") from None


def _ray_work(shared: tuple[str, Job, Factory], unit: Unit) -> Outcome | None:
    scan, job, checks = shared
    if _HERE.get("scan") != scan:
        _start(job, checks)
        _HERE["scan"] = scan
    return _work(unit)


class _Clock:
    """How long what is left will take, from what was done."""

    def __init__(self, units: Sequence[Unit], done: int, left: Sequence[Unit]) -> None:
        self._total = len(units)
        self._left = sum(unit.weight for unit in left)
        self._done = 0.0
        self._began = time.monotonic()
        self._before = done

    def finished(self, unit: Unit) -> None:
        self._done += unit.weight

    def progress(
        self, done: int, running: str, latest: Outcome | None = None
    ) -> Progress:
        left = None
        if self._done:
            spent = time.monotonic() - self._began
            left = spent / self._done * max(0.0, self._left - self._done)
        return Progress(done, self._total, running, latest, left)
