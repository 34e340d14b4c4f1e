"""Hybrid public key encryption, base mode with export (RFC 9180).

`cryptography` ships a single-shot HPKE without the exporter that Oblivious HTTP needs
for its responses, so the key schedule stands here, on that library's HKDF and AEADs;
the KEMs are next door in `kem`. No primitive is implemented in this file.

One context is for one direction: the sender seals, the receiver opens, both export.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import GCM

from sealgate.errors import DecryptionError, KeyConfigError
from sealgate.protocol import kem
from sealgate.protocol.dhkem import (
    hkdf_expand,
    hkdf_extract,
    labeled_expand,
    labeled_extract,
    labeled_ikm,
    labeled_info,
)
from sealgate.protocol.kem import (
    ENC_BYTES,
    KEM_X25519,
    KEM_XWING,
    HybridPrivateKey,
    KemPrivateKey,
    PrivateKey,
)

__all__ = [
    "AEAD_AES_128_GCM",
    "AEAD_CHACHA20_POLY1305",
    "KDF_HKDF_SHA256",
    "KEM_X25519",
    "KEM_XWING",
    "Context",
    "HybridPrivateKey",
    "KemPrivateKey",
    "PieceOpener",
    "PrivateKey",
    "Suite",
    "hkdf_expand",
    "hkdf_extract",
    "setup_receiver",
    "setup_sender",
]

# Identifiers: RFC 9180, sections 7.2 and 7.3.
KDF_HKDF_SHA256 = 0x0001
AEAD_AES_128_GCM = 0x0001
AEAD_CHACHA20_POLY1305 = 0x0003

_MODE_BASE = b"\x00"
_EXPORTER_BYTES = 32

Aead = AESGCM | ChaCha20Poly1305
Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True)
class _AeadParameters:
    """Nk and Nn, in bytes (RFC 9180, section 7.3)."""

    algorithm: type[AESGCM] | type[ChaCha20Poly1305]
    nk: int
    nn: int


_AEADS: Mapping[int, _AeadParameters] = {
    AEAD_AES_128_GCM: _AeadParameters(AESGCM, nk=16, nn=12),
    AEAD_CHACHA20_POLY1305: _AeadParameters(ChaCha20Poly1305, nk=32, nn=12),
}


@dataclass(frozen=True)
class Suite:
    """A KEM, a KDF and an AEAD by their registered identifiers.

    Raises:
        KeyConfigError: on construction, for an algorithm that is not supported.

    >>> Suite(KEM_X25519, KDF_HKDF_SHA256, AEAD_AES_128_GCM).nk
    16
    """

    kem_id: int
    kdf_id: int
    aead_id: int
    identifier: bytes = field(init=False, repr=False, compare=False)
    # Nk, Nn and Nenc in bytes (RFC 9180, sections 7.1 and 7.3), looked up once.
    nk: int = field(init=False, repr=False, compare=False)
    nn: int = field(init=False, repr=False, compare=False)
    nenc: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if (
            self.kem_id not in ENC_BYTES
            or self.kdf_id != KDF_HKDF_SHA256
            or self.aead_id not in _AEADS
        ):
            raise KeyConfigError(
                f"unsupported suite KEM {self.kem_id:#06x}, KDF {self.kdf_id:#06x}, "
                f"AEAD {self.aead_id:#06x}"
            )
        parameters = _AEADS[self.aead_id]
        for name, value in (
            ("identifier", b"HPKE" + self.kem + _u16(self.kdf_id, self.aead_id)),
            ("nk", parameters.nk),
            ("nn", parameters.nn),
            ("nenc", ENC_BYTES[self.kem_id]),
        ):
            object.__setattr__(self, name, value)

    @property
    def kem(self) -> bytes:
        """The KEM identifier, two bytes in network order."""
        return _u16(self.kem_id)

    def aead(self, key: bytes) -> Aead:
        """The suite's AEAD under a key of `nk` bytes."""
        return _AEADS[self.aead_id].algorithm(key)


