"""A whole scan: inspected, fitted, planned, done, concluded, written.

1. structure: before any parser but the bounded one has seen the file; an error ends
   the scan with a report of just that;
2. data and target are fitted to each other, or refused with the reason;
3. the plan: which checks apply, and their units of work;
4. the units are done, each saved as it ends;
5. each check concludes from its units;
6. scan.json is written, and for a bundle the evidence; finished work is forgotten.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from models.bundle import report_file
from models.data.held_out import Holdout
from models.files import write_atomic
from models.report import Report, Subject, format_time
from sealgate.profile import Profile
from security.assessment.checks.structure import structure_result
from security.assessment.engine.registry import (
    NAMES,
    NO_NUMBER,
    NO_PARTS,
    WITHOUT_MODEL,
    check_of,
    check_of_number,
)
from security.assessment.engine.runner import Progress, run_units
from security.assessment.engine.store import RunStore
from security.assessment.plan.checks import Outcome, ScanCheck, Unit
from security.assessment.plan.context import Context, Job, prepare
from security.assessment.plan.options import Options
from security.assessment.plan.source import TargetSource
from security.assessment.results.report import ScanReport, target_facts
from security.assessment.results.result import CheckResult
from security.assessment.targets.dataconfig import DataConfig
from security.errors import AssessmentError
from security.inspection.structure import Inspection, examine

__all__ = ["SCAN_FILE", "Scan", "ScanRequest", "run_scan"]

SCAN_FILE = "scan.json"
_WORK = "work"


@dataclass(frozen=True, eq=False)
class ScanRequest:
    """What is asked for.

    Attributes:
        source: the target.
        holdout: rows that the model never saw, or its predictions about them.
        options: how hard to try.
        config: the data configuration.
        out: folder of the report and of finished work; made if missing. None writes
            nothing.
        subject: of the bundle, so that evidence can be written; None for others.
        before: asked once structure has let the file pass; raises where the rows are
            not what they must be.
        compared: whether the rows are known to be none that the model was trained on.
        ray: use a Ray cluster.
        extras: for checks that need more data, by name.
    """

    source: TargetSource
    holdout: Holdout
    options: Options
    out: Path | None = None
    config: DataConfig = field(default_factory=DataConfig)
    subject: Subject | None = None
    before: Callable[[], None] = lambda: None
    compared: bool = False
    ray: bool = False
    extras: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Scan:
    """What came out.

    Attributes:
        report: as written to scan.json.
        evidence: as written to evidence/, for bundles.
        refused: structure refused the model, and nothing else was done.
        complete: no budget ended before the work did.
    """

    report: ScanReport
    evidence: tuple[Report, ...] = ()
    refused: bool = False
    complete: bool = True


def run_scan(
    request: ScanRequest, on_progress: Callable[[Progress], None] = lambda _: None
) -> Scan:
    """Scan.

    Raises:
        AssessmentError: target and data do not fit, or the work cannot be done. No
            report is written; finished units stay for the next run.
    """
    began, clock = datetime.now(UTC).replace(microsecond=0), time.monotonic()
    inspection = _inspect(request.source)
    if inspection is not None and inspection.refused:
        report = _refusal(request, inspection, began)
        if request.out is not None:
            write_atomic(request.out / SCAN_FILE, report.to_json())
        return Scan(report, refused=True)
    request.before()
    job, target = prepare(
        request.source,
        request.holdout,
        request.options,
        request.config,
        work=_work(request),
    )
    minutes = request.options.max_minutes
    deadline = None if minutes is None else clock + 60 * minutes
    job = replace(
        job,
        deadline=deadline,
        extras=dict(request.extras),
        compared=request.compared,
    )
    with contextlib.closing(target):
        context = Context(job, target)
        report, store, complete = _attacked(request, context, inspection, on_progress)
        asked = {"queries": target.queries} if job.remote else {}
    times = _times(began, time.monotonic() - clock) | asked
    report = replace(report, times=times)
    evidence = _write(request, report, began)
    if complete:
        store.remove()
    return Scan(report, evidence, complete=complete)


def _attacked(
    request: ScanRequest,
    context: Context,
    inspection: Inspection | None,
    on_progress: Callable[[Progress], None],
) -> tuple[ScanReport, RunStore, bool]:
    """Steps 3 to 5: the report without its times, the work, and whether it is whole."""
    job = context.job
    factory = check_of_number if job.reading.number else check_of
    skipped, active = _plan(context, _chosen(request.options), factory)
    units = [unit for check in active for unit in check.units(context)]
    store = RunStore(_work(request), _identity(job, units))
    outcomes = run_units(context, units, store, factory, on_progress, ray=request.ray)
    results = (
        *_structure(inspection, request.source),
        *(_conclude(check, context, units, outcomes) for check in active),
        *skipped,
    )
    return _report(job, results), store, len(outcomes) == len(units)


def _inspect(source: TargetSource) -> Inspection | None:
    return examine(source.model) if source.kind in ("onnx", "bundle") else None


def _work(request: ScanRequest) -> Path | None:
    return None if request.out is None else request.out / _WORK


def _chosen(options: Options) -> Sequence[str]:
    for name in options.checks:
        if name not in NAMES:
            raise AssessmentError(f"no check {name!r}; there are: {', '.join(NAMES)}")
    wanted = {*(options.checks or NAMES), *options.wanted}
    return [name for name in NAMES if name in wanted]


def _plan(
    context: Context, names: Sequence[str], factory: Callable[[str], ScanCheck]
) -> tuple[list[CheckResult], list[ScanCheck]]:
    skipped, active = [], []
    for name in names:
        reason = _why_not(context, name)
        if reason is None:
            reason = factory(name).missing(context)
        if reason is None:
            active.append(factory(name))
        else:
            skipped.append(CheckResult(name, status="skipped", reason=reason))
    return skipped, active


def _why_not(context: Context, name: str) -> str | None:
    """Why a check does not apply to a kind of target, whatever the rows are."""
    if context.job.answered and name not in WITHOUT_MODEL:
        return "there are predictions, and no model to ask"
    if context.job.spec.parts and name in NO_PARTS:
        return NO_PARTS[name]
    return NO_NUMBER.get(name) if context.job.reading.number else None


def _identity(job: Job, units: Sequence[Unit]) -> dict[str, Any]:
    return {**job.identity(), "tools": _tools(), "units": [item.key for item in units]}


def _conclude(
    check: ScanCheck,
    context: Context,
    units: Sequence[Unit],
    outcomes: Mapping[str, Outcome],
) -> CheckResult:
    own = [unit.key for unit in units if unit.check == check.name]
    done = {key: outcomes[key] for key in own if key in outcomes}
    if own and not done:
        return CheckResult(check.name, status="skipped", reason=context.ended_by)
    result = check.conclude(context, done)
    if len(done) < len(own) and result.status == "done":
        reason = f"{len(done)} of {len(own)} units of work; {context.ended_by}"
        return replace(result, status="partial", reason=reason)
    return result


def _structure(
    inspection: Inspection | None, source: TargetSource
) -> tuple[CheckResult, ...]:
    if inspection is None:
        return ()
    return (structure_result(inspection, len(source.model)),)


def _refusal(
    request: ScanRequest, inspection: Inspection, began: datetime
) -> ScanReport:
    source, holdout = request.source, request.holdout
    return ScanReport(
        target=_target(source),
        data={"name": holdout.name, "rows": len(holdout), "sha256": holdout.sha256},
        options={"profile": request.options.profile, "seed": request.options.seed},
        tools=_tools(),
        results=_structure(inspection, source),
        times=_times(began, 0.0),
    )


def _target(source: TargetSource) -> dict[str, Any]:
    asked = "" if source.profile is None else Profile.load(source.profile).model
    return target_facts(
        source.name,
        source.kind,
        source.model,
        path=source.path,
        elsewhere=f"{source.url}\0{asked}",
    )


def _report(job: Job, results: tuple[CheckResult, ...]) -> ScanReport:
    space, options = job.space, {**vars(job.options)}
    for name in ("jobs", "max_minutes", "checks", "wanted", "norms"):
        del options[name]
    return ScanReport(
        target={
            **_target(job.source),
            "input": _input(job),
            "output": job.reading.output,
            "answers": job.reading.form,
            "decision": str(job.reading),
            "classes": list(job.reading.classes),
        },
        data={
            "name": job.dataset.name,
            "sha256": job.dataset.sha256,
            "rows": job.dataset.rows,
            "rows_used": len(job.rows),
            **_truth(job),
            "kind": "table" if space.table else "array",
            "ranges_from": space.ranges_from,
            "units": space.units,
        },
        options=options,
        tools=_tools(),
        results=results,
    )


def _input(job: Job) -> dict[str, Any]:
    """What the model takes; of several inputs each one."""
    told = {**vars(job.spec), "row_shape": list(job.shape)}
    parts = [vars(part) | {"parts": []} for part in told.pop("parts")]
    return told | ({"parts": parts} if parts else {})


def _truth(job: Job) -> dict[str, Any]:
    """What the rows' truth is: how many of each class, or where the numbers lie."""
    if job.reading.number:
        names = ("low", "median", "high")
        return {
            "truth": dict(zip(names, np.quantile(job.labels, [0, 0.5, 1]).tolist()))
        }
    count = np.bincount(job.labels, minlength=len(job.reading.classes))
    return {"rows_by_class": count.tolist()}


def _write(
    request: ScanRequest, report: ScanReport, began: datetime
) -> tuple[Report, ...]:
    evidence = (
        () if request.subject is None else report.evidence(request.subject, began)
    )
    if request.out is not None:
        for result in report.results:
            for name, content in result.files.items():
                write_atomic(request.out / name, content)
        write_atomic(request.out / SCAN_FILE, report.to_json())
        for item in evidence:
            write_atomic(request.out / report_file(item.kind), item.to_json())
    return evidence


def _times(began: datetime, seconds: float) -> dict[str, Any]:
    return {"started_at": format_time(began), "wall_s": round(seconds, 1)}


def _tools() -> dict[str, str]:
    names = (
        *("adversarial-robustness-toolbox", "numpy", "onnx", "onnxruntime"),
        *("scikit-learn", "scipy", "torch"),
    )
    versions = {name: importlib.metadata.version(name) for name in names}
    return {"python": platform.python_version(), **versions}
