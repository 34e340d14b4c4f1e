"""`verify`: what the doors check, of a bundle wherever it is, a Bento or an image."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from models.errors import BundleError
from models.report import format_time
from security.commands.options import Subparsers, add_admission, admission_settings
from security.commands.stages import Stages
from security.registry.references import is_reference
from security.settings.admission import AdmissionSettings

if TYPE_CHECKING:
    from models.bundle import Bundle
    from security.admission.gate import Admission

__all__ = ["add_parser", "print_admission", "read_model", "run"]


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    from security.commands.registry import add_connection  # noqa: PLC0415

    parser = subparsers.add_parser(
        "verify",
        help="run every check of the gate on a bundle",
        description="Run every check of the admission gate on a bundle: what `bentoml "
        "build`, the start of the server and the loading of the model demand.",
    )
    parser.add_argument(
        "bundle",
        help="folder of a bundle, of a Bento, of an image's file system or of a saved "
        "image (OCI layout, unpacked `docker save`); name:version in the store; or "
        "what `push` wrote, oci:FOLDER[:TAG] or REGISTRY/REPOSITORY:TAG",
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
        help="for a Bento: source tree that all of it must have been built from",
    )
    parser.add_argument(
        "--image-config",
        type=Path,
        metavar="FILE",
        help="for an image's file system: its configuration, as `docker image inspect` "
        "prints it",
    )
    add_connection(parser)
    add_admission(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Verify; returns the exit code."""
    from security.commands.registry import pulled  # noqa: PLC0415

    settings = admission_settings(args)
    folder = Path(args.bundle)
    if folder.is_dir() and not _is_bundle(folder):
        return _run_outside(folder, args, settings)
    if not folder.is_dir() and is_reference(args.bundle):
        with pulled(args.bundle, args) as (_, bundle, image):
            code = _run_bundle(bundle, args, settings)
        if code == 0:
            print(f"read from {image}")
        return code
    return _run_bundle(read_model(args.bundle), args, settings)


def _run_bundle(
    bundle: Bundle, args: argparse.Namespace, settings: AdmissionSettings
) -> int:
    from security.admission.verification import all_refusals, verify  # noqa: PLC0415
    from security.commands.admit import print_refusals  # noqa: PLC0415

    if args.all:
        found = all_refusals(bundle, trust=settings.trust, policy=settings.policy)
        if found:
            return print_refusals(found)
    print_admission(verify(bundle, trust=settings.trust, policy=settings.policy))
    return 0


def _is_bundle(folder: Path) -> bool:
    """Whether a folder is to be read as a bundle, which then refuses all else in it."""
    from models.bundle import MANIFEST_FILE, MODEL_FILE, SEALED_FILE  # noqa: PLC0415

    names = {item.name for item in folder.iterdir()}
    if names & {MODEL_FILE, SEALED_FILE}:
        return True
    saved = {"oci-layout", "index.json", "repositories", "blobs"}
    return not names or (MANIFEST_FILE in names and not names & saved)


def _run_outside(
    folder: Path, args: argparse.Namespace, settings: AdmissionSettings
) -> int:
    from security.admission.outside.bento import verify_bento  # noqa: PLC0415  (bentoml)

    with Stages() as stages:
        stages("verification", 0.0)
        found = verify_bento(
            folder, settings, release=args.release, image_config=args.image_config
        )
    for item in found:
        print_admission(item)
    if not found:
        print("verified a Bento without a model: it serves what is mounted, or nothing")
    if args.release is None:
        print("notice: not compared with a release: --release", file=sys.stderr)
    return 0


def read_model(name: str) -> Bundle:
    """Read a bundle that a command names: its folder, or name:version in the store.

    Raises:
        BundleError: there is none.
    """
    from models.bundle import read_bundle  # noqa: PLC0415

    if Path(name).is_dir():
        return read_bundle(Path(name))
    if os.sep in name:  # no tag, so the store, which takes seconds, need not be asked
        raise BundleError(f"{name}: no such folder")
    from security.admission.store import read_stored  # noqa: PLC0415  (bentoml)

    return read_stored(name)


def _signed_lines(signatures: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    """Which algorithms' signatures were checked, and of which statements."""
    for algorithms in dict.fromkeys(signatures.values()):
        names = (
            name.removeprefix("attestations/").removesuffix(".sigstore.json")
            for name, checked in signatures.items()
            if checked == algorithms
        )
        yield f"{' and '.join(algorithms)}: {', '.join(names)}"


def print_admission(admission: Admission) -> None:
    """What was admitted, and what it rests on."""
    from models.output_policy import ALL_SCORES  # noqa: PLC0415

    subject = admission.bundle.subject
    print(
        f"verified {subject.name}:{subject.version}  root sha256:{subject.root_sha256}"
    )
    for kind, report in admission.reports.items():
        metrics = "  ".join(
            f"{name} {metric.value:.4g}" for name, metric in report.metrics.items()
        )
        print(f"  {kind:<11} {format_time(report.created_at)}  {metrics}")
    leaving = admission.bundle.manifest.output_policy
    if leaving != ALL_SCORES:
        print(f"  leaves: {leaving}")
    if admission.bundle.sealed:
        hints = ", ".join(hint[:16] for hint in admission.bundle.sealed_to)
        print(f"  sealed to {admission.bundle.sealed_kind} keys: {hints}")
    for waiver in admission.waivers.values():
        print(f"  waiver: {waiver}")
    for line in _signed_lines(admission.signatures):
        print(f"  signed with {line}")
    for stamp in admission.stamps:
        when = format_time(stamp.time)
        print(f"  verdict stamped {when} by {stamp.authority}")
    for notice in admission.notices:
        print(f"  notice: {notice}")
    print(f"verdict sha256:{admission.verdict_sha256}")
    if admission.expires_at is not None:
        print(f"holds until {format_time(admission.expires_at)}")
