"""Signing keys in files: a role's ECDSA P-256 key, and its ML-DSA-65 key beside it."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey

from security.errors import KeyFileError
from security.key_files import read_private, write_private

__all__ = [
    "generate_mldsa_key",
    "generate_signing_key",
    "load_mldsa_key",
    "load_signing_key",
    "mldsa_key_file",
]


def mldsa_key_file(path: Path) -> Path:
    """Where the ML-DSA-65 key is that belongs to a P-256 key's file.

    >>> mldsa_key_file(Path("keys/release.pem")).name
    'release.mldsa.pem'
    """
    return path.with_suffix(".mldsa.pem")


def generate_signing_key(
    path: Path, *, passphrase: bytes | None = None
) -> ec.EllipticCurvePrivateKey:
    """Write a fresh ECDSA P-256 key, 0600, encrypted if a passphrase is given.

    Raises:
        KeyFileError: the file exists.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    write_private(path, key, passphrase=passphrase)
    return key


def load_signing_key(
    path: Path, *, passphrase: Path | None = None
) -> ec.EllipticCurvePrivateKey:
    """Read a signing key.

    Args:
        path: the key's file.
        passphrase: file of its passphrase; the environment's if absent.

    Raises:
        KeyFileError: not an ECDSA P-256 key that only this user can read.
    """
    key = read_private(path, passphrase=passphrase)
    if isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(
        key.curve, ec.SECP256R1
    ):
        return key
    raise KeyFileError(f"{path}: not an ECDSA P-256 key")


def generate_mldsa_key(
    path: Path, *, passphrase: bytes | None = None
) -> MLDSA65PrivateKey:
    """Write a fresh ML-DSA-65 key, 0600, encrypted if a passphrase is given.

    Raises:
        KeyFileError: the file exists.
    """
    key = MLDSA65PrivateKey.generate()
    write_private(path, key, passphrase=passphrase)
    return key


def load_mldsa_key(path: Path, *, passphrase: Path | None = None) -> MLDSA65PrivateKey:
    """Read an ML-DSA-65 key.

    Args:
        path: the key's file.
        passphrase: file of its passphrase; the environment's if absent.

    Raises:
        KeyFileError: not an ML-DSA-65 key that only this user can read.
    """
    key = read_private(path, passphrase=passphrase)
    if isinstance(key, MLDSA65PrivateKey):
        return key
    raise KeyFileError(f"{path}: not an ML-DSA-65 key")
