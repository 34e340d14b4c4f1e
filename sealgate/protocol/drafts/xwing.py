"""X-Wing, HPKE's MLKEM768-X25519 (draft-connolly-cfrg-xwing-kem, draft-ietf-hpke-pq).

It joins ML-KEM-768 and X25519, so that a secret holds while either of them does. Both,
SHA3-256 and SHAKE256 are libraries'; what stands here is in which order their inputs
go.
"""

from __future__ import annotations

import hashlib
import secrets
from functools import lru_cache

from cryptography.hazmat.primitives.asymmetric.mlkem import (
    MLKEM768PrivateKey,
    MLKEM768PublicKey,
)
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from sealgate.errors import DecryptionError, KeyConfigError
from sealgate.protocol.dhkem import PrivateKey

__all__ = [
    "ENC_BYTES",
    "KEM_XWING",
    "PUBLIC_KEY_BYTES",
    "HybridPrivateKey",
    "encapsulate",
]

KEM_XWING = 0x647A  # draft-ietf-hpke-pq
PUBLIC_KEY_BYTES = 1184 + 32
ENC_BYTES = 1088 + 32
_LABEL = b"\\.//^\\"


class HybridPrivateKey:
    """An X-Wing private key: an ML-KEM-768 and an X25519 key that are used together.

    Attributes:
        kem_id: `KEM_XWING`.
        public_bytes: 1216 bytes.
    """

    kem_id = KEM_XWING

    def __init__(self, mlkem: MLKEM768PrivateKey, x25519: X25519PrivateKey) -> None:
        self.mlkem = mlkem
        self.x25519 = PrivateKey(x25519)
        lattice = mlkem.public_key().public_bytes_raw()
        self.public_bytes = lattice + self.x25519.public_bytes

    def __repr__(self) -> str:
        digest = hashlib.sha256(self.public_bytes).hexdigest()
        return f"<HybridPrivateKey X-Wing public=sha256:{digest}>"

    @classmethod
    def generate(cls) -> HybridPrivateKey:
        """A fresh key from the operating system's generator."""
        return cls.from_seed(secrets.token_bytes(32))

    @classmethod
    def from_seed(cls, seed: bytes) -> HybridPrivateKey:
        """The key that a 32-byte seed expands to (X-Wing, section 5.2).

        Raises:
            KeyConfigError: not 32 bytes.
        """
        if len(seed) != 32:
            raise KeyConfigError("an X-Wing seed has 32 bytes")
        expanded = hashlib.shake_256(seed).digest(96)
        return cls(
            MLKEM768PrivateKey.from_seed_bytes(expanded[:64]),
            X25519PrivateKey.from_private_bytes(expanded[64:]),
        )

    def decapsulate(self, enc: bytes) -> bytes:
        """The 32-byte secret that was encapsulated to this key (X-Wing, 5.5).

        Raises:
            DecryptionError: not 1120 bytes, or its X25519 half gives the all-zero
                secret. X-Wing would go on with the other half; no honest sender is
                refused by not doing so.
        """
        if len(enc) != ENC_BYTES:
            raise DecryptionError("invalid encapsulated key")
        lattice, point = enc[:1088], enc[1088:]
        return _combine(
            self.mlkem.decapsulate(lattice),
            self.x25519.exchange(point),
            point=point,
            public_point=self.x25519.public_bytes,
        )


def encapsulate(public_key: bytes, ephemeral: PrivateKey) -> tuple[bytes, bytes]:
    """A fresh secret for the holder of a public key (section 5.4).

    Args:
        public_key: raw bytes, possibly hostile.
        ephemeral: X25519's part of the randomness, used once. ML-KEM's part cannot be
            given: the library takes none.

    Returns:
        The 32-byte secret, and the encapsulated key to send.

    Raises:
        DecryptionError: the public key is not valid.
    """
    point, public_point = ephemeral.public_bytes, public_key[1184:]
    try:
        lattice_key = _lattice_key(public_key[:1184])
    except ValueError:
        raise DecryptionError("invalid public key") from None
    lattice_secret, lattice = lattice_key.encapsulate()
    shared = ephemeral.exchange(public_point)
    secret = _combine(lattice_secret, shared, point=point, public_point=public_point)
    return secret, lattice + point


# Public, and few: reading one costs a client as much as encapsulating to it.
_lattice_key = lru_cache(maxsize=16)(MLKEM768PublicKey.from_public_bytes)


def _combine(
    lattice_secret: bytes, shared: bytes, *, point: bytes, public_point: bytes
) -> bytes:
    """The combiner (section 5.3)."""
    joined = lattice_secret + shared + point + public_point + _LABEL
    return hashlib.sha3_256(joined).digest()
