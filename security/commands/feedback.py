"""`feedback`: labels of earlier answers, from a file, without a server."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from models.names import NAME
from sealgate.tables import read_labels
from security.commands.options import Subparsers
from security.errors import MonitoringError
from security.settings.loading import load_settings

__all__ = ["add_parser", "run"]

# Kept in one step.
_AT_ONCE = 1000


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "feedback",
        help="take labels of earlier answers from a file",
        description="Take labels of earlier answers, each with the ticket that came "
        "with its answer, as servers take them from callers with the scope "
        "feedback:MODEL. Needs the deployment's monitoring key and store. Rows without "
        "a label are left out. Prints how many were accepted, and what became of the "
        "others.",
    )
    parser.add_argument(
        "file",
        type=Path,
        metavar="FILE",
        help=".csv or .jsonl, with ticket, label and perhaps group; or - for CSV on "
        "standard input",
    )
    parser.add_argument("--model", required=True, help="that the answers were of")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Take them; returns the exit code."""
    from security.monitoring.cohorts import (  # noqa: PLC0415  (not for --help)
        Feedback,
        open_cohorts,
    )

    if not NAME.fullmatch(args.model):
        raise MonitoringError(f"{args.model!r} is no model's name")
    labels = [
        Feedback(str(row["ticket"]), row["label"], str(row.get("group", "")))
        for row in read_labels(args.file)
    ]
    cohorts = open_cohorts(load_settings().monitoring, versions=list)
    if cohorts is None:
        raise MonitoringError("monitoring is off, or has no budget for labels")
    outcomes: Counter[str] = Counter()
    for at in range(0, len(labels), _AT_ONCE):
        outcomes.update(cohorts.accept(args.model, labels[at : at + _AT_ONCE]))
    for outcome, count in sorted(outcomes.items()):
        print(f"{outcome}: {count}")
    return 0 if outcomes.keys() <= {"accepted", "spent"} else 1
