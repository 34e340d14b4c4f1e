"""`assess`: structure, quality, robustness and membership of a bundle's model."""

from __future__ import annotations

import argparse
from pathlib import Path

from security.commands.options import Subparsers

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "assess",
        help="attack a bundle's model and write what it withstands",
        description="Inspect a bundle's model, measure it on held-out rows, attack it "
        "with PGD and membership inference, and write the reports into the bundle. "
        "Exit code 1: written, and a check in them failed.",
    )
    parser.add_argument("bundle", metavar="BUNDLE", type=Path)
    parser.add_argument(
        "--config",
        metavar="CONFIG.toml",
        type=Path,
        required=True,
        help="the training configuration, which fixes the held-out rows",
    )
    parser.add_argument(
        "--beside",
        metavar="BUNDLE",
        type=Path,
        help="another model of the same rows, attacked alike: what adversarial "
        "training gained and lost is in the robustness report",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Assess; returns the exit code."""
    # Torch and ART take seconds to import; `--help` and other commands go without.
    from security.assessment.run import assess_bundle  # noqa: PLC0415
    from security.commands.stages import Stages  # noqa: PLC0415
    from security.training.data import load_split, read_config  # noqa: PLC0415

    train, holdout = load_split(read_config(args.config, args.bundle))
    with Stages() as stages:
        reports = assess_bundle(args.bundle, train, holdout, stages, beside=args.beside)
    failed = [
        check for report in reports for check in report.checks if not check.passed
    ]
    for check in failed:
        print(f"{'finding':<12}{check.id}: {check.message}")
    return 1 if failed else 0
