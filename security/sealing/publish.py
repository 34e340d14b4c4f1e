"""What clients may fetch about the keys, and for how long they may keep it.

A key that is replaced still opens requests for the overlap, so that is how long a
configuration is good for, whenever it was fetched: neither the cache time nor the
validity of a signature goes beyond.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from sealgate.protocol.signedkeys import sign_keys
from security.errors import KeyFileError
from security.key_files import read_private, write_private
from security.sealing.keyring import KeyRing
from security.settings.sealing import SealingSettings

__all__ = [
    "Document",
    "Publication",
    "generate_identity",
    "load_identity",
    "load_publication",
]

# A signature is used again for this long: signing costs more than serving.
SIGNATURE_REUSE_S = 60


@dataclass(frozen=True)
class Document:
    """Bytes to serve, and for how many seconds they may be cached."""

    content: bytes
    max_age_s: int


class Publication:
    """The key configurations as they are served, plain and signed."""

    def __init__(
        self,
        *,
        overlap_s: int,
        cache_s: int,
        identity: ec.EllipticCurvePrivateKey | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._overlap_s = overlap_s
        self._cache_s = min(cache_s, overlap_s)
        self._identity = identity
        self._clock = clock
        self._signed: tuple[bytes, int, bytes] | None = None

    def plain(self, ring: KeyRing) -> Document:
        """The ``application/ohttp-keys`` document."""
        return Document(ring.document, self._cache_s)

    def signed(self, ring: KeyRing) -> Document | None:
        """The same, signed by the identity key; None without one."""
        if self._identity is None:
            return None
        now = int(self._clock())
        document, since, envelope = self._signed or (b"", 0, b"")
        if document != ring.document or not 0 <= now - since < SIGNATURE_REUSE_S:
            since, end = now, now + self._overlap_s
            envelope = sign_keys(
                ring.document, self._identity, not_before=since, not_after=end
            )
            self._signed = ring.document, since, envelope
        left = since + self._overlap_s - now
        return Document(envelope, max(0, min(self._cache_s, left)))


def load_publication(settings: SealingSettings) -> Publication:
    """What the settings ask for; unsigned where there is no identity key.

    Raises:
        KeyFileError: the identity key is there, but cannot be used.
    """
    path = settings.identity
    return Publication(
        overlap_s=settings.key_overlap_s,
        cache_s=settings.key_cache_s,
        identity=load_identity(path) if path.exists() else None,
    )


def generate_identity(path: Path, *, passphrase: bytes | None = None) -> None:
    """Write a fresh identity key, ECDSA P-256.

    Raises:
        KeyFileError: the file exists.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    write_private(path, key, passphrase=passphrase)


def load_identity(path: Path) -> ec.EllipticCurvePrivateKey:
    """Read the identity key.

    Raises:
        KeyFileError: missing, or not an ECDSA P-256 key.
    """
    key = read_private(path)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != "secp256r1":
        raise KeyFileError(f"{path}: not an ECDSA P-256 key")
    return key
