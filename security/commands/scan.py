"""`scan`: attack a model file, a bundle or a running endpoint, and report."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.errors import BundleError
from models.files import read_regular, write_atomic
from security.commands.options import Subparsers, add_root, below_root
from security.commands.rows import (
    add_data_config,
    add_radius,
    add_train_data,
    configured_rows,
    data_config,
    file_predictions,
    file_rows,
    radii,
)
from security.commands.screen import Screen, add_color, show_findings, show_page
from security.commands.stages import Stages
from security.commands.wanted import add_policy, deployed_policy, wanted
from security.errors import AssessmentError
from security.inspection.findings import SEVERITIES

if TYPE_CHECKING:
    from models.bundle import Bundle
    from models.data.held_out import Holdout
    from models.manifest import Column
    from security.assessment.engine.run import Scan, ScanRequest
    from security.assessment.engine.runner import Progress
    from security.assessment.plan.options import Options
    from security.assessment.plan.source import TargetSource
    from security.assessment.targets.dataconfig import DataConfig

__all__ = ["add_parser", "run"]

# Arguments that are about a model.
_OF_MODELS = (
    *("target", "data", "train_data", "training", "client_profile", "output"),
    *("evidence", "policy", "ray"),
)


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "scan",
        help="attack a model file, a bundle or an endpoint, and report what broke",
        description="Inspect, question and attack a model, and write what was tried, "
        "what broke, and how sure that is. An interrupted scan goes on when the same "
        "command is run again. docs/assessment.md explains everything here. Exit code "
        "1: structure refuses the file, or --fail-on says so.",
    )
    parser.add_argument(
        "target", nargs="?", metavar="TARGET", help="FILE.onnx, a bundle, or a URL"
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="HOLDOUT",
        help="rows the model never saw, with classes: .npz, .csv, .parquet, or a "
        "training configuration (.toml), whose held-out rows are taken",
    )
    parser.add_argument(
        "--predictions",
        type=Path,
        metavar="FILE",
        help="instead of TARGET and --data: what a model answered, with columns truth, "
        "prediction, perhaps probability or score, and the groups of --data-config",
    )
    add_data_config(parser)
    add_train_data(parser)
    parser.add_argument(
        "--profile", choices=("quick", "standard", "thorough"), default="quick"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="default: NAME-scan, in this folder"
    )
    parser.add_argument(
        "--training",
        type=Path,
        metavar="CONFIG.toml",
        help="the training's configuration: its rows are attacked by shadow models of "
        "the same recipe",
    )
    parser.add_argument(
        "--client-profile",
        type=Path,
        metavar="FILE",
        help="for a URL: as the SDK reads",
    )
    _add_budgets(parser)
    _add_choices(parser)
    parser.set_defaults(run=run)


def _add_budgets(parser: argparse.ArgumentParser) -> None:
    budgets = parser.add_argument_group("budgets")
    budgets.add_argument("--max-minutes", type=float, metavar="M", help="start no more")
    budgets.add_argument(
        "--max-queries", type=int, metavar="N", help="rows an endpoint is asked"
    )
    budgets.add_argument("--max-rows", type=int, metavar="N", help="rows attacked")
    budgets.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help="processes (default: one per processor, where there is work for long)",
    )
    budgets.add_argument(
        "--ray", action="store_true", help="run on a Ray cluster, if ray is installed"
    )


def _add_choices(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, default=0, help="%(default)s")
    add_radius(
        parser,
        "linf",
        "of the stated robust accuracy; several, each stated (policies read the "
        "first); or the column of the data that has each row's own",
    )
    add_radius(parser, "l2", "the same, for L2")
    parser.add_argument(
        "--check", action="append", default=[], metavar="NAME", help="run only this one"
    )
    parser.add_argument(
        "--output", metavar="NAME", help="the model's output with scores or labels"
    )
    add_policy(parser, "with --evidence the deployment's, if it has one")
    add_root(parser)
    parser.add_argument(
        "--fail-on",
        choices=SEVERITIES,
        metavar="SEVERITY",
        help="exit code 1 for findings this bad: error, warning or note",
    )
    parser.add_argument(
        "--evidence",
        action="store_true",
        help="for a bundle: write the reports into it, for `sign`",
    )
    parser.add_argument(
        "--open", action="store_true", help="show scan.html in a browser when done"
    )
    add_color(parser)


def run(args: argparse.Namespace) -> int:
    """Scan; returns the exit code."""
    from models.bundle import report_file  # noqa: PLC0415

    try:
        with Stages() as stages:
            request = _request(args)
            from security.assessment.engine.run import run_scan  # noqa: PLC0415

            scan = run_scan(request, _told(stages))
            stages("documents", 0.0)
            out = _documents(request, scan, args.fail_on)
    except KeyboardInterrupt:
        print("finished work is kept: the same command goes on", file=sys.stderr)
        raise
    _print(scan, out, Screen(color=not args.no_color))
    if args.evidence:
        for item in scan.evidence:
            write_atomic(Path(args.target) / report_file(item.kind), item.to_json())
    if args.open:
        show_page(out / "scan.html")
    return _exit_code(scan, args.fail_on)


def _documents(request: ScanRequest, scan: Scan, fail_on: str | None) -> Path:
    from security.assessment.reporting.documents import (  # noqa: PLC0415  (seconds)
        write_documents,
    )

    out = request.out or Path()
    write_documents(out, scan.report.to_json(), fail_on=fail_on or "error")
    return out


def _request(args: argparse.Namespace) -> ScanRequest:
    # What cannot be scanned is refused before torch is imported, which takes seconds.
    from models.bundle import Bundle  # noqa: PLC0415
    from security.training.config import load_config  # noqa: PLC0415

    if args.training is not None:
        load_config(args.training)
    config = data_config(args)
    if args.predictions is not None:
        return _predicted(args, config)
    if args.target is None or args.data is None:
        raise AssessmentError("give TARGET and --data, or --predictions")
    found = _read(args)
    if args.ray and found is None:
        raise AssessmentError("--ray is for files: one process asks an endpoint")
    bundle = found if isinstance(found, Bundle) else None
    if args.evidence and bundle is None:
        raise AssessmentError("--evidence is for bundles")
    needed = _wanted(args, bundle)
    model = None if bundle is None else bundle.manifest
    columns = ((), ()) if model is None else (model.columns, model.text)
    own = [radii(args, norm) for norm in ("linf", "l2")]
    beside = tuple(dict.fromkeys(item for item in own if isinstance(item, str)))
    holdout = _rows(args, args.data, config, columns, beside=beside)
    extras: dict[str, Any] = {}
    if args.train_data is not None:
        given = _rows(args, args.train_data, config, columns, train=True)
        extras["training data"] = given
    from security.assessment.engine.run import ScanRequest  # noqa: PLC0415  (as above)

    options = replace(_options(args), **needed)
    source = _source(args, found)
    return ScanRequest(
        source=source,
        holdout=holdout,
        options=options,
        config=config,
        out=args.out or Path(f"{Path(source.name).stem}-scan"),
        subject=None if bundle is None else bundle.subject,
        ray=args.ray,
        extras=extras | _training(args, options),
    )


def _options(args: argparse.Namespace) -> Options:
    from security.assessment.plan.options import Options  # noqa: PLC0415  (as above)

    return Options(
        profile=args.profile,
        seed=args.seed,
        jobs=args.jobs,
        max_minutes=args.max_minutes,
        max_queries=args.max_queries,
        max_rows=args.max_rows,
        radius_linf=radii(args, "linf"),
        radius_l2=radii(args, "l2"),
        checks=tuple(args.check),
        output=args.output,
        decision=args.decision,
    )


def _wanted(args: argparse.Namespace, bundle: Bundle | None) -> dict[str, Any]:
    """What evidence for a policy needs: of --policy, or for --evidence the deployed."""
    from security.admission.policy import load_policy  # noqa: PLC0415

    policy = None if args.policy is None else load_policy(args.policy)
    if args.policy is None and args.evidence:
        policy = deployed_policy()
    if policy is None:
        return {}
    if bundle is None:
        raise AssessmentError("--policy is for bundles, whose evidence it is about")
    # A scan has both norms anyway.
    return {"wanted": wanted(policy, bundle.manifest.name)["wanted"]}


def _predicted(args: argparse.Namespace, config: DataConfig) -> ScanRequest:
    """What is asked for where there is no model."""
    for name in _OF_MODELS:
        if getattr(args, name) not in (None, False):
            shown = "TARGET" if name == "target" else f"--{name.replace('_', '-')}"
            raise AssessmentError(f"{shown}: with --predictions there is no model")
    path: Path = args.predictions
    holdout = file_predictions(path, config)
    from security.assessment.engine.run import ScanRequest  # noqa: PLC0415  (as above)
    from security.assessment.plan.source import TargetSource  # noqa: PLC0415

    return ScanRequest(
        source=TargetSource("predictions", path.name),
        holdout=holdout,
        options=_options(args),
        config=config,
        out=args.out or Path(f"{path.stem}-scan"),
    )


def _training(args: argparse.Namespace, options: Options) -> dict[str, Any]:
    """For checks that train: the recipe and the mechanism of --training."""
    if args.training is None:
        return {}
    bundle = _bundle(args)
    from security.commands import scan_training  # noqa: PLC0415  (torch)

    extras = {"training": scan_training.load_training(args.training, bundle)}
    # Only where it is asked for: its curve takes a moment.
    if args.profile == "thorough" or "canaries" in {*options.checks, *options.wanted}:
        return extras | {
            "mechanism": scan_training.load_mechanism(args.training, bundle)
        }
    return extras


def _read(args: argparse.Namespace) -> Bundle | bytes | None:
    """The target, read within bounds: a bundle, or a model file; None for a URL."""
    from models.bundle import MANIFEST_FILE, BundleLimits, read_bundle  # noqa: PLC0415

    if args.target.startswith(("http://", "https://")):
        return None
    if args.client_profile is not None:
        raise AssessmentError("--client-profile is for URLs")
    path = Path(args.target)
    if path.is_dir() or (path / MANIFEST_FILE).exists():
        return read_bundle(path)
    try:
        limit = BundleLimits().max_model_bytes
        return read_regular(path, max_bytes=limit, follow_links=True)
    except BundleError as error:
        # Nothing was scanned: that is no finding.
        raise AssessmentError(str(error)) from None


def _source(args: argparse.Namespace, found: Bundle | bytes | None) -> TargetSource:
    from models.bundle import MODEL_FILE, Bundle  # noqa: PLC0415
    from security.assessment.plan.source import TargetSource  # noqa: PLC0415

    if found is None:
        return TargetSource(
            "remote", "endpoint", url=args.target, profile=args.client_profile
        )
    path = Path(args.target)
    if isinstance(found, Bundle):
        place = below_root(path / MODEL_FILE, args.root)
        return replace(TargetSource.of(found), path=place)
    return TargetSource("onnx", path.name, found, path=below_root(path, args.root))


def _bundle(args: argparse.Namespace) -> Path | None:
    """The folder of the target, if it is a bundle."""
    from models.bundle import MANIFEST_FILE  # noqa: PLC0415

    path = Path(args.target)
    return path if (path / MANIFEST_FILE).exists() else None


def _rows(
    args: argparse.Namespace,
    path: Path,
    config: DataConfig,
    columns: tuple[tuple[Column, ...], tuple[str, ...]],
    *,
    train: bool = False,
    beside: tuple[str, ...] = (),
) -> Holdout:
    """Rows of a file; of a training configuration, held-out ones or its own."""
    if path.suffix != ".toml":
        return file_rows(path, config, *columns, beside)
    if beside:
        raise AssessmentError("a column of radii is for rows of a file")
    from models.data.held_out import holdout_of  # noqa: PLC0415  (as above)

    trained, held_out = configured_rows(path, _bundle(args))
    return holdout_of(trained if train else held_out)


def _exit_code(scan: Scan, fail_on: str | None) -> int:
    from security.assessment.results.rules import severity_at_least  # noqa: PLC0415

    if scan.refused:
        return 1
    if fail_on is None:
        return 0
    return int(
        any(severity_at_least(f.severity, fail_on) for f in scan.report.findings)
    )


def _print(scan: Scan, out: Path, screen: Screen) -> None:
    """Findings and what to do about them, then figures."""
    show_findings(screen, scan.report.findings)
    if "decision" in scan.report.target:
        screen.line(scan.report.target["decision"])
    for result in scan.report.results:
        state = result.status + (f": {result.reason}" if result.reason else "")
        doubt = () if result.reliable else (("; NOT RELIABLE", "error"),)
        screen.line((f"{result.name:<11} ", "head"), state, *doubt)
        screen.figures(
            [
                (name, metric.value, metric.low, metric.high, metric.n)
                for name, metric in result.metrics.items()
                if metric.low is not None and metric.high is not None
            ]
        )
    if "queries" in scan.report.times:
        screen.line(f"{'asked':<12}{scan.report.times['queries']} rows, over all runs")
    if not scan.complete:
        screen.line(f"{'budget':<12}ended first; the same command with more goes on")
    screen.line(f"{'wrote':<12}{out}: scan.json, scan.html, scan.sarif, scan.junit.xml")


def _told(stages: Stages) -> Callable[[Progress], None]:
    """A scan's progress, as stages are shown."""

    def tell(progress: Progress) -> None:
        found = progress.latest.values.get("found", "") if progress.latest else ""
        done, total = progress.done, progress.total
        note = f"{done} of {total}: {progress.running} {found}".strip()
        stages("scan", done / max(1, total), "", note, progress.left_s)

    return tell
