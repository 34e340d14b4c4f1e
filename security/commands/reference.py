"""`reference`: what a model's inputs and answers are held against, as evidence."""

from __future__ import annotations

import argparse
from pathlib import Path

from models.bundle import Bundle, read_bundle, report_file
from models.files import write_atomic
from models.report import Report
from security.commands.options import Subparsers
from security.commands.stages import Stages
from security.settings.loading import load_settings

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "reference",
        help="write a bundle's reference for monitoring",
        description="Write evidence/reference.json: histograms of the inputs and "
        "answers that are usual, which a deployed model is held against. Of public "
        "data they are the held-out rows'. Of personal data they are the training "
        "rows', with noise, and the privacy ledger books what that costs. Sign it "
        "with `sign --kind reference`.",
    )
    parser.add_argument("bundle", metavar="BUNDLE", type=Path)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--config",
        metavar="CONFIG.toml",
        type=Path,
        help="the configuration that trained it: names the data",
    )
    source.add_argument(
        "--public-rows",
        metavar="FILE",
        type=Path,
        help="usual rows that anyone may know, a table with the model's columns: for "
        "models that were imported, too. They are counted as they are, so never rows "
        "of persons",
    )
    parser.add_argument(
        "--epsilon",
        type=float,
        default=0.5,
        help="what it may cost, of personal data (default: %(default)s)",
    )
    parser.add_argument(
        "--delta", type=float, default=1e-6, help="at this delta (default: %(default)s)"
    )
    parser.add_argument(
        "--season",
        choices=("month", "weekday"),
        help="a reference for each month, or for each weekday of daily windows",
    )
    parser.add_argument(
        "--season-column",
        metavar="COLUMN",
        default="",
        help="the feature that has it: 1 to 12, or 1 (Monday) to 7",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the report; returns the exit code."""
    with Stages():
        report = _report(args, read_bundle(args.bundle))
    path = args.bundle / report_file(report.kind)
    write_atomic(path, report.to_json())
    cost = report.metrics.get("epsilon")
    print(f"{'reference':<12}{path}")
    print(
        f"{'epsilon':<12}{'none: public rows' if cost is None else f'{cost.value:g}'}"
    )
    return 0


def _report(args: argparse.Namespace, bundle: Bundle) -> Report:
    # Torch takes seconds to import; `--help` and every other command go without.
    from security.training import reference  # noqa: PLC0415
    from security.training.data import read_config  # noqa: PLC0415
    from security.training.ledger import Ledger  # noqa: PLC0415

    season = reference.Season(args.season or "none", args.season_column)
    if args.public_rows is not None:
        return reference.public_reference(bundle, args.public_rows, season=season)
    return reference.make_reference(
        bundle,
        read_config(args.config, args.bundle),
        ledger=Ledger(load_settings().home / "ledger"),
        epsilon=args.epsilon,
        delta=args.delta,
        season=season,
    )