class Context:
    """Encryption context of one direction (RFC 9180, section 5.2).

    Not safe for concurrent use: the nonce is a counter.
    """

    def __init__(
        self, suite: Suite, *, key: bytes, base_nonce: bytes, exporter_secret: bytes
    ) -> None:
        self.suite = suite
        self._aead = suite.aead(key)
        self._key = key
        self._base_nonce = int.from_bytes(base_nonce, "big")
        self._exporter_secret = exporter_secret
        self._sequence = 0

    def __repr__(self) -> str:
        return f"<Context {self.suite} sequence={self._sequence}>"

    def seal(self, plaintext: Buffer, *, aad: bytes = b"") -> bytes:
        """Encrypt the next message."""
        ciphertext = self._aead.encrypt(self._nonce(), plaintext, aad)
        self._sequence += 1
        return ciphertext

    def open(self, ciphertext: Buffer, *, aad: bytes = b"") -> bytes:
        """Decrypt the next message.

        Raises:
            DecryptionError: it does not authenticate; the sequence does not advance.
        """
        try:
            plaintext = self._aead.decrypt(self._nonce(), ciphertext, aad)
        except InvalidTag:
            raise DecryptionError("message does not authenticate") from None
        self._sequence += 1
        return plaintext

    def open_in_pieces(self) -> PieceOpener:
        """Decrypt the next message while it arrives; for AES-128-GCM only.

        Raises:
            KeyConfigError: the library has no streaming form of the suite's AEAD.
        """
        if self.suite.aead_id != AEAD_AES_128_GCM:
            raise KeyConfigError("this AEAD opens whole messages only")
        opener = PieceOpener(self._key, self._nonce())
        self._sequence += 1
        return opener

    def export(self, exporter_context: bytes, length: int) -> bytes:
        """Derive a secret that only the two parties know (RFC 9180, section 5.3)."""
        return labeled_expand(
            self._exporter_secret,
            self.suite.identifier,
            label=b"sec",
            info=exporter_context,
            length=length,
        )

    def _nonce(self) -> bytes:
        # 2^96 messages cannot be sent; RFC 9180's overflow check has nothing to catch.
        nonce = self._base_nonce ^ self._sequence
        return nonce.to_bytes(self.suite.nn, "big")


class PieceOpener:
    """Decrypts one AES-GCM message, piece by piece, into the caller's buffer.

    What it has written is not authentic until `finish` returns: until then nobody may
    read it, and if `finish` raises, nobody ever.
    """

    def __init__(self, key: bytes, nonce: bytes) -> None:
        self._decryptor = Cipher(AES(key), GCM(nonce)).decryptor()

    def write(self, ciphertext: Buffer, buffer: memoryview) -> None:
        """Decrypt the next piece to the front of a buffer that is as long at least."""
        self._decryptor.update_into(ciphertext, buffer)

    def finish(self, tag: bytes) -> None:
        """Check the tag.

        Raises:
            DecryptionError: the message does not authenticate.
        """
        try:
            self._decryptor.finalize_with_tag(tag)
        except (InvalidTag, ValueError):
            raise DecryptionError("message does not authenticate") from None


def setup_sender(
    suite: Suite, public_key: bytes, info: bytes, *, ephemeral: PrivateKey | None = None
) -> tuple[bytes, Context]:
    """SetupBaseS (RFC 9180, section 5.1.1).

    Args:
        suite: what both sides agreed on.
        public_key: the receiver's raw public key.
        info: binds the context to its use; both sides must give the same.
        ephemeral: for published test vectors only; fresh if absent.

    Returns:
        The encapsulated key, to be sent along, and the context that seals.

    Raises:
        DecryptionError: the public key is not valid.
    """
    secret, enc = kem.encapsulate(suite.kem_id, public_key, ephemeral=ephemeral)
    return enc, _key_schedule(suite, secret, info)


def setup_receiver(
    suite: Suite, private_key: KemPrivateKey, enc: bytes, info: bytes
) -> Context:
    """SetupBaseR (RFC 9180, section 5.1.1).

    Raises:
        DecryptionError: the encapsulated key is not valid, or the private key is for
            another KEM.
    """
    if private_key.kem_id != suite.kem_id:
        raise DecryptionError("invalid encapsulated key")
    return _key_schedule(suite, private_key.decapsulate(enc), info)


def _key_schedule(suite: Suite, shared_secret: bytes, info: bytes) -> Context:
    """KeySchedule in base mode: empty psk and psk_id (RFC 9180, section 5.1)."""
    labels = _labels(suite.identifier, info, suite.nk, suite.nn)
    secret = hkdf_extract(shared_secret, labels.secret)
    return Context(
        suite,
        key=hkdf_expand(secret, labels.key, suite.nk),
        base_nonce=hkdf_expand(secret, labels.base_nonce, suite.nn),
        exporter_secret=hkdf_expand(secret, labels.exporter, _EXPORTER_BYTES),
    )


@dataclass(frozen=True, slots=True)
class _Labels:
    """What the key schedule extracts from, and expands, beside the shared secret."""

    secret: bytes
    key: bytes
    base_nonce: bytes
    exporter: bytes


# Public values only, and few: a gateway asks for one per suite and key that it offers.
@lru_cache(maxsize=64)
def _labels(suite_id: bytes, info: bytes, nk: int, nn: int) -> _Labels:
    context = (
        _MODE_BASE
        + labeled_extract(b"", suite_id, b"psk_id_hash", b"")
        + labeled_extract(b"", suite_id, b"info_hash", info)
    )

    def expanded(label: bytes, length: int) -> bytes:
        return labeled_info(suite_id, label=label, info=context, length=length)

    return _Labels(
        labeled_ikm(suite_id, label=b"secret", ikm=b""),
        expanded(b"key", nk),
        expanded(b"base_nonce", nn),
        expanded(b"exp", _EXPORTER_BYTES),
    )


def _u16(*values: int) -> bytes:
    return b"".join(value.to_bytes(2, "big") for value in values)
