"""`monitor`: what was released of the models that are served."""

from __future__ import annotations

import argparse
from pathlib import Path

from security.admission.trust import ROLES
from security.commands.options import Subparsers
from security.commands.screen import add_color
from security.commands.signing import add_signing

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "monitor",
        help="show what monitoring found of the models that are served",
        description="Read what was released of the versions that answer, hold it "
        "against their signed references, and show each window. It costs no budget. "
        "Exit codes: 0 nothing drifts; 4 something does; 1 it cannot be told, for "
        "instance because nothing was released lately, or a version is refused; 2 "
        "usage or error, an event that was not taken included.",
    )
    parser.add_argument(
        "models",
        nargs="*",
        metavar="MODEL",
        help="name, or name:version (default: every version that answers by default "
        "or as a canary)",
    )
    parser.add_argument("--json", action="store_true", help="print the documents")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page")
    parser.add_argument(
        "--sign",
        action="store_true",
        help="sign a monitoring report about each version that answers by default, "
        "and keep it beside the plan, for `promote` and `retrain --if-drifted`",
    )
    parser.add_argument(
        "--new-ledger",
        action="store_true",
        help="make the ledger of releases in a new Redis, once, and nothing else",
    )
    parser.add_argument("--role", choices=ROLES, default="monitor")
    add_signing(parser)
    _add_webhook(parser)
    add_color(parser)
    parser.set_defaults(run=run)


def _add_webhook(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--webhook",
        metavar="URL",
        help="send a CloudEvent about each version: https, or http to this machine",
    )
    parser.add_argument(
        "--webhook-token-file",
        type=Path,
        metavar="FILE",
        help="bearer token to show there, 0600",
    )
    parser.add_argument(
        "--webhook-ca",
        type=Path,
        metavar="FILE",
        help="who may certify its host (default: the system's)",
    )


def run(args: argparse.Namespace) -> int:
    """Show, and tell whom the options name; returns the exit code."""
    from security.commands import watch  # noqa: PLC0415  (not for --help)

    return watch.run(args)
