"""Options that several subcommands share."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path

from security.errors import SettingsError
from security.settings.admission import AdmissionSettings
from security.settings.loading import Settings, load_settings

__all__ = [
    "Subparsers",
    "add_admission",
    "add_tracking",
    "admission_settings",
    "check_tracking",
    "variables",
]

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


def add_tracking(parser: argparse.ArgumentParser) -> None:
    """Add --tracking-uri."""
    parser.add_argument(
        "--tracking-uri",
        metavar="URI",
        help="MLflow's server (default: MLFLOW_TRACKING_URI)",
    )


def check_tracking(args: argparse.Namespace, *, used: bool, by: str) -> None:
    """Refuse --tracking-uri where nothing asks MLflow.

    Raises:
        SettingsError: it was given.
    """
    if args.tracking_uri is not None and not used:
        raise SettingsError(f"--tracking-uri is about {by}")


def admission_settings(args: argparse.Namespace) -> AdmissionSettings:
    """The settings, with what --trust and --policy say instead."""
    settings = load_settings().admission
    return replace(
        settings,
        trust=args.trust or settings.trust,
        policy=args.policy or settings.policy,
    )


def variables(args: argparse.Namespace, settings: Settings) -> dict[str, str]:
    """What another process in another folder finds the same settings by.

    Policy and trust root only where --policy or --trust names them: a Bento has its own
    policy.
    """
    config = os.environ.get("SEALGATE_CONFIG")
    named = {
        "SEALGATE_HOME": settings.home,
        "SEALGATE_CONFIG": Path(config) if config else None,
        "SEALGATE_ADMISSION_TRUST": args.trust,
        "SEALGATE_ADMISSION_POLICY": args.policy,
    }
    return {name: str(path.absolute()) for name, path in named.items() if path}
