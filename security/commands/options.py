"""Options that several subcommands share."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from security.settings.admission import AdmissionSettings
from security.settings.loading import load_settings

__all__ = ["Subparsers", "add_admission", "admission_settings"]

# argparse's own name for what add_subparsers returns is private.
Subparsers = argparse._SubParsersAction  # noqa: SLF001


def add_admission(parser: argparse.ArgumentParser) -> None:
    """Add --trust and --policy."""
    parser.add_argument(
        "--trust",
        type=Path,
        metavar="FILE",
        help="public keys by role (default: admission.trust of the settings)",
    )
    parser.add_argument(
        "--policy",
        type=Path,
        metavar="FILE",
        help="policy (default: admission.policy of the settings)",
    )


def admission_settings(args: argparse.Namespace) -> AdmissionSettings:
    """The settings, with what --trust and --policy say instead."""
    settings = load_settings().admission
    return replace(
        settings,
        trust=args.trust or settings.trust,
        policy=args.policy or settings.policy,
    )
