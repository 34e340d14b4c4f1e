"""`audit`: check the audit log offline."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from security.audit.verify import verify_directory
from security.commands.options import Subparsers
from security.errors import AuditError
from security.settings import load_settings

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "audit",
        help="verify the audit log",
        description="Verify the hash chains of an audit log. Exit code 1 and the first "
        "bad record if a record was altered, dropped, added, moved or cut.",
    )
    parser.add_argument(
        "directory",
        type=Path,
        nargs="?",
        help="default: audit.directory of the settings",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Verify; returns the exit code."""
    directory = args.directory or load_settings().audit.directory
    try:
        counts = verify_directory(directory)
    except AuditError as error:
        print(f"refused: {error}", file=sys.stderr)
        return 1
    for name, count in counts.items():
        print(f"{name}  {count} records")
    print(f"verified {sum(counts.values())} records in {len(counts)} files")
    return 0
