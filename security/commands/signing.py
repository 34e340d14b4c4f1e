"""Options of the subcommands that sign, and the signer they name."""

from __future__ import annotations

import argparse
from pathlib import Path

from models.errors import BundleError
from models.files import read_regular
from sealgate.protocol.dsse import ECDSA_P256, PublicKey, Signer
from security.admission.signers import load_signer
from security.admission.trust import load_trust, parse_public
from security.errors import KeyFileError
from security.settings.loading import Settings, load_settings

__all__ = ["add_passphrase", "add_signing", "read_public", "signer"]

MAX_PUBLIC_BYTES = 4 << 10


def add_signing(parser: argparse.ArgumentParser) -> None:
    """Add --key, --public and --passphrase-file."""
    parser.add_argument(
        "--key",
        metavar="FILE|URI",
        help="private key: a PEM file, or a URI of securesystemslib's signers, like "
        "awskms:… or hsm:… (default: keys/ROLE.pem in SEALGATE_HOME)",
    )
    parser.add_argument(
        "--public",
        type=Path,
        metavar="FILE",
        help="public half of a key named by URI (default: the role's only key in the "
        "trust root)",
    )
    add_passphrase(parser)


def add_passphrase(parser: argparse.ArgumentParser) -> None:
    """Add --passphrase-file."""
    parser.add_argument(
        "--passphrase-file",
        type=Path,
        metavar="FILE",
        help="file with the key's passphrase or PIN, 0600 (default: what "
        "SEALGATE_KEY_PASSPHRASE_FILE names)",
    )


def signer(args: argparse.Namespace, role: str) -> Signer:
    """The signer that the options name, for a role.

    Raises:
        KeyFileError: it cannot be used.
    """
    settings = load_settings()
    return load_signer(
        args.key or str(settings.home / "keys" / f"{role}.pem"),
        public_key=lambda: _public(args, settings, role),
        passphrase=args.passphrase_file,
    )


def read_public(path: Path) -> PublicKey:
    """Read a signing key's public half.

    Raises:
        KeyFileError: neither an ECDSA P-256 nor an ML-DSA-65 public key in PEM.
    """
    try:
        data = read_regular(path, max_bytes=MAX_PUBLIC_BYTES)
        return parse_public(data.decode("ascii"), str(path))
    except (BundleError, UnicodeDecodeError) as error:
        raise KeyFileError(f"{path}: not a PEM public key: {error}") from None


def _public(args: argparse.Namespace, settings: Settings, role: str) -> PublicKey:
    if args.public:
        return read_public(args.public)
    keys = load_trust(settings.admission.trust).keys((role,), algorithm=ECDSA_P256)
    if len(keys) != 1:
        raise KeyFileError(
            f"{len(keys)} keys hold the role {role}; name one by --public"
        )
    return next(iter(keys.values()))
