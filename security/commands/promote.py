"""`promote`: let a version answer by default, if the policy's requirements are met."""

from __future__ import annotations

import argparse
import json

from security.commands.models import add_default, current, promote
from security.commands.options import Subparsers
from security.settings.loading import load_settings

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "promote",
        help="let a version answer by default, if the evidence is good enough",
        description="Hold a version against what the policy's [promotion] needs: the "
        "gate, how it compares with the present default, how far both agreed in a "
        "trial, and what monitoring saw. Each requirement is printed with its value, "
        "interval, bound, margin and remedy. If all are met, requests that name no "
        "version are the version's own from then on; the former default stays loaded "
        "for `models rollback`. Exit code 1 if a requirement is not met, or a worker "
        "did not follow.",
    )
    add_default(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="only say what would be decided"
    )
    parser.add_argument(
        "--json", action="store_true", help="with --dry-run, print the whole record"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Decide, and promote; returns the exit code."""
    from security.admission.plan import PlanFolder  # noqa: PLC0415
    from security.commands.deciding import decide_promotion  # noqa: PLC0415

    settings = load_settings()
    if not args.dry_run:
        return promote(args.tag, settings, force=args.force, wait_s=args.wait)
    plan = current(PlanFolder(settings.deployment.directory), settings)
    decided = decide_promotion(args.tag, plan, settings, force=args.force)
    if args.json:
        print(json.dumps(decided.record, indent=1))
    else:
        print("\n".join(decided.lines()))
    return int(bool(decided.decision.refused))
