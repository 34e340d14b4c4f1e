"""`verify`: what the doors check, for a bundle's folder or a stored model."""

from __future__ import annotations

import argparse
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from models.bundle import Bundle, read_bundle
from models.report import format_time
from security.admission import gate
from security.admission.confidential import check_sealed
from security.admission.doors import verify_with
from security.admission.gate import Admission
from security.admission.keys import TrustRoot, load_trust
from security.admission.model_signature import check_signature
from security.admission.policy import load_policy
from security.commands.admit import print_refusals
from security.commands.options import Subparsers, add_admission, admission_settings
from security.errors import AdmissionRefused
from security.settings.admission import AdmissionSettings
from security.settings.loading import load_settings

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "verify",
        help="check a bundle, its evidence and its verdict",
        description="Run every check of the admission gate on a bundle: what `bentoml "
        "build`, the start of the server and the loading of the model demand.",
    )
    parser.add_argument(
        "bundle",
        help="folder of a bundle, a Bento or an unpacked image; or name:version in the "
        "store",
    )
    parser.add_argument(
        "--all",
        action="store_true",
        help="list every check that fails, instead of the first",
    )
    parser.add_argument(
        "--release",
        type=Path,
        metavar="FOLDER",
        help="for a Bento: source tree that its sources must equal, byte for byte",
    )
    add_admission(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Verify; returns the exit code."""
    settings = admission_settings(args)
    if Path(args.bundle).is_dir() and (bento := _find_bento(Path(args.bundle))):
        return _run_bento(bento, args, settings)
    bundle = _read(args.bundle)
    policy, trust = load_policy(settings.policy), load_trust(settings.trust)
    now = datetime.now(UTC)
    if args.all:
        found = gate.all_refusals(bundle, policy, trust, now=now)
        found += _beside(bundle, trust)
        if found:
            return print_refusals(found)
    _print(verify_with(bundle, policy, trust, now=now))
    return 0


def _find_bento(folder: Path) -> Path | None:
    from security.admission.outside import find_bento  # noqa: PLC0415  (bentoml)

    return find_bento(folder)


def _run_bento(
    bento: Path, args: argparse.Namespace, admission: AdmissionSettings
) -> int:
    from security.admission.outside import verify_bento  # noqa: PLC0415  (bentoml)

    settings = replace(load_settings(), admission=admission)
    for item in verify_bento(bento, settings, release=args.release):
        _print(item)
    return 0


def _beside(bundle: Bundle, trust: TrustRoot) -> list[AdmissionRefused]:
    """Which of the doors' checks beside the evidence fail."""
    found = []
    for check in (check_sealed, check_signature):
        try:
            check(bundle, trust)
        except AdmissionRefused as refusal:
            found.append(refusal)
    return found


def _read(name: str) -> Bundle:
    if Path(name).is_dir():
        return read_bundle(Path(name))
    from security.admission.store import read_stored  # noqa: PLC0415  (bentoml)

    return read_stored(name)


def _print(admission: Admission) -> None:
    subject = admission.bundle.subject
    print(
        f"verified {subject.name}:{subject.version}  root sha256:{subject.root_sha256}"
    )
    for kind, report in admission.reports.items():
        metrics = "  ".join(
            f"{name} {metric.value:.4g}" for name, metric in report.metrics.items()
        )
        print(f"  {kind:<11} {format_time(report.created_at)}  {metrics}")
    for waiver in admission.waivers.values():
        print(f"  waiver: {waiver}")
    print(f"verdict sha256:{admission.verdict_sha256}")
    if admission.expires_at is not None:
        print(f"holds until {format_time(admission.expires_at)}")
