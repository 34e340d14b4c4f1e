"""Options of the subcommands that sign, and the signers they name."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from models.errors import BundleError
from models.files import read_regular
from sealgate.protocol.dsse import ECDSA_P256, ML_DSA_65, PublicKey, Signer
from security.admission.keys import mldsa_key_file
from security.errors import KeyFileError
from security.key_files import is_uri
from security.settings.loading import Settings, load_settings

if TYPE_CHECKING:
    from security.admission.attest import Signers

__all__ = ["add_passphrase", "add_signing", "read_public", "role_signers", "signers"]

MAX_PUBLIC_BYTES = 8 << 10


def add_signing(parser: argparse.ArgumentParser) -> None:
    """Add --key, --mldsa-key, their public halves, and with what else one signs."""
    from security.commands.stamping import add_timestamp_url  # noqa: PLC0415

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
    parser.add_argument(
        "--mldsa-key",
        metavar="FILE|URI",
        help="ML-DSA-65 key that signs beside it (default: NAME.mldsa.pem beside a key "
        "in a file NAME.pem, where it is there)",
    )
    parser.add_argument(
        "--mldsa-public",
        type=Path,
        metavar="FILE",
        help="public half of an ML-DSA-65 key named by URI (default: as --public)",
    )
    add_passphrase(parser)
    add_timestamp_url(parser)


def add_passphrase(parser: argparse.ArgumentParser) -> None:
    """Add --passphrase-file."""
    parser.add_argument(
        "--passphrase-file",
        type=Path,
        metavar="FILE",
        help="file with the key's passphrase or PIN, 0600 (default: what "
        "SEALGATE_KEY_PASSPHRASE_FILE names)",
    )


def signers(args: argparse.Namespace, role: str) -> Signers:
    """What the options name to sign and to stamp with, for a role.

    Raises:
        KeyFileError: a key cannot be used, or the trust root takes its signatures for
            another form than they have.
        SettingsError: --timestamp-url is no URL, or nobody would believe its stamps.
    """
    from security.commands.stamping import stamping  # noqa: PLC0415

    settings = load_settings()
    found = role_signers(
        settings,
        role,
        key=args.key,
        mldsa_key=args.mldsa_key,
        public=(args.public, args.mldsa_public),
        passphrase=args.passphrase_file,
    )
    return replace(found, stamp=stamping(args.timestamp_url, settings.admission.trust))


def role_signers(
    settings: Settings,
    role: str,
    *,
    key: str | None = None,
    mldsa_key: str | None = None,
    public: tuple[Path | None, Path | None] = (None, None),
    passphrase: Path | None = None,
) -> Signers:
    """What a role signs with.

    Args:
        settings: where keys and trust root are.
        role: whose keys.
        key: P-256 key, a file or URI; the role's file if absent.
        mldsa_key: ML-DSA-65 key; if absent, the file beside the other, if it is there.
        public: public halves of keys that are named by URI.
        passphrase: file of their passphrase or PIN.

    Raises:
        KeyFileError: as `signers`.
    """
    from security.admission.attest import Signers  # noqa: PLC0415
    from security.admission.signers import load_signer  # noqa: PLC0415

    key = key or str(settings.home / "keys" / f"{role}.pem")
    beside = None if is_uri(key) else mldsa_key_file(Path(key))
    if mldsa_key is None and beside is not None and beside.exists():
        mldsa_key = str(beside)
    named = {ECDSA_P256: (key, public[0]), ML_DSA_65: (mldsa_key, public[1])}
    found: dict[str, Signer] = {}
    for algorithm, (name, path) in named.items():
        if name is not None:
            found[algorithm] = load_signer(
                name,
                public_key=partial(_public, settings, role, algorithm, path),
                passphrase=passphrase,
                algorithm=algorithm,
            )
    _check_forms(settings, role, found)
    return Signers(found[ECDSA_P256], found.get(ML_DSA_65))


def _check_forms(settings: Settings, role: str, found: dict[str, Signer]) -> None:
    """Say now what every door would refuse later."""
    from security.admission.signers import LibrarySigner  # noqa: PLC0415
    from security.admission.trust import TrustRoot  # noqa: PLC0415
    from security.admission.trust_store import load_trust  # noqa: PLC0415

    path = settings.admission.trust
    trust = load_trust(path) if path.exists() else TrustRoot({})
    signer = found.get(ML_DSA_65)
    if signer is None:
        if trust.has(role, ML_DSA_65):
            print(
                f"notice: {role} has an ML-DSA-65 key in {path}, and signs without it: "
                "a policy that leaves `signatures` to the trust root refuses that",
                file=sys.stderr,
            )
        return
    library, told = isinstance(signer, LibrarySigner), signer.hint in trust.prehash
    if signer.hint in trust.keys((role,)) and library != told:
        form = "a pre-hash" if library else "the encoding itself"
        raise KeyFileError(
            f"the ML-DSA-65 key {signer.hint} signs {form}, and {path} expects the "
            f"other form of it: `keys add{' --prehash' if library else ''}`"
        )


def read_public(path: Path) -> PublicKey:
    """Read a signing key's public half.

    Raises:
        KeyFileError: neither an ECDSA P-256 nor an ML-DSA-65 public key in PEM.
    """
    from security.admission.trust import parse_public  # noqa: PLC0415

    try:
        data = read_regular(path, max_bytes=MAX_PUBLIC_BYTES)
        return parse_public(data.decode("ascii"), str(path))
    except (BundleError, UnicodeDecodeError) as error:
        raise KeyFileError(f"{path}: not a PEM public key: {error}") from None


def _public(
    settings: Settings, role: str, algorithm: str, path: Path | None
) -> PublicKey:
    from security.admission.trust_store import load_trust  # noqa: PLC0415

    if path is not None:
        return read_public(path)
    keys = load_trust(settings.admission.trust).keys((role,), algorithm=algorithm)
    if len(keys) != 1:
        option = "--public" if algorithm == ECDSA_P256 else "--mldsa-public"
        raise KeyFileError(
            f"{len(keys)} keys hold the role {role}; name one by {option}"
        )
    return next(iter(keys.values()))
