"""`batch`: a file of rows of any length, answered by an admitted model."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from security.commands.options import Subparsers, add_admission, admission_settings
from security.commands.stages import Stages
from security.errors import AdmissionRefused, BatchError, QuotaError
from security.settings.admission import AdmissionSettings
from security.settings.loading import Settings, load_settings

if TYPE_CHECKING:
    from security.admission.gate import Admission
    from security.audit.records import Scalar
    from security.batch.job import Job, Progress, Summary

__all__ = ["add_parser", "run"]

_KINDS = (".parquet", ".csv", ".jsonl")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
MAX_PART_ROWS = 10_000_000


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "batch",
        help="answer the rows of large files with an admitted model",
        description="Answer the rows of a Parquet or CSV file, or of a folder of them, "
        "with a model that the gate admits now, under its output policy. Rows are "
        "booked with the job's own quotas and recorded in the audit log; memory does "
        "not grow with them. A job that was stopped goes on with --resume. Exit code "
        "1: the gate or a quota refuses.",
    )
    parser.add_argument(
        "model", help="folder of a bundle, or name:version in the model store"
    )
    parser.add_argument(
        "--input",
        type=Path,
        required=True,
        metavar="FILE",
        help=".parquet or .csv, or a folder of such files",
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="a .parquet, .csv or .jsonl file; otherwise a folder of Parquet files",
    )
    parser.add_argument(
        "--keep",
        action="append",
        default=[],
        metavar="COLUMN",
        help="column of the input that goes with the answers, an id say; repeatable",
    )
    _add_ways(parser)
    add_admission(parser)
    parser.set_defaults(run=run)


def _add_ways(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on where the same job was stopped, or begin it",
    )
    parser.add_argument(
        "--skip-bad",
        type=Path,
        metavar="FILE",
        help="leave out rows that the model does not take, and list them in a CSV file",
    )
    parser.add_argument(
        "--job", default="batch", metavar="NAME", help="whose quotas are charged"
    )
    parser.add_argument(
        "--part-rows",
        type=int,
        default=250_000,
        metavar="N",
        help="rows that are done, booked and recorded together (default: %(default)s)",
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--processes", type=int, metavar="N", help="default: one per processor"
    )
    where.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="run on a Ray cluster: its address, auto, or local for one of its own",
    )
    parser.add_argument("--json", action="store_true", help="print the record as JSON")


def run(args: argparse.Namespace) -> int:
    """Do the job, or the rest of it; returns the exit code."""
    from security.admission.policy import load_policy  # noqa: PLC0415

    _check(args)
    settings, rules = load_settings(), admission_settings(args)
    admission = _admitted(args, settings, rules)
    job = _job(args, admission, load_policy(rules.policy).resource.sha256)
    from security.batch.job import run_job  # noqa: PLC0415  (onnxruntime)
    from security.batch.running import Where  # noqa: PLC0415  (as above)

    where = Where(args.processes or _processors(), args.ray)
    try:
        with Stages() as stages:
            summary = run_job(job, settings, where, _told(stages))
    except QuotaError as error:
        return _spent(error, args)
    _print(args, summary)
    return 0


def _check(args: argparse.Namespace) -> None:
    """Refuse options that mean nothing.

    Raises:
        BatchError: names the option.
    """
    if args.out.suffix and args.out.suffix.lower() not in _KINDS:
        raise BatchError(f"--out: a folder, or a file of {', '.join(_KINDS)}")
    if not _NAME.fullmatch(args.job):
        raise BatchError("--job: letters, digits, dots, - and _, at most 63")
    if not 1 <= args.part_rows <= MAX_PART_ROWS:
        raise BatchError(f"--part-rows: 1 to {MAX_PART_ROWS}")
    if args.processes is not None and args.processes < 1:
        raise BatchError("--processes: 1 at least")
    if args.skip_bad is not None and not args.skip_bad.parent.is_dir():
        raise BatchError(f"--skip-bad: {args.skip_bad.parent} is no folder")
    if not args.input.exists():
        raise BatchError(f"--input: {args.input} is not there")
    source = args.input.resolve()
    for option, path in (("--out", args.out), ("--skip-bad", args.skip_bad)):
        if path is not None and source.is_dir() and path.parent.resolve() == source:
            # It would be input itself when the job goes on.
            raise BatchError(f"{option}: {path} is in the folder of the input")


def _admitted(
    args: argparse.Namespace, settings: Settings, rules: AdmissionSettings
) -> Admission:
    """The model, by the same gate as a server's, opened; a refusal is on record.

    Raises:
        SealgateError: it is refused, or cannot be read.
    """
    from security.admission.confidential import open_admission  # noqa: PLC0415
    from security.admission.doors import verify_bundle  # noqa: PLC0415
    from security.audit.journal import record_operation  # noqa: PLC0415
    from security.commands.verify import read_model  # noqa: PLC0415

    bundle = read_model(args.model)
    try:
        admission = verify_bundle(bundle, rules)
        if args.ray is not None and admission.bundle.sealed:
            raise BatchError(
                "a sealed model stays on this machine: a Ray cluster may write to disk "
                "what it holds"
            )
        return open_admission(admission, settings.admission.model_key)
    except AdmissionRefused as error:
        refusal: dict[str, Scalar] = {
            "action": "batch",
            "model": bundle.manifest.tag,
            "outcome": "refuse",
            "reason": f"check-{error.check}",
        }
        record_operation(settings.audit, [refusal])
        raise


def _job(args: argparse.Namespace, admission: Admission, policy_sha256: str) -> Job:
    from security.batch.job import Job  # noqa: PLC0415  (onnxruntime)

    return Job(
        admission=admission,
        policy_sha256=policy_sha256,
        source=args.input,
        out=args.out,
        kind=args.out.suffix.lower() or ".parquet",
        name=args.job,
        keep=tuple(dict.fromkeys(args.keep)),
        skip_bad=args.skip_bad,
        part_rows=args.part_rows,
        resume=args.resume,
    )


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


def _told(stages: Stages) -> Progress:
    """A job's progress, as stages are shown."""
    began = time.monotonic()

    def tell(done: int, total: int, now: int) -> None:
        rate = now / max(time.monotonic() - began, 1e-9)
        note = f"{done:,} of {total:,} rows, {rate:,.0f} a second"
        stages("batch", done / total, "", note, (total - done) / max(rate, 1e-9))

    return tell


def _spent(error: QuotaError, args: argparse.Namespace) -> int:
    """One line about a quota that is spent."""
    after = "no window has as many"
    if error.retry_after_s is not None:
        after = f"--resume goes on in {error.retry_after_s} s"
    print(
        f"refused: job {args.job!r} has spent {error}; what is done stays, {after}",
        file=sys.stderr,
    )
    return 1


def _print(args: argparse.Namespace, summary: Summary) -> None:
    record, seconds = summary.record, summary.seconds
    done = int(record["rows"]) + int(record["skipped"]) - summary.begun
    if args.json:
        more: dict[str, Any] = {
            "resumed_rows": summary.begun,
            "seconds": round(seconds, 3),
            "ignored_columns": list(summary.ignored),
        }
        print(json.dumps({**record, **more}))
        return
    if summary.ignored:
        print(f"ignored columns: {', '.join(summary.ignored)}", file=sys.stderr)
    print(f"{record['model']}  root sha256:{record['root_sha256']}")
    skipped = f", {record['skipped']:,} refused" if record["skipped"] else ""
    print(f"{record['rows']:,} rows answered{skipped}, {done:,} now, {seconds:.1f} s")
    print(f"wrote {args.out}")
