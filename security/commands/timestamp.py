"""`timestamp`: have what was signed stamped by an authority of time."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from models.errors import BundleError
from models.files import read_regular, write_atomic
from models.report import format_time
from sealgate.errors import StatementError
from sealgate.protocol import dsse
from security.commands.options import Subparsers
from security.settings.loading import load_settings

if TYPE_CHECKING:
    from security.admission.timestamps import Stamp, Timed
    from security.admission.trust import TrustRoot

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "timestamp",
        help="have the signatures of a bundle stamped by an authority of time",
        description="Ask an authority of time (RFC 3161) for a stamp over each "
        "signature of a bundle, statements, waivers and verdict, or over that of one "
        "signed file. Every signature is verified before; nothing is signed anew, and "
        "a verdict stays valid. What has a stamp of a trusted authority is left as it "
        "is. Nothing is written unless all could be stamped.",
    )
    parser.add_argument(
        "signed", type=Path, help="folder of a bundle, or one signed file"
    )
    parser.add_argument(
        "--url",
        required=True,
        metavar="URL",
        help="of the authority, which the trust root must name (`keys add-authority`)",
    )
    parser.add_argument(
        "--trust",
        type=Path,
        metavar="FILE",
        help="public keys and authorities of time (default: admission.trust of the "
        "settings)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Stamp; returns the exit code."""
    from security.admission.trust_store import load_trust  # noqa: PLC0415
    from security.commands.stamping import ask, stamping_url  # noqa: PLC0415

    trust = load_trust(args.trust or load_settings().admission.trust)
    url = stamping_url(args.url, trust)
    stamped: dict[Path, bytes] = {}
    lines: list[str] = []
    for path, data in _signed(args.signed):
        signed = _verified(path, data, trust)
        if signed.stamp is None:
            der, stamp = ask(url, signed.signature, trust.timestamp_authorities)
            stamped[path] = dsse.stamped(data, der)
            lines.append(f"stamped   {path}  {_told(stamp)}")
        else:
            lines.append(f"has one   {path}  {_told(signed.stamp)}")
    for path, data in stamped.items():
        write_atomic(path, data)
    print("\n".join(lines))
    return 0


def _signed(where: Path) -> Iterator[tuple[Path, bytes]]:
    """The signed files of a bundle, or the one that was named."""
    from models.bundle import (  # noqa: PLC0415
        MODEL_SIGNATURE_FILE,
        SIGNED_SUFFIX,
        read_bundle,
    )

    if not where.is_dir():
        yield where, read_regular(where, max_bytes=dsse.MAX_BUNDLE_BYTES)
        return
    files = read_bundle(where).files
    found = [name for name in sorted(files) if name.endswith(SIGNED_SUFFIX)]
    if MODEL_SIGNATURE_FILE in files:
        found.append(MODEL_SIGNATURE_FILE)
    if not found:
        raise BundleError(f"{where}: nothing is signed")
    for name in found:
        yield where / name, files[name]


def _verified(path: Path, data: bytes, trust: TrustRoot) -> Timed:
    """A signature by a key that holds any role; a stamp makes none of them better.

    Raises:
        BundleError: it does not verify, or one of its stamps lies.
    """
    from security.admission.attest import algorithm_by_name  # noqa: PLC0415
    from security.admission.trust import ROLES  # noqa: PLC0415

    try:
        return trust.verify(data, ROLES, algorithm=algorithm_by_name(path.name))
    except StatementError as error:
        raise BundleError(f"{path}: {error}") from None


def _told(stamp: Stamp) -> str:
    return f"{format_time(stamp.time)} by {stamp.authority}"
