"""`agreement`: sign what the running workers have counted of a trial."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from models.report import Metric, Report, format_time
from security.admission.gate import Admission
from security.admission.observations import write_observation
from security.admission.plan import PlanFolder
from security.admission.policy import load_policy
from security.admission.steps import CLOCK_SKEW
from security.admission.trust import ROLES
from security.audit.journal import record_operation
from security.commands.models import current, running
from security.commands.options import Subparsers
from security.commands.signing import add_signing, signers
from security.errors import AdmissionRefused, PlanError
from security.settings.loading import Settings, load_settings

__all__ = ["Counts", "add_parser", "counts_of", "run"]

_COUNTS = ("same", "different", "failed", "skipped")
_SUMS = ("default_s", "tried_s", "log_ratio", "log_ratio_squares")
_TIMES = ("since", "last")
_MOST = 1 << 53


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "agreement",
        help="sign how far a version on trial agrees with the default",
        description="Add up what the running workers of this deployment have counted "
        "of a version that is tried beside the default: requests on which both gave "
        "the same answer, and how long each took. The signed report is kept beside the "
        "plan, for `promote`. Counts are since the trial began in each worker; a "
        "worker that has ended took its own along. Exit code 1 if nothing was counted.",
    )
    parser.add_argument("tag", help="full tag of the version on trial, name:version")
    parser.add_argument(
        "--trial",
        choices=("shadow", "canary"),
        default="shadow",
        help="which kind of trial (default: shadow)",
    )
    parser.add_argument("--role", choices=ROLES, default="monitor")
    add_signing(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Add up and sign; returns the exit code."""
    settings = load_settings()
    name, _, _ = args.tag.partition(":")
    _check_role(args.role, name, settings)
    from security.admission.hooks import open_tag  # noqa: PLC0415  (bentoml)

    folder = PlanFolder(settings.deployment.directory)
    model = current(folder, settings).models.get(name)
    if model is None:
        raise PlanError(f"{name} is not served")
    tried = open_tag(args.tag, settings)
    default = open_tag(f"{name}:{model.default}", settings)
    workers = running(folder)
    for worker in workers:
        for table in ("refused", "withdrawn"):
            if why := worker.report[table].get(args.tag):
                raise PlanError(f"{args.tag} is {table} in worker {worker.name}: {why}")
    trials = [trial for worker in workers for trial in worker.report.get("trials", ())]
    counts = counts_of(trials, args.trial, tried, default)
    report = _report(counts, args.trial, tried, default)
    path = write_observation(
        settings.deployment.directory, report, signers(args, args.role)
    )
    record = {
        "action": "agreement",
        "model": args.tag,
        "model_sha256": report.subject.root_sha256,
    }
    record_operation(settings.audit, [record])
    for name, metric in report.metrics.items():
        print(f"{name:<20}{_line(metric)}")
    print(f"signed as {args.role}: {path}")
    return 0


@dataclass(frozen=True)
class Counts:
    """What the workers of a deployment have counted of a trial, added up.

    Attributes:
        workers: how many have counted something.
        same, different, failed, skipped: requests.
        default_s, tried_s: seconds over the requests that were compared.
        log_ratio, log_ratio_squares: sums of ln(tried / default), and of its squares.
        since, last: Unix seconds of the first begin and of the last request.
    """

    workers: int
    same: int
    different: int
    failed: int
    skipped: int
    default_s: float
    tried_s: float
    log_ratio: float
    log_ratio_squares: float
    since: float
    last: float


