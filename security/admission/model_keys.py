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

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from models.errors import BundleError
from models.files import read_regular
from sealgate.protocol.kem import KEM_XWING, KemPrivateKey, public_pem
from sealgate.protocol.sealedfile import key_hint
from security.admission.command_source import CommandSource
from security.admission.gate import Admission
from security.admission.tpm_source import TpmSource
from security.errors import KeyFileError
from security.hpke_keys import (
    encode_hpke_key,
    fresh_hpke_key,
    parse_hpke_public,
    read_hpke_key,
)
from security.key_files import is_uri, write_secret

__all__ = [
    "SOURCES",
    "FileSource",
    "KeySource",
    "ModelKey",
    "former_key_file",
    "former_key_files",
    "generate_model_key",
    "key_source",
    "load_model_key",
    "load_model_public",
    "model_public_pem",
    "rotate_model_key",
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

    Beside it may be keys that were in its place before, for models that are sealed to
    them: see `rotate_model_key`.

    Attributes:
        path: read anew for each model; its passphrase's file is the one that the
            environment names.
    """

    path: Path

    def key(self, admission: Admission) -> ModelKey:
        """The key to which the model is sealed, or else the file's.

        Raises:
            KeyFileError: as `load_model_key`.
        """
        key, hints = load_model_key(self.path), admission.bundle.sealed_to
        if key_hint(key.public_bytes) in hints:
            return key
        for hint in hints:
            former = former_key_file(self.path, hint)
            if former.exists():
                return load_model_key(former)
        return key


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
    path: Path, *, kem_id: int = KEM_XWING, passphrase: bytes | None = None
) -> None:
    """Write a fresh key that models can be sealed to, 0600.

    Args:
        path: of the file.
        kem_id: `KEM_XWING` or `KEM_X25519`.
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
    """Read the public half of a deployment's model key.

    Returns:
        Its raw bytes: 32 of X25519, 1216 of X-Wing.

    Raises:
        KeyFileError: not such a public key in PEM.
    """
    try:
        data = read_regular(path, max_bytes=MAX_PUBLIC_BYTES)
    except BundleError as error:
        raise KeyFileError(f"{path}: not a PEM public key: {error}") from None
    return parse_hpke_public(data, str(path))


def model_public_pem(key: ModelKey) -> str:
    """The public half in PEM: what `seal --to` takes."""
    return public_pem(key.public_bytes).decode()


def former_key_file(path: Path, hint: str) -> Path:
    """Where a model key is put aside when another takes its place.

    >>> former_key_file(Path("keys/model.pem"), "ab" * 32)
    PosixPath('keys/model.abababababababab.pem')
    """
    return path.with_suffix(f".{hint[:16]}{path.suffix}")


def former_key_files(path: Path) -> list[Path]:
    """The keys that were put aside for the one at a path."""
    start, end = f"{path.stem}.", path.suffix
    name = re.compile(rf"{re.escape(start)}[0-9a-f]{{16}}{re.escape(end)}")
    return sorted(p for p in path.parent.iterdir() if name.fullmatch(p.name))


def rotate_model_key(path: Path, *, passphrase: bytes | None = None) -> Path:
    """Put a fresh X-Wing key in the place of a model key.

    The old one is put aside and still opens what is sealed to it. At every moment there
    is a key at the path, and each step can be repeated.

    Returns:
        Where the old one is now.

    Raises:
        KeyFileError: the key there cannot be used.
    """
    old = key_hint(load_model_key(path).public_bytes)
    fresh, aside = path.with_suffix(f".next{path.suffix}"), former_key_file(path, old)
    if not fresh.exists():  # else an earlier rotation stopped half way
        generate_model_key(fresh, passphrase=passphrase)
    load_model_key(fresh)
    if not aside.exists():
        os.link(path, aside)
    os.replace(fresh, path)
    return aside
