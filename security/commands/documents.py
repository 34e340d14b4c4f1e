"""`documents`: what others read of a bundle; `sbom`: of the serving image.

The model card and the bill of materials are part of a bundle, and the verdict binds
them. The rest is for other people's shelves: written beside it, from the same facts.
Annex IV and the register's entry are made of verified evidence alone, so they want
trust root and policy, as `verify` does.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from models.bundle import BOM_FILE, MODEL_CARD_FILE, Bundle, read_bundle
from models.files import read_regular, write_atomic
from security.commands.options import Subparsers, add_admission, admission_settings
from security.documents.bom import VERSIONS, documents, ml_bom
from security.documents.dp_register import SECTORS, Curator, dp_register
from security.documents.sbom import serving_sbom
from security.errors import SettingsError

if TYPE_CHECKING:
    from security.documents.sourced import Sourced

__all__ = ["add_parser", "run"]

MAX_REQUIREMENTS_BYTES = 4 << 20
_REQUIREMENTS = Path(__file__).resolve().parents[2] / "requirements" / "serve.txt"


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add both subcommands."""
    parser = subparsers.add_parser(
        "documents",
        help="write a bundle's model card and ML-BOM, or a document for others",
        description=f"Compute {MODEL_CARD_FILE} and {BOM_FILE} (CycloneDX 1.6) from "
        "the evidence in a bundle, and write them into it. `admit` does so too, and "
        "the verdict binds them. With one of the options below: write one document "
        "for other people's tools and files instead, and leave the bundle as it is.",
    )
    parser.add_argument("bundle", metavar="BUNDLE", type=Path)
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--annex-iv",
        action="store_true",
        help="technical documentation of the EU AI Act (Annex IV, Article 15), from "
        "verified evidence: each sentence with a digest, then what is not shown",
    )
    which.add_argument(
        "--dp-register",
        action="store_true",
        help="entry for a public register of differentially private deployments, from "
        "verified evidence (needs --provider, --region, --author)",
    )
    which.add_argument(
        "--spdx",
        action="store_true",
        help="SPDX 3.0 document with the AI profile (needs --provider)",
    )
    which.add_argument(
        "--cyclonedx", choices=VERSIONS, help="ML-BOM in this version of CycloneDX"
    )
    _add_others(parser)
    which.add_argument(
        "--check",
        action="store_true",
        help="write nothing; exit code 1 if a document is missing or says something "
        "else than the evidence",
    )
    add_admission(parser)
    parser.set_defaults(run=run)
    _add_sbom(subparsers)


def _add_others(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="--annex-iv for programs")
    parser.add_argument(
        "--provider",
        metavar="NAME",
        default="",
        help="who provides the model: no evidence says so",
    )
    parser.add_argument(
        "--region",
        metavar="TEXT",
        default="",
        help="whom the training data describes, or whose law applies to it",
    )
    parser.add_argument(
        "--author",
        metavar="NAME",
        action="append",
        default=[],
        help="of the register's entry; may be given several times",
    )
    parser.add_argument("--sector", choices=SECTORS, default="", help="of the register")
    parser.add_argument(
        "--out",
        metavar="FILE",
        type=Path,
        help="where a document for others goes (default: standard output)",
    )


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
    written = _other(args, bundle)
    if written is not None:
        return _write(written, args.out)
    computed = documents(bundle)
    if args.check:
        return _check(bundle, computed)
    for name, data in computed.items():
        write_atomic(args.bundle / name, data)
        print(f"wrote {name}, {len(data)} bytes")
    return 0


def _other(args: argparse.Namespace, bundle: Bundle) -> bytes | None:
    """The document for others that was asked for; None for those of the bundle."""
    if args.json and not args.annex_iv:
        raise SettingsError("--json is about --annex-iv")
    if args.cyclonedx:
        return ml_bom(bundle, args.cyclonedx)
    if args.spdx:
        from security.documents.spdx import spdx_document  # noqa: PLC0415  (as below)

        _demand(args, "--spdx", "provider")
        return spdx_document(bundle, args.provider)
    if args.annex_iv:
        from security.documents import annex_iv  # noqa: PLC0415  (as below)

        write = annex_iv.annex_iv_json if args.json else annex_iv.annex_iv
        return write(_sourced(args, bundle), args.provider)
    if args.dp_register:
        _demand(args, "--dp-register", "provider", "region", "author")
        curator = Curator(args.provider, args.region, tuple(args.author), args.sector)
        return dp_register(_sourced(args, bundle), curator)
    if args.out is not None:
        raise SettingsError("--out is about a document for others: name which")
    return None


def _demand(args: argparse.Namespace, what: str, *names: str) -> None:
    missing = [f"--{name}" for name in names if not getattr(args, name)]
    if missing:
        raise SettingsError(f"{what} needs {', '.join(missing)}: no evidence says so")


def _sourced(args: argparse.Namespace, bundle: Bundle) -> Sourced:
    # The gate takes as long to import as all the rest.
    from security.admission.verification import verify  # noqa: PLC0415
    from security.documents.sourced import sourced  # noqa: PLC0415

    settings = admission_settings(args)
    return sourced(verify(bundle, trust=settings.trust, policy=settings.policy))


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
    return _write(document, args.out)


def _write(document: bytes, out: Path | None) -> int:
    if out is None:
        sys.stdout.write(document.decode())
    else:
        write_atomic(out, document)
    return 0
