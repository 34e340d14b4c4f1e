"""`compare`: what got better or worse between two reports."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from security.commands.options import Subparsers

if TYPE_CHECKING:
    from security.assessment.reporting.comparison import Comparison

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "compare",
        help="what got better or worse between two reports",
        description="Compare two scan.json, or two reports of evidence of one kind. "
        "Exit code 1 if a metric got worse by more than chance, a finding appeared, "
        "or a check is no longer done; so a regression stops a pipeline.",
    )
    parser.add_argument("before", type=Path, metavar="BEFORE", help="the older report")
    parser.add_argument("after", type=Path, metavar="AFTER", help="the newer one")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--all", action="store_true", help="also metrics that stayed the same"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Compare; returns the exit code."""
    from security.assessment.results.report import read_scan  # noqa: PLC0415  (seconds)

    before, after = read_scan(args.before), read_scan(args.after)
    from security.assessment.reporting.comparison import compare  # noqa: PLC0415  (scipy)

    result = compare(before, after)
    if args.json:
        print(json.dumps(_document(result), indent=1))
    else:
        _print(result, everything=args.all)
    return int(result.worse)


def _document(result: Comparison) -> dict[str, Any]:
    return {
        "worse": result.worse,
        "changes": [vars(change) for change in result.changes],
        "appeared": list(result.appeared),
        "disappeared": list(result.disappeared),
        "missing": list(result.missing),
        "notes": list(result.notes),
    }


def _print(result: Comparison, *, everything: bool) -> None:
    for note in result.notes:
        print(f"{'note':<15}{note}")
    for change in result.changes:
        if everything or change.direction != "same":
            test = f" ({change.test})" if change.test else ""
            chance = "" if change.p is None else f"  p={change.p:.2g}{test}"
            why = f"  ({change.reason})" if change.reason else ""
            print(
                f"{change.direction:<15}{change.check}.{change.metric} "
                f"{change.before:.4g} -> {change.after:.4g}{chance}{why}"
            )
    for item in result.appeared:
        print(f"{'appeared':<15}{item['severity']} {item['rule']}: {item['message']}")
    for item in result.disappeared:
        print(
            f"{'disappeared':<15}{item['severity']} {item['rule']}: {item['message']}"
        )
    for name in result.missing:
        print(f"{'missing':<15}check {name} was done before, and is not any more")
    same = sum(change.direction == "same" for change in result.changes)
    print(f"{'same':<15}{same} of {len(result.changes)} metrics within chance")
