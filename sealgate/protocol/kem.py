"""The key encapsulations that sealed requests may use, by HPKE's identifier."""

from __future__ import annotations

from collections.abc import Mapping

from sealgate.protocol import dhkem
from sealgate.protocol.dhkem import KEM_X25519, PrivateKey
from sealgate.protocol.drafts import xwing
from sealgate.protocol.drafts.xwing import KEM_XWING, HybridPrivateKey

__all__ = [
    "ENC_BYTES",
    "KEM_X25519",
    "KEM_XWING",
    "PUBLIC_KEY_BYTES",
    "HybridPrivateKey",
    "KemPrivateKey",
    "PrivateKey",
    "encapsulate",
]

# Npk and Nenc, in bytes.
PUBLIC_KEY_BYTES: Mapping[int, int] = {
    KEM_X25519: 32,
    KEM_XWING: xwing.PUBLIC_KEY_BYTES,
}
ENC_BYTES: Mapping[int, int] = {KEM_X25519: 32, KEM_XWING: xwing.ENC_BYTES}

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
