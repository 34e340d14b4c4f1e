"""`documents`: the model card and ML-BOM of a bundle; `sbom`: of the serving image."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from models.bundle import BOM_FILE, MODEL_CARD_FILE, Bundle, read_bundle
from models.files import read_regular, write_atomic
from security.commands.options import Subparsers
from security.documents.bom import documents
from security.documents.sbom import serving_sbom

__all__ = ["add_parser", "run"]

MAX_REQUIREMENTS_BYTES = 4 << 20
_REQUIREMENTS = Path(__file__).resolve().parents[2] / "requirements" / "serve.txt"


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add both subcommands."""
    parser = subparsers.add_parser(
        "documents",
        help="write a bundle's model card and ML-BOM",
        description=f"Compute {MODEL_CARD_FILE} and {BOM_FILE} (CycloneDX 1.6) from "
        "the evidence in a bundle, and write them into it. `admit` does so too, and "
        "the verdict binds them.",
    )
    parser.add_argument("bundle", metavar="BUNDLE", type=Path)
    parser.add_argument(
        "--check",
        action="store_true",
        help="write nothing; exit code 1 if a document is missing or says something "
        "else than the evidence",
    )
    parser.set_defaults(run=run)
    _add_sbom(subparsers)


def _add_sbom(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "sbom",
        help="write the SBOM of the serving image",
        description="Write a CycloneDX 1.6 SBOM of what the serving image installs: "
        "every package of the compiled requirements, with its hashes.",
    )
    parser.add_argument(
        "--requirements",
        metavar="FILE",
        type=Path,
        default=_REQUIREMENTS,
        help="compiled requirements (default: requirements/serve.txt of the project)",
    )
    parser.add_argument(
        "--bento", metavar="NAME:VERSION", help="the Bento that the image holds"
    )
    parser.add_argument(
        "--out", metavar="FILE", type=Path, help="default: standard output"
    )
    parser.set_defaults(run=_run_sbom)


def run(args: argparse.Namespace) -> int:
    """Write or compare; returns the exit code."""
    bundle = read_bundle(args.bundle)
    computed = documents(bundle)
    if args.check:
        return _check(bundle, computed)
    for name, data in computed.items():
        write_atomic(args.bundle / name, data)
        print(f"wrote {name}, {len(data)} bytes")
    return 0


def _check(bundle: Bundle, computed: dict[str, bytes]) -> int:
    faults = 0
    for name, data in computed.items():
        if name not in bundle.files:
            print(f"refused: {name} is missing", file=sys.stderr)
        elif bundle.files[name] != data:
            print(f"refused: {name} is not what the evidence gives", file=sys.stderr)
        else:
            print(f"{name} is what the evidence gives")
            continue
        faults += 1
    return 1 if faults else 0


def _run_sbom(args: argparse.Namespace) -> int:
    requirements = read_regular(args.requirements, max_bytes=MAX_REQUIREMENTS_BYTES)
    document = serving_sbom(requirements, bento=args.bento)
    if args.out is None:
        sys.stdout.write(document.decode())
    else:
        write_atomic(args.out, document)
    return 0
