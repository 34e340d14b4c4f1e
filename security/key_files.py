"""Private keys in PEM files that only their owner can read, encrypted or not."""

from __future__ import annotations

import hmac
import os
import re
from collections.abc import Mapping
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from models.errors import BundleError
from models.files import read_regular, write_atomic
from security.errors import KeyFileError

__all__ = [
    "MAX_KEY_BYTES",
    "PASSPHRASE_VARIABLE",
    "encode_private",
    "is_uri",
    "passphrase_file",
    "pseudonym",
    "read_passphrase",
    "read_private",
    "read_secret",
    "write_private",
    "write_secret",
]

MAX_KEY_BYTES = 16 << 10
MAX_PASSPHRASE_BYTES = 1 << 10

# Names a file, never the passphrase: an environment is inherited, dumped and logged.
PASSPHRASE_VARIABLE = "SEALGATE_KEY_PASSPHRASE_FILE"  # noqa: S105  (a name)

_URI = re.compile(r"[a-z][a-z0-9+.-]+:.*", re.DOTALL)
_ENCRYPTED = b"-----BEGIN ENCRYPTED PRIVATE KEY-----"


def is_uri(key: str) -> bool:
    """Whether a key is named by URI rather than by path.

    >>> is_uri("awskms:alias/release"), is_uri("keys/release.pem")
    (True, False)
    """
    return _URI.fullmatch(key) is not None


def read_secret(path: Path) -> bytes:
    """Read a file that must belong to this user alone.

    Raises:
        KeyFileError: missing, not a regular file, or others may read or write it.
    """
    try:
        data = read_regular(path, max_bytes=MAX_KEY_BYTES, follow_links=True)
        mode = os.stat(path).st_mode & 0o777
    except (BundleError, OSError) as error:
        raise KeyFileError(f"{path}: {error}") from None
    if mode & 0o077:
        raise KeyFileError(f"{path}: permissions {mode:04o} let others in; chmod 600")
    return data


def write_secret(path: Path, data: bytes) -> None:
    """Write a secret with permissions 0600 from the first moment on.

    Raises:
        KeyFileError: the file exists; keys are never overwritten.
    """
    if path.exists():
        raise KeyFileError(f"{path}: exists already; keys are never overwritten")
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_atomic(path, data, mode=0o600)


def passphrase_file(environ: Mapping[str, str] | None = None) -> Path | None:
    """The file that the environment names for passphrases, if it does."""
    name = (os.environ if environ is None else environ).get(PASSPHRASE_VARIABLE)
    return Path(name) if name else None


def read_passphrase(path: Path) -> bytes:
    """Read a passphrase: the file without the line feed at its end.

    Raises:
        KeyFileError: as `read_secret`; empty, or longer than 1024 bytes.
    """
    passphrase = read_secret(path).removesuffix(b"\n").removesuffix(b"\r")
    if not 1 <= len(passphrase) <= MAX_PASSPHRASE_BYTES:
        raise KeyFileError(
            f"{path}: no passphrase of 1 to {MAX_PASSPHRASE_BYTES} bytes"
        )
    return passphrase


def read_private(path: Path, *, passphrase: Path | None = None) -> PrivateKeyTypes:
    """Read a PKCS#8 PEM private key, decrypting it if it is encrypted.

    Args:
        path: the key's file.
        passphrase: file of its passphrase; the environment's if absent. Not read for a
            key that is not encrypted.

    Raises:
        KeyFileError: as `read_secret`, the file holds something else, or its passphrase
            is missing or another.
    """
    data = read_secret(path)
    encrypted = data.lstrip().startswith(_ENCRYPTED)
    source = passphrase or passphrase_file()
    if encrypted and source is None:
        raise KeyFileError(
            f"{path}: is encrypted; name its passphrase's file in {PASSPHRASE_VARIABLE}"
        )
    password = read_passphrase(source) if encrypted and source else None
    try:
        return serialization.load_pem_private_key(data, password=password)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        what = "another passphrase, or not" if encrypted else "not"
        raise KeyFileError(f"{path}: {what} a PKCS#8 private key") from None


def encode_private(key: PrivateKeyTypes, *, passphrase: bytes | None = None) -> bytes:
    """A private key as PKCS#8 PEM, encrypted if a passphrase is given."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(passphrase)
        if passphrase
        else serialization.NoEncryption(),
    )


def write_private(
    path: Path, key: PrivateKeyTypes, *, passphrase: bytes | None = None
) -> None:
    """Write a private key as PKCS#8 PEM, encrypted if a passphrase is given.

    Raises:
        KeyFileError: the file exists.
    """
    write_secret(path, encode_private(key, passphrase=passphrase))


def pseudonym(key: bytes, subject: str) -> str:
    """A keyed hash of a subject: the same for the same subject, and no way back.

    >>> len(pseudonym(b"k" * 32, "alice"))
    32
    """
    return hmac.digest(key, subject.encode(), "sha256").hex()[:32]
