"""`push`, `pull`: bundles to and from OCI layouts and registries."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from models.errors import BundleError
from security.commands.options import Subparsers, add_admission, admission_settings
from security.commands.stages import Stages
from security.errors import SettingsError
from security.registry.references import FORMS, RegistryReference, parse_reference

if TYPE_CHECKING:
    from models.bundle import Bundle
    from security.admission.gate import Admission
    from security.registry.documents import Store

__all__ = ["add_connection", "add_parser", "pulled"]

_IMAGE = "oci:FOLDER[:TAG], REGISTRY/REPOSITORY:TAG"


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add both subcommands."""
    parser = subparsers.add_parser(
        "push",
        help="write an admitted bundle to an OCI layout or a registry",
        description="Write a bundle that passes every check of the gate, with its "
        "evidence, to an OCI layout or a registry. Equal bundles have equal digests.",
    )
    parser.add_argument("bundle", type=Path, help="folder of the bundle")
    parser.add_argument(
        "target",
        help=f"{_IMAGE}; a layout's tag is the model's version if none is named",
    )
    parser.add_argument(
        "--artifact",
        choices=FORMS,
        default="image",
        help="a plain image, which clusters mount, or a CNCF ModelPack artifact "
        "(default: %(default)s)",
    )
    add_connection(parser)
    add_admission(parser)
    parser.set_defaults(run=run_push)
    parser = subparsers.add_parser(
        "pull",
        help="read a bundle from an OCI layout or a registry, and verify it",
        description="Read a bundle, in either form, and run every check of the gate on "
        "it. The folder appears when all of them have passed.",
    )
    parser.add_argument("source", help=f"{_IMAGE} or REGISTRY/REPOSITORY@sha256:…")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="where the bundle will be; if it is there already, nothing happens",
    )
    add_connection(parser)
    add_admission(parser)
    parser.set_defaults(run=run_pull)


def add_connection(parser: argparse.ArgumentParser) -> None:
    """Add --ca and --plain-http."""
    parser.add_argument(
        "--ca",
        type=Path,
        metavar="FILE",
        help="certificates of the authority that certifies the registry (default: the "
        "system's)",
    )
    parser.add_argument(
        "--plain-http",
        action="store_true",
        help="speak http to a registry on this machine",
    )


def run_push(args: argparse.Namespace) -> int:
    """Verify and write; returns the exit code."""
    from models.bundle import read_bundle  # noqa: PLC0415
    from security.admission.verification import verify  # noqa: PLC0415

    reference = parse_reference(args.target)
    settings = admission_settings(args)
    bundle = read_bundle(args.bundle)
    verify(bundle, trust=settings.trust, policy=settings.policy)
    tag = reference.tag or bundle.manifest.version
    if reference.digest:
        raise SettingsError(f"{args.target}: a digest is what comes of a push; a tag")
    with Stages() as stages, _store(args.target, args) as store:
        from security.registry.transfer import push  # noqa: PLC0415  (as below)

        stages("pushing", 0.0)
        digest = push(bundle, store, form=args.artifact, tag=tag)
    print(f"pushed {bundle.manifest.tag} to {reference}:{tag}")
    print(f"{reference}@{digest}")
    return 0


def run_pull(args: argparse.Namespace) -> int:
    """Read, verify and put in place; returns the exit code."""
    from security.admission.verification import verify  # noqa: PLC0415
    from security.commands.verify import print_admission  # noqa: PLC0415  (it needs us)

    settings, out = admission_settings(args), args.out
    out.parent.mkdir(parents=True, exist_ok=True)
    with pulled(args.source, args, beside=out) as (folder, bundle, image):
        admission: Admission = verify(
            bundle, trust=settings.trust, policy=settings.policy
        )
        there = os.path.lexists(out)
        if there and not _same(out, bundle):
            raise BundleError(f"{out} exists already, and is not this bundle")
        if not there:
            folder.rename(out)
    print_admission(admission)
    print(f"{image} {'is' if there else 'pulled'} in {out}{' already' * there}")
    return 0


def _same(folder: Path, bundle: Bundle) -> bool:
    from models.bundle import read_bundle  # noqa: PLC0415

    try:
        return read_bundle(folder).files == bundle.files
    except BundleError:
        return False


@contextmanager
def pulled(
    source: str, args: argparse.Namespace, *, beside: Path | None = None
) -> Iterator[tuple[Path, Bundle, str]]:
    """A bundle in a temporary folder, read but not verified, and its image's digest.

    Raises:
        SealgateError: as `security.registry.transfer.pull`.
    """
    from models.bundle import read_bundle  # noqa: PLC0415

    place, prefix = (
        (None, None) if beside is None else (beside.parent, f".{beside.name}.")
    )
    with tempfile.TemporaryDirectory(prefix=prefix or "sealgate-", dir=place) as name:
        folder = Path(name) / "bundle"
        folder.mkdir()
        with Stages() as stages, _store(source, args) as store:
            from security.registry.transfer import pull  # noqa: PLC0415  (as below)

            stages("pulling", 0.0)
            digest = pull(store, folder)
        yield folder, read_bundle(folder), f"{parse_reference(source)}@{digest}"


@contextmanager
def _store(source: str, args: argparse.Namespace) -> Iterator[Store]:
    reference = parse_reference(source)
    if args.plain_http and not isinstance(reference, RegistryReference):
        raise SettingsError("--plain-http is for a registry")
    # With it comes an HTTP client: who mistypes an option need not wait for that.
    from security.registry.transfer import open_store  # noqa: PLC0415

    with open_store(
        source,
        environ=os.environ,
        authorities=args.ca,
        plain_http=args.plain_http,
    ) as store:
        yield store
