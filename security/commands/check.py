"""`check`: every mistake of a training configuration, or what it would give."""

from __future__ import annotations

import argparse
from pathlib import Path

from security.commands.options import Subparsers
from security.commands.train import check

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "check",
        help="list a training configuration's mistakes, or what it would give",
        description="Hold a training configuration to its rules and its data to the "
        "configuration, and list every mistake with its line. Without any, say what "
        "`train` would do: noise, epsilon, what the ledger would hold, time and "
        "memory. Nothing is booked, written or trained. Exit code 2: a mistake.",
    )
    parser.add_argument("config", metavar="CONFIG.toml", type=Path)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Check; returns the exit code."""
    return check(args.config)
