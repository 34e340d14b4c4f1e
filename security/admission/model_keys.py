"""Model keys, and where a deployment gets its own from.

A source is asked for the key of a sealed model with an `Admission` in hand: after every
check of the gate and of the ciphertext. So a key is released by verdict, and a source
outside may hold its own conditions to the model that was admitted.

``admission.model_key`` names the source by the scheme of a URI; without one it is a
file::

    keys/model.pem                        a file, encrypted or not
    exec:/usr/local/bin/fetch-model-key   a program that writes the key
    tpm:/var/lib/sealgate/model.tpm       a file whose key a TPM gives in one state only

What a source gives is PEM, as `security.hpke_keys` reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

from models.errors import BundleError
from models.files import read_regular
from sealgate.protocol.hpke import KEM_X25519, KemPrivateKey
from security.admission.command_source import CommandSource
from security.admission.gate import Admission
from security.admission.tpm_source import TpmSource
from security.errors import KeyFileError
from security.hpke_keys import encode_hpke_key, fresh_hpke_key, read_hpke_key
from security.key_files import is_uri, write_secret

__all__ = [
    "SOURCES",
    "FileSource",
    "KeySource",
    "ModelKey",
    "generate_model_key",
    "key_source",
    "load_model_key",
    "load_model_public",
    "model_public_pem",
]

ModelKey = KemPrivateKey
MAX_PUBLIC_BYTES = 4 << 10


class KeySource(Protocol):
    """Gives a deployment's model key for a model that was admitted."""

    def key(self, admission: Admission) -> ModelKey:
        """The key that opens this model.

        Args:
            admission: passed every check but the opening itself.

        Raises:
            KeyFileError: there is none, or it is not released. The message is for the
                log, and shows nothing of the key.
        """


@dataclass(frozen=True)
class FileSource:
    """A `KeySource`: a file that only this user can read, encrypted or not.

    Attributes:
        path: read anew for each model; its passphrase's file is the one that the
            environment names.
    """

    path: Path

    def key(self, admission: Admission) -> ModelKey:
        """Read the file.

        Raises:
            KeyFileError: as `load_model_key`.
        """
        del admission  # a file has no conditions
        return load_model_key(self.path)


# By the scheme of the URI; given is what follows the colon.
SOURCES: Mapping[str, Callable[[str], KeySource]] = {
    "exec": CommandSource.parse,
    "tpm": TpmSource.parse,
}


def key_source(setting: Path | str) -> KeySource:
    """The source that a setting names; nothing is read yet.

    Args:
        setting: a path, or a URI whose scheme is one of `SOURCES`.

    Raises:
        KeyFileError: an unknown scheme, or one that is not followed by what it needs.

    >>> key_source("keys/model.pem")
    FileSource(path=PosixPath('keys/model.pem'))
    """
    if isinstance(setting, Path) or not is_uri(setting):
        return FileSource(Path(setting))
    scheme, _, rest = setting.partition(":")
    if scheme not in SOURCES:
        known = ", ".join(f"{name}:" for name in sorted(SOURCES))
        raise KeyFileError(
            f"admission.model_key: {scheme}: is no source of keys; a path, or {known}"
        )
    return SOURCES[scheme](rest)


def generate_model_key(
    path: Path, *, kem_id: int = KEM_X25519, passphrase: bytes | None = None
) -> None:
    """Write a fresh key that models can be sealed to, 0600.

    Args:
        path: of the file.
        kem_id: `KEM_X25519` or `KEM_XWING`.
        passphrase: encrypts the file, if given.

    Raises:
        KeyFileError: the file exists.
    """
    write_secret(path, encode_hpke_key(fresh_hpke_key(kem_id), passphrase=passphrase))


def load_model_key(path: Path) -> ModelKey:
    """Read a deployment's model key.

    Raises:
        KeyFileError: not an X25519 or X-Wing key that only this user can read, or its
            passphrase is missing or another.
    """
    return read_hpke_key(path)


def load_model_public(path: Path) -> bytes:
    """Read the public half of a deployment's model key; returns its 32 raw bytes.

    Raises:
        KeyFileError: not an X25519 public key in PEM.
    """
    try:
        data = read_regular(path, max_bytes=MAX_PUBLIC_BYTES)
        key = serialization.load_pem_public_key(data)
    except (BundleError, ValueError, UnsupportedAlgorithm) as error:
        raise KeyFileError(f"{path}: not a PEM public key: {error}") from None
    if not isinstance(key, X25519PublicKey):
        raise KeyFileError(f"{path}: not an X25519 public key")
    return key.public_bytes_raw()


def model_public_pem(key: ModelKey) -> str:
    """The public half in PEM: what `seal --to` takes."""
    return (
        X25519PublicKey.from_public_bytes(key.public_bytes)
        .public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        .decode()
    )
