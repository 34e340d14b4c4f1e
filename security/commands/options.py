"""Options that several subcommands share."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from security.errors import AssessmentError, SettingsError
from security.settings.admission import AdmissionSettings
from security.settings.loading import Settings, load_settings

__all__ = [
    "Subparsers",
    "add_admission",
    "add_root",
    "add_tracking",
    "admission_settings",
    "below_root",
    "check_tracking",
    "count",
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


def count(most: int) -> Callable[[str], int]:
    """The type of an option that is a number from 1 on.

    >>> count(10)("3")
    3
    """

    def parse(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"a number from 1 to {most}")
        return int(text)

    return parse


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


def add_root(parser: argparse.ArgumentParser) -> None:
    """Add --root."""
    parser.add_argument(
        "--root",
        type=Path,
        metavar="DIR",
        help="the folder that paths in reports are relative to (default: the "
        "repository that holds the model, or else this folder)",
    )


def below_root(path: Path, root: Path | None) -> str:
    """A model's path below the root of reports; "" where it is elsewhere.

    Args:
        path: of the model.
        root: what --root says.

    Raises:
        AssessmentError: it is not below the root that was given.
    """
    found, given = Path(os.path.abspath(path)), root
    if root is None:
        above = (item for item in found.parents if (item / ".git").exists())
        root = next(above, Path())
    try:
        return found.relative_to(os.path.abspath(root)).as_posix()
    except ValueError:
        if given is None:
            return ""
        raise AssessmentError(f"--root: {path.name} is not below it") from None


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
