"""HPKE private keys in PEM: those that open requests, and those that open models.

An X25519 key is one PKCS#8 block; an X-Wing key is two, ML-KEM-768 and X25519. Either
may be encrypted, under the passphrase whose file the environment names: a server finds
it without anyone there.
"""

from __future__ import annotations

import re
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.mlkem import (
    MLKEM768PrivateKey,
    MLKEM768PublicKey,
)
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.asymmetric.x25519 import (
    X25519PrivateKey,
    X25519PublicKey,
)

from sealgate.protocol.hpke import (
    KEM_X25519,
    HybridPrivateKey,
    KemPrivateKey,
    PrivateKey,
)
from security.errors import KeyFileError
from security.key_files import (
    PASSPHRASE_VARIABLE,
    encode_private,
    passphrase_file,
    read_passphrase,
    read_secret,
)

__all__ = [
    "encode_hpke_key",
    "fresh_hpke_key",
    "parse_hpke_key",
    "parse_hpke_public",
    "read_hpke_key",
]

_ENCRYPTED = b"-----BEGIN ENCRYPTED PRIVATE KEY-----"
_BLOCK = re.compile(rb"-----BEGIN ([A-Z ]+)-----.+?-----END \1-----", re.DOTALL)


def fresh_hpke_key(kem_id: int) -> KemPrivateKey:
    """A fresh key: X25519 for `KEM_X25519`, else X-Wing."""
    if kem_id == KEM_X25519:
        return PrivateKey.generate()
    return HybridPrivateKey.generate()


def encode_hpke_key(key: KemPrivateKey, *, passphrase: bytes | None = None) -> bytes:
    """A key in PEM, encrypted if a passphrase is given."""
    halves: list[PrivateKeyTypes] = (
        [key.key] if isinstance(key, PrivateKey) else [key.mlkem, key.x25519.key]
    )
    return b"".join(encode_private(half, passphrase=passphrase) for half in halves)


def read_hpke_key(path: Path) -> KemPrivateKey:
    """Read a key's file.

    Raises:
        KeyFileError: as `read_secret` and `parse_hpke_key`.
    """
    return parse_hpke_key(read_secret(path), str(path))


def parse_hpke_key(
    data: bytes, where: str, *, passphrase: bytes | None = None
) -> KemPrivateKey:
    """A key from its PEM.

    Args:
        data: one or two PKCS#8 blocks, of at most some KiB.
        where: it came from, for errors, which show nothing of the data.
        passphrase: of encrypted blocks; the environment's if absent.

    Raises:
        KeyFileError: something else, or encrypted and its passphrase is missing or
            another.
    """
    match _private_keys(data, where, passphrase):
        case [X25519PrivateKey() as key]:
            return PrivateKey(key)
        case [MLKEM768PrivateKey() as lattice, X25519PrivateKey() as curve]:
            return HybridPrivateKey(lattice, curve)
    raise KeyFileError(f"{where}: not an X25519 or X-Wing key")


def parse_hpke_public(data: bytes, where: str) -> bytes:
    """A raw public key from its PEM, as `kem.public_pem` writes it.

    Args:
        data: possibly hostile, of at most some KiB.
        where: it came from, for errors.

    Raises:
        KeyFileError: something else.
    """
    blocks = [match[0] for match in _BLOCK.finditer(data)]
    try:
        keys = [serialization.load_pem_public_key(block) for block in blocks or [data]]
    except (ValueError, UnsupportedAlgorithm) as error:
        raise KeyFileError(f"{where}: not a PEM public key: {error}") from None
    match keys:
        case [X25519PublicKey() as key]:
            return key.public_bytes_raw()
        case [MLKEM768PublicKey() as lattice, X25519PublicKey() as curve]:
            return lattice.public_bytes_raw() + curve.public_bytes_raw()
    raise KeyFileError(f"{where}: not an X25519 or X-Wing public key")


def _private_keys(
    data: bytes, where: str, passphrase: bytes | None
) -> list[PrivateKeyTypes]:
    password: bytes | None = None
    if _ENCRYPTED in data and passphrase is not None:
        password = passphrase
    elif _ENCRYPTED in data:
        source = passphrase_file()
        if source is None:
            raise KeyFileError(
                f"{where}: is encrypted; name its passphrase's file in "
                f"{PASSPHRASE_VARIABLE}"
            )
        password = read_passphrase(source)
    blocks = [match[0] for match in _BLOCK.finditer(data)]
    try:
        return [serialization.load_pem_private_key(b, password) for b in blocks]
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise KeyFileError(f"{where}: another passphrase, or not PKCS#8") from None
