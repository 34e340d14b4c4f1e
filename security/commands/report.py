"""`report`: a scan.json in another format."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from models.errors import BundleError
from models.files import read_regular, write_atomic
from security.commands.options import Subparsers
from security.errors import AssessmentError

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "report",
        help="write a scan.json as HTML, SARIF or JUnit",
        description="Make a format of a finished scan again; `scan` writes them all.",
    )
    parser.add_argument("scan", type=Path, metavar="SCAN.json", help="of a scan")
    parser.add_argument("--format", choices=("html", "junit", "sarif"), required=True)
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="default: standard output"
    )
    parser.add_argument(
        "--fail-on",
        choices=("error", "warning", "note"),
        default="error",
        metavar="SEVERITY",
        help="JUnit: findings this bad are failures (default: %(default)s)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write it; returns the exit code."""
    from security.assessment.reporting.documents import render  # noqa: PLC0415  (scipy)
    from security.assessment.results.report import MAX_SCAN_BYTES  # noqa: PLC0415

    try:
        data = read_regular(args.scan, max_bytes=MAX_SCAN_BYTES, follow_links=True)
    except BundleError as error:
        raise AssessmentError(str(error)) from None
    document = render(data, args.format, fail_on=args.fail_on)
    if args.out is None:
        sys.stdout.buffer.write(document)
    else:
        write_atomic(args.out, document)
    return 0
