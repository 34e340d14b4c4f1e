"""Key encapsulation: X25519 (RFC 9180, 4.1) and X-Wing, and HPKE's labeled HKDF.

X-Wing (draft-connolly-cfrg-xwing-kem, HPKE's MLKEM768-X25519) joins ML-KEM-768 and
X25519, so that a secret holds while either of them does. Both, SHA3-256 and SHAKE256
are libraries'; what stands here is in which order their inputs go.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.mlkem import (
    MLKEM768PrivateKey,
    MLKEM768PublicKey,
)
from cryptography.hazmat.primitives.asymmetric.x25519 import (
    X25519PrivateKey,
    X25519PublicKey,
)
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

from sealgate.errors import DecryptionError, KeyConfigError

__all__ = [
    "ENC_BYTES",
    "KEM_X25519",
    "KEM_XWING",
    "PUBLIC_KEY_BYTES",
    "HybridPrivateKey",
    "KemPrivateKey",
    "PrivateKey",
    "encapsulate",
    "hkdf_expand",
    "hkdf_extract",
    "labeled_expand",
    "labeled_extract",
]

# Identifiers: RFC 9180, section 7.1; draft-ietf-hpke-pq.
KEM_X25519 = 0x0020
KEM_XWING = 0x647A

# Npk and Nenc, in bytes.
PUBLIC_KEY_BYTES: Mapping[int, int] = {KEM_X25519: 32, KEM_XWING: 1184 + 32}
ENC_BYTES: Mapping[int, int] = {KEM_X25519: 32, KEM_XWING: 1088 + 32}

_VERSION = b"HPKE-v1"
_SHA256 = hashes.SHA256()
_X25519_SUITE = b"KEM" + KEM_X25519.to_bytes(2, "big")
_XWING_LABEL = b"\\.//^\\"


class PrivateKey:
    """An X25519 private key. Its `repr` shows the public half only.

    Attributes:
        kem_id: `KEM_X25519`.
        public_bytes: 32 bytes.
    """

    kem_id = KEM_X25519

    def __init__(self, key: X25519PrivateKey) -> None:
        self.key = key
        self.public_bytes = key.public_key().public_bytes_raw()

    def __repr__(self) -> str:
        return f"<PrivateKey X25519 public={self.public_bytes.hex()}>"

    @classmethod
    def generate(cls) -> PrivateKey:
        """A fresh key from the operating system's generator."""
        return cls(X25519PrivateKey.generate())

    @classmethod
    def from_bytes(cls, data: bytes) -> PrivateKey:
        """The key whose 32 raw bytes these are.

        Raises:
            KeyConfigError: not 32 bytes.
        """
        if len(data) != 32:
            raise KeyConfigError("an X25519 private key has 32 bytes")
        return cls(X25519PrivateKey.from_private_bytes(data))

    def exchange(self, peer: bytes) -> bytes:
        """Diffie-Hellman with a raw public key (RFC 7748, section 6.1).

        Raises:
            DecryptionError: ``peer`` is not 32 bytes, or gives the all-zero secret.
        """
        try:
            return self.key.exchange(X25519PublicKey.from_public_bytes(peer))
        except ValueError:
            raise DecryptionError("invalid encapsulated key") from None

    def decapsulate(self, enc: bytes) -> bytes:
        """The 32-byte secret that was encapsulated to this key.

        Raises:
            DecryptionError: as `exchange`.
        """
        return _dhkem_secret(self.exchange(enc), enc + self.public_bytes)


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
        if len(enc) != ENC_BYTES[KEM_XWING]:
            raise DecryptionError("invalid encapsulated key")
        lattice, point = enc[:1088], enc[1088:]
        return _combine(
            self.mlkem.decapsulate(lattice),
            self.x25519.exchange(point),
            point=point,
            public_point=self.x25519.public_bytes,
        )


KemPrivateKey = PrivateKey | HybridPrivateKey


def encapsulate(
    kem_id: int, public_key: bytes, *, ephemeral: PrivateKey | None = None
) -> tuple[bytes, bytes]:
    """A fresh secret for the holder of a public key.

    Args:
        kem_id: `KEM_X25519` or `KEM_XWING`.
        public_key: raw bytes, possibly hostile.
        ephemeral: X25519's part of the randomness, for published test vectors only.
            ML-KEM's part cannot be given: the library takes none.

    Returns:
        The 32-byte secret, and the encapsulated key to send.

    Raises:
        DecryptionError: the public key is not valid.
    """
    ephemeral = ephemeral or PrivateKey.generate()
    point = ephemeral.public_bytes
    if kem_id == KEM_X25519:
        shared = ephemeral.exchange(public_key)
        return _dhkem_secret(shared, point + public_key), point
    public_point = public_key[1184:]
    try:
        lattice_key = MLKEM768PublicKey.from_public_bytes(public_key[:1184])
    except ValueError:
        raise DecryptionError("invalid public key") from None
    lattice_secret, lattice = lattice_key.encapsulate()
    shared = ephemeral.exchange(public_point)
    secret = _combine(lattice_secret, shared, point=point, public_point=public_point)
    return secret, lattice + point


def hkdf_extract(salt: bytes, ikm: bytes) -> bytes:
    """HKDF-Extract with SHA-256 (RFC 5869, section 2.2)."""
    return HKDF.extract(_SHA256, salt, ikm)


def hkdf_expand(prk: bytes, info: bytes, length: int) -> bytes:
    """HKDF-Expand with SHA-256 (RFC 5869, section 2.3)."""
    return HKDFExpand(algorithm=_SHA256, length=length, info=info).derive(prk)


def labeled_extract(salt: bytes, suite_id: bytes, label: bytes, ikm: bytes) -> bytes:
    """LabeledExtract (RFC 9180, section 4)."""
    return hkdf_extract(salt, _VERSION + suite_id + label + ikm)


def labeled_expand(
    prk: bytes, suite_id: bytes, *, label: bytes, info: bytes, length: int
) -> bytes:
    """LabeledExpand (RFC 9180, section 4)."""
    labeled = length.to_bytes(2, "big") + _VERSION + suite_id + label + info
    return hkdf_expand(prk, labeled, length)


def _dhkem_secret(shared: bytes, kem_context: bytes) -> bytes:
    """ExtractAndExpand of DHKEM (RFC 9180, section 4.1)."""
    prk = labeled_extract(b"", _X25519_SUITE, b"eae_prk", shared)
    return labeled_expand(
        prk, _X25519_SUITE, label=b"shared_secret", info=kem_context, length=32
    )


def _combine(
    lattice_secret: bytes, shared: bytes, *, point: bytes, public_point: bytes
) -> bytes:
    """X-Wing's combiner (section 5.3)."""
    joined = lattice_secret + shared + point + public_point + _XWING_LABEL
    return hashlib.sha3_256(joined).digest()
