"""DHKEM(X25519, HKDF-SHA256) and HPKE's labeled HKDF (RFC 9180, section 4).

X25519 and HKDF are the library's; what stands here is in which order their inputs go.
"""

from __future__ import annotations

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import (
    X25519PrivateKey,
    X25519PublicKey,
)
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

from sealgate.errors import DecryptionError, KeyConfigError

__all__ = [
    "KEM_X25519",
    "PrivateKey",
    "encapsulate",
    "hkdf_expand",
    "hkdf_extract",
    "labeled_expand",
    "labeled_extract",
    "labeled_ikm",
    "labeled_info",
]

KEM_X25519 = 0x0020  # RFC 9180, section 7.1
_VERSION = b"HPKE-v1"
_SHA256 = hashes.SHA256()
_SUITE = b"KEM" + KEM_X25519.to_bytes(2, "big")
_SECRET_BYTES = 32


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
        return _secret(self.exchange(enc), enc + self.public_bytes)


def encapsulate(public_key: bytes, ephemeral: PrivateKey) -> tuple[bytes, bytes]:
    """A secret for the holder of a public key (RFC 9180, section 4.1).

    Args:
        public_key: raw bytes, possibly hostile.
        ephemeral: used once.

    Returns:
        The 32-byte secret, and the encapsulated key to send.

    Raises:
        DecryptionError: the public key is not valid.
    """
    point = ephemeral.public_bytes
    return _secret(ephemeral.exchange(public_key), point + public_key), point


def hkdf_extract(salt: bytes, ikm: bytes) -> bytes:
    """HKDF-Extract with SHA-256 (RFC 5869, section 2.2)."""
    return HKDF.extract(_SHA256, salt, ikm)


def hkdf_expand(prk: bytes, info: bytes, length: int) -> bytes:
    """HKDF-Expand with SHA-256 (RFC 5869, section 2.3)."""
    return HKDFExpand(algorithm=_SHA256, length=length, info=info).derive(prk)


def labeled_extract(salt: bytes, suite_id: bytes, label: bytes, ikm: bytes) -> bytes:
    """LabeledExtract (RFC 9180, section 4)."""
    return hkdf_extract(salt, labeled_ikm(suite_id, label=label, ikm=ikm))


def labeled_ikm(suite_id: bytes, *, label: bytes, ikm: bytes) -> bytes:
    """What LabeledExtract extracts from (RFC 9180, section 4)."""
    return _VERSION + suite_id + label + ikm


def labeled_expand(
    prk: bytes, suite_id: bytes, *, label: bytes, info: bytes, length: int
) -> bytes:
    """LabeledExpand (RFC 9180, section 4)."""
    labeled = labeled_info(suite_id, label=label, info=info, length=length)
    return hkdf_expand(prk, labeled, length)


def labeled_info(suite_id: bytes, *, label: bytes, info: bytes, length: int) -> bytes:
    """What LabeledExpand expands: often the same for many secrets."""
    return length.to_bytes(2, "big") + _VERSION + suite_id + label + info


# What ExtractAndExpand has in front of what differs between two requests.
_EAE_PRK = labeled_ikm(_SUITE, label=b"eae_prk", ikm=b"")
_SHARED_SECRET = labeled_info(
    _SUITE, label=b"shared_secret", info=b"", length=_SECRET_BYTES
)


def _secret(shared: bytes, kem_context: bytes) -> bytes:
    """ExtractAndExpand of DHKEM (RFC 9180, section 4.1)."""
    prk = hkdf_extract(b"", _EAE_PRK + shared)
    return hkdf_expand(prk, _SHARED_SECRET + kem_context, _SECRET_BYTES)