def counts_of(
    trials: Sequence[Any], kind: str, tried: Admission, default: Admission
) -> Counts:
    """Add up the workers' tallies of one trial, by the digests of both versions.

    Args:
        trials: as the workers reported them; what others wrote there is refused.
        kind: "shadow" or "canary".
        tried: the version on trial.
        default: the default.

    Raises:
        AdmissionRefused: check 45, nothing was counted of these very bytes.
        PlanError: a worker's report is malformed.
    """
    wanted = {
        "kind": kind,
        "root_sha256": tried.bundle.subject.root_sha256,
        "beside_sha256": default.bundle.subject.root_sha256,
    }
    known = [trial for trial in trials if isinstance(trial, Mapping)]
    ours = [
        trial
        for trial in known
        if all(trial.get(key) == value for key, value in wanted.items())
    ]
    counted = [parsed for parsed in map(_parsed, ours) if parsed["last"]]
    if not any(item["same"] + item["different"] + item["failed"] for item in counted):
        tag, beside = tried.bundle.manifest.tag, default.bundle.manifest.tag
        raise AdmissionRefused(
            45, f"no running worker has compared {tag} with {beside} as a {kind}"
        )
    sums = {key: sum(item[key] for item in counted) for key in (*_COUNTS, *_SUMS)}
    return Counts(
        workers=len(counted),
        since=min(item["since"] for item in counted),
        last=min(time.time(), max(item["last"] for item in counted)),
        **sums,
    )


def _parsed(trial: Mapping[str, Any]) -> dict[str, Any]:
    """A tally whose numbers can be what they say."""
    counts: list[Any] = [trial.get(name) for name in _COUNTS]
    numbers: list[Any] = [trial.get(name) for name in (*_SUMS, *_TIMES)]
    good = all(type(item) is int and 0 <= item < _MOST for item in counts) and all(
        type(item) in (int, float) and abs(item) < _MOST for item in numbers
    )
    latest = time.time() + CLOCK_SKEW.total_seconds()
    seconds, times = numbers[:2], numbers[-2:]
    if not good or min(seconds) < 0 or min(times) < 0 or max(times) > latest:
        raise PlanError("a worker's report has a trial that cannot be")
    return dict(trial)


def _check_role(role: str, name: str, settings: Settings) -> None:
    policy = load_policy(settings.admission.policy)
    needed = policy.promotion_of(name).of("agreement")
    if needed is not None and role not in needed.signers:
        raise AdmissionRefused(40, f"the policy does not let {role} sign agreement")


def _report(counts: Counts, kind: str, tried: Admission, default: Admission) -> Report:
    from importlib.metadata import version  # noqa: PLC0415  (slow to import)

    beside = default.bundle.subject
    start, end = (
        format_time(datetime.fromtimestamp(moment, UTC))
        for moment in (counts.since, counts.last)
    )
    return Report(
        kind="agreement",
        created_at=datetime.now(UTC).replace(microsecond=0),
        subject=tried.bundle.subject,
        tools={name: version(name) for name in ("numpy", "onnxruntime", "scipy")},
        conditions={
            "trial": kind,
            "beside": beside.version,
            "beside_sha256": beside.root_sha256,
            "window_start": start,
            "window_end": end,
            "workers": counts.workers,
            "unit": "request",
            "disagreement_interval": "wilson",
            "latency_ratio_interval": "student_of_logarithm",
        },
        metrics=dict(_metrics(counts)),
        details={name: getattr(counts, name) for name in _COUNTS},
    )


def _metrics(counts: Counts) -> Iterator[tuple[str, Metric]]:
    from security.assessment.results import intervals  # noqa: PLC0415  (scipy)

    compared = counts.same + counts.different
    ran = compared + counts.failed
    yield "failed", intervals.proportion(counts.failed, ran)
    yield "skipped", intervals.proportion(counts.skipped, ran + counts.skipped)
    if compared:
        yield "disagreement", intervals.proportion(counts.different, compared)
        ratio = counts.log_ratio, counts.log_ratio_squares
        yield "latency_ratio", intervals.geometric_mean(compared, *ratio)
        for name, seconds in (
            ("latency_ms", counts.tried_s),
            ("default_latency_ms", counts.default_s),
        ):
            yield name, Metric(1e3 * seconds / compared, n=compared)


def _line(metric: Metric) -> str:
    interval = ""
    if metric.low is not None and metric.high is not None:
        interval = f" [{metric.low:.4g}, {metric.high:.4g}]"
    return f"{metric.value:.4g}{interval} of {metric.n}"
