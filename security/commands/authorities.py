"""The authorities of time's part of `keys`: whose stamps the trust root believes."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from models.errors import BundleError
from models.files import read_regular
from security.admission.timestamps import issues_others
from security.admission.trust import TimestampAuthority, TrustRoot
from security.errors import KeyFileError

__all__ = ["add_add", "add_remove", "list_lines", "with_authority", "without_authority"]

MAX_PEM_BYTES = 64 << 10


def add_add(parser: argparse.ArgumentParser) -> None:
    """The options of `keys add-authority`."""
    parser.description = (
        "Believe the time stamps (RFC 3161) of an authority: of every certificate for "
        "stamping under its root, or, where the authority's own certificate is given "
        "beside the root, of that one alone. An authority of that name is replaced."
    )
    parser.add_argument("name", help="what to call it, one line")
    parser.add_argument(
        "certificates",
        type=Path,
        nargs="+",
        metavar="CERTIFICATES.pem",
        help="its root, what lies between, perhaps its own; in one file or several",
    )


def add_remove(parser: argparse.ArgumentParser) -> None:
    """The options of `keys remove-authority`."""
    parser.description = (
        "Believe an authority's time stamps no more. What rests on them is refused: "
        "where the policy demands stamps, and whatever a revoked key signed."
    )
    parser.add_argument("name", help="as `keys list` names it")


def list_lines(trust: TrustRoot) -> Iterator[str]:
    """The authorities, by the fingerprint of what is pinned of each."""
    for item in trust.timestamp_authorities:
        last = item.certificates[-1]
        whose = "any under its root" if issues_others(last) else "its own alone"
        digest = last.fingerprint(hashes.SHA256()).hex()
        yield f"{digest}  timestamps       {item.name}: {whose}"


def with_authority(trust: TrustRoot, args: argparse.Namespace) -> TrustRoot:
    """A trust root that believes an authority.

    Raises:
        KeyFileError: no certificates, or none that issues others.
    """
    found = [item for path in args.certificates for item in _read(path)]
    others = [it for it in trust.timestamp_authorities if it.name != args.name]
    own = TimestampAuthority(args.name, _ordered(found))
    return replace(trust, timestamp_authorities=(*others, own))


def without_authority(trust: TrustRoot, args: argparse.Namespace) -> TrustRoot:
    """A trust root that does not believe an authority.

    Raises:
        KeyFileError: it does not name it.
    """
    left = [it for it in trust.timestamp_authorities if it.name != args.name]
    if len(left) == len(trust.timestamp_authorities):
        raise KeyFileError(f"the trust root names no authority {args.name!r}")
    return replace(trust, timestamp_authorities=tuple(left))


def _read(path: Path) -> list[x509.Certificate]:
    try:
        data = read_regular(path, max_bytes=MAX_PEM_BYTES, follow_links=True)
        return x509.load_pem_x509_certificates(data)
    except (BundleError, ValueError, x509.InvalidVersion):
        raise KeyFileError(f"{path}: no certificates in PEM") from None


def _ordered(found: Sequence[x509.Certificate]) -> tuple[x509.Certificate, ...]:
    """Root first, the authority's own last."""
    roots = [it for it in found if it.issuer == it.subject and issues_others(it)]
    between = [it for it in found if it not in roots and issues_others(it)]
    own = [it for it in found if not issues_others(it)]
    if len(roots) != 1 or len(own) > 1:
        raise KeyFileError(
            "expected the authority's one root, what lies between, and at most one "
            f"certificate of its own, not {len(roots)}, {len(between)} and {len(own)}"
        )
    return (*roots, *between, *own)
