"""The key encapsulations that sealed requests may use, by HPKE's identifier."""

from __future__ import annotations

from collections.abc import Mapping

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

from sealgate.errors import DecryptionError, KeyConfigError
from sealgate.protocol import dhkem
from sealgate.protocol.dhkem import KEM_X25519, PrivateKey
from sealgate.protocol.drafts import xwing
from sealgate.protocol.drafts.xwing import KEM_XWING, HybridPrivateKey

__all__ = [
    "ENC_BYTES",
    "KEM_NAMES",
    "KEM_X25519",
    "KEM_XWING",
    "PUBLIC_KEY_BYTES",
    "HybridPrivateKey",
    "KemPrivateKey",
    "PrivateKey",
    "encapsulate",
    "kem_of",
    "public_pem",
]

# Npk and Nenc, in bytes.
PUBLIC_KEY_BYTES: Mapping[int, int] = {
    KEM_X25519: 32,
    KEM_XWING: xwing.PUBLIC_KEY_BYTES,
}
ENC_BYTES: Mapping[int, int] = {KEM_X25519: 32, KEM_XWING: xwing.ENC_BYTES}

# As people call the kind of a key.
KEM_NAMES: Mapping[int, str] = {KEM_X25519: "X25519", KEM_XWING: "X-Wing"}

KemPrivateKey = PrivateKey | HybridPrivateKey


def encapsulate(
    kem_id: int, public_key: bytes, *, ephemeral: PrivateKey | None = None
) -> tuple[bytes, bytes]:
    """A fresh secret for the holder of a public key.

    Args:
        kem_id: `KEM_X25519` or `KEM_XWING`.
        public_key: raw bytes, possibly hostile.
        ephemeral: X25519's part of the randomness, for published test vectors only.

    Returns:
        The 32-byte secret, and the encapsulated key to send.

    Raises:
        DecryptionError: the public key is not valid.
    """
    ephemeral = ephemeral or PrivateKey.generate()
    if kem_id == KEM_X25519:
        return dhkem.encapsulate(public_key, ephemeral)
    return xwing.encapsulate(public_key, ephemeral)


def kem_of(public_key: bytes) -> int:
    """The KEM of a raw public key, by its length.

    Raises:
        KeyConfigError: neither 32 nor 1216 bytes.

    >>> kem_of(bytes(32)) == KEM_X25519
    True
    """
    for kem_id, size in PUBLIC_KEY_BYTES.items():
        if len(public_key) == size:
            return kem_id
    raise KeyConfigError("a public key has 32 bytes, of X-Wing 1216")


def public_pem(public_key: bytes) -> bytes:
    """A raw public key in PEM: SubjectPublicKeyInfo; of X-Wing two, ML-KEM-768 first.

    No library reads X-Wing's own identifier yet, and each half is read by all.

    Raises:
        KeyConfigError: as `kem_of`.
        DecryptionError: the ML-KEM half is no such key.
    """
    halves: list[MLKEM768PublicKey | X25519PublicKey] = []
    if kem_of(public_key) == KEM_XWING:
        try:
            halves.append(MLKEM768PublicKey.from_public_bytes(public_key[:-32]))
        except ValueError:
            raise DecryptionError("invalid public key") from None
    halves.append(X25519PublicKey.from_public_bytes(public_key[-32:]))
    encoding = serialization.Encoding.PEM
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    return b"".join(half.public_bytes(encoding, spki) for half in halves)
