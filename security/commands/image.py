"""`image`: a Bento as a container image, with its SBOM and provenance beside it."""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from models.errors import BundleError
from models.files import new_directory, read_regular, write_atomic
from models.report import format_time
from sealgate.protocol.statement import Resource
from security.admission.attest import Signers, signed_files
from security.admission.signers import write_signed
from security.commands.containers import (
    BUILDERS,
    Builder,
    find_builder,
    find_wheels,
    image_subjects,
    make_context,
)
from security.commands.options import Subparsers, add_admission, admission_settings
from security.commands.signing import add_signing, signers
from security.commands.stages import Stages
from security.documents.provenance import ImageBuild, image_provenance
from security.documents.sbom import serving_sbom
from security.settings.admission import AdmissionSettings

if TYPE_CHECKING:  # the module takes long to import
    from security.admission.gate import Admission

__all__ = ["add_parser", "run"]

SBOM_FILE = "sbom.cdx.json"
PROVENANCE_FILE = "provenance.sigstore.json"

_PINNED = re.compile(r"[a-z0-9][A-Za-z0-9._/:-]*@sha256:[0-9a-f]{64}")
_TAG = re.compile(r"[a-z0-9][a-z0-9._/:-]*:[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "image",
        help="build a Bento's container image, its SBOM and its provenance",
        description="Build the image of a Bento by deploy/container/Dockerfile, with "
        "docker, podman or buildah, whichever is here. The Bento is verified before, "
        "the image after. DIR gets image/ (the saved image), "
        f"{SBOM_FILE} (CycloneDX 1.6) and {PROVENANCE_FILE} (SLSA provenance v1, "
        "signed by the role release; with ML-DSA-65 in a second file where it has such "
        "a key).",
    )
    parser.add_argument(
        "bento",
        metavar="BENTO",
        help="name:version in the store, or the folder of an unpacked `bentoml export`",
    )
    parser.add_argument(
        "--base",
        required=True,
        type=_pinned,
        metavar="IMAGE@sha256:DIGEST",
        help="Debian with Python, like python:3.11-slim, by digest: `docker buildx "
        "imagetools inspect python:3.11-slim` shows it",
    )
    parser.add_argument(
        "--build-base",
        type=_pinned,
        metavar="IMAGE@sha256:DIGEST",
        help="what only builds (default: the base); with one that has `strip`, like "
        "python:3.11, the image becomes smaller",
    )
    parser.add_argument(
        "--tag", type=_tag, help="of the image (default: the Bento's own)"
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder to be made"
    )
    parser.add_argument(
        "--wheels",
        type=Path,
        metavar="FOLDER",
        help="take packages from there, and from no index: the build has no network",
    )
    parser.add_argument(
        "--builder", choices=BUILDERS, help="(default: the first that is here)"
    )
    add_signing(parser)
    add_admission(parser)
    parser.set_defaults(run=run)


def _pinned(text: str) -> str:
    if not _PINNED.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text}: not pinned by @sha256:DIGEST")
    return text


def _tag(text: str) -> str:
    if not _TAG.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text}: expected name:tag")
    return text


def run(args: argparse.Namespace) -> int:
    """Build; returns the exit code."""
    # Everything that can be missing, before what takes minutes.
    builder, keys = find_builder(args.builder), signers(args, "release")
    settings = admission_settings(args)
    wheels = find_wheels(args.wheels) if args.wheels else []
    with new_directory(args.out) as out, Stages() as stages:
        subjects = _build(
            args,
            out,
            builder=builder,
            settings=settings,
            stages=stages,
            keys=keys,
            wheels=wheels,
        )
    for subject in subjects:
        print(f"{subject.name}  sha256:{subject.sha256}")
    print(f"wrote {args.out}: image, {SBOM_FILE}, {PROVENANCE_FILE}")
    return 0


def _build(
    args: argparse.Namespace,
    out: Path,
    *,
    builder: Builder,
    settings: AdmissionSettings,
    stages: Stages,
    keys: Signers,
    wheels: Sequence[Path],
) -> tuple[Resource, ...]:
    """Make all that there is to make; returns what the image is known by."""
    with tempfile.TemporaryDirectory() as name:
        stages("exporting", 0.0)
        with _exported(args.bento) as (bento, own):
            found = _verified(bento, settings)
            context = make_context(Path(name), bento, wheels)
        stages("building", 0.0)
        tag, started = args.tag or own, _now()
        bases = {"BASE_IMAGE": args.base, "BUILD_IMAGE": args.build_base or args.base}
        builder.build(context, tag, bases, closed=args.wheels is not None)
        stages("saving", 0.0)
        image = builder.save(tag, out / "image")
        stages("verifying", 0.0)
        _verified(image, settings)
        build = _document(
            args,
            out,
            builder=builder,
            context=context,
            found=found,
            bento=own,
            started=started,
        )
    subjects = image_subjects(image, tag)
    provenance = image_provenance(build, subjects)
    write_signed(out, signed_files(PROVENANCE_FILE, provenance, keys))
    return subjects


@contextmanager
def _exported(bento: str) -> Iterator[tuple[Path, str]]:
    """A Bento's folder with its models in it, and its tag."""
    if Path(bento).is_dir():
        yield Path(bento), f"sealgate:{Path(bento).resolve().name}"
        return
    if os.sep in bento:
        raise BundleError(f"{bento}: no such folder")
    import bentoml  # noqa: PLC0415  (slow)

    try:
        stored = bentoml.get(bento)
    except (bentoml.exceptions.BentoMLException, ValueError):
        raise BundleError(f"{bento} is not in the store of Bentos") from None
    with tempfile.TemporaryDirectory() as name:
        # BentoML writes a relative path into the root of the file system.
        archive = stored.export(str(Path(name).resolve() / "bento.tar"))
        folder = Path(name) / "bento"
        with tarfile.open(archive) as packed:
            packed.extractall(folder, filter="data")
        yield folder, str(stored.tag)


def _verified(folder: Path, settings: AdmissionSettings) -> list[Admission]:
    from security.admission.outside.bento import verify_bento  # noqa: PLC0415  (slow)

    return verify_bento(folder, settings)


def _document(
    args: argparse.Namespace,
    out: Path,
    *,
    builder: Builder,
    context: Path,
    found: list[Admission],
    bento: str,
    started: str,
) -> ImageBuild:
    """Write the SBOM; returns what there is to say of the build."""
    requirements = read_regular(
        context / "bento" / "env" / "python" / "requirements.txt", max_bytes=4 << 20
    )
    models = [item.bundle.subject for item in found]
    sbom = serving_sbom(requirements, bento=bento, base=args.base, models=models)
    write_atomic(out / SBOM_FILE, sbom)
    files = ("Dockerfile", "bytecode.py", "bento/bento.yaml")
    return ImageBuild(
        bento=bento,
        base=args.base,
        build_base=args.build_base or args.base,
        closed=args.wheels is not None,
        tool=builder.version(),
        started=started,
        finished=_now(),
        materials=(
            Resource("requirements.txt", hashlib.sha256(requirements).hexdigest()),
            *(Resource(name, _sha256(context / name)) for name in files),
            *(Resource(f"{m.name}:{m.version}", m.root_sha256) for m in models),
        ),
        sbom=Resource(SBOM_FILE, hashlib.sha256(sbom).hexdigest()),
    )


def _sha256(path: Path) -> str:
    return hashlib.sha256(read_regular(path, max_bytes=4 << 20)).hexdigest()


def _now() -> str:
    return format_time(datetime.now(UTC))
