"""What clients may fetch about the keys, and for how long they may keep it.

A key that is replaced still opens requests for the overlap, so that is how long a
configuration is good for, whenever it was fetched: neither the cache time nor the
validity of a signature goes beyond.

Evidence about the machine is bound to that validity, so it is made anew with each
signature, once a minute at most, and only if someone asks.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey

from sealgate.protocol.dsse import PrivateKey, PublicKey
from sealgate.protocol.signedkeys import attestation_nonce, sign_keys, sign_keys_v2
from security.attestation.attesters import Attester, load_attester
from security.errors import AttesterError, KeyFileError
from security.key_files import read_private, write_private
from security.sealing.keyring import KeyRing
from security.settings.attestation import AttestationSettings
from security.settings.sealing import SealingSettings

__all__ = [
    "Document",
    "Publication",
    "generate_identity",
    "generate_mldsa_identity",
    "load_identities",
    "load_identity",
    "load_mldsa_identity",
    "load_publication",
]

# A signature is used again for this long: signing costs more than serving.
SIGNATURE_REUSE_S = 60
# After a failure nobody has the machine asked for evidence again for this long.
ATTEST_AGAIN_S = 5

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Document:
    """Bytes to serve, and for how many seconds they may be cached."""

    content: bytes
    max_age_s: int


@dataclass(frozen=True)
class _Signed:
    """An envelope, for which document and since when, in Unix seconds."""

    document: bytes = b""
    since: int = 0
    envelope: bytes = b""

    def serves(self, ring: KeyRing, now: int) -> bool:
        """Whether it may be handed out once more."""
        age = now - self.since
        return self.document == ring.document and 0 <= age < SIGNATURE_REUSE_S


class Publication:
    """The key configurations as they are served, plain and signed.

    Attributes:
        attests: whether the second version carries evidence about the machine, which
            may take seconds to make.
    """

    def __init__(
        self,
        *,
        overlap_s: int,
        cache_s: int,
        identity: ec.EllipticCurvePrivateKey | None = None,
        mldsa: MLDSA65PrivateKey | None = None,
        attester: Attester | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Nothing is signed yet.

        Args:
            overlap_s: for how long a signature holds.
            cache_s: how long clients may keep a document, within the overlap.
            identity: signs both versions; without it neither is offered.
            mldsa: signs the second, too.
            attester: makes evidence for the second.
            clock: Unix seconds.
        """
        self._overlap_s = overlap_s
        self._cache_s = min(cache_s, overlap_s)
        self._identity = identity
        self._mldsa = mldsa
        self._attester = attester
        self._clock = clock
        self._first = self._second = _Signed()
        self._making = threading.Lock()
        self._failed_until = 0.0
        self.attests = attester is not None

    def plain(self, ring: KeyRing) -> Document:
        """The ``application/ohttp-keys`` document."""
        return Document(ring.document, self._cache_s)

    def signed(self, ring: KeyRing) -> Document | None:
        """The same, signed by the identity key; None without one."""
        if self._identity is None:
            return None
        now = int(self._clock())
        if not self._first.serves(ring, now):
            envelope = sign_keys(
                ring.document,
                self._identity,
                not_before=now,
                not_after=now + self._overlap_s,
            )
            self._first = _Signed(ring.document, now, envelope)
        return self._document(self._first, now)

    def signed_v2(self, ring: KeyRing) -> Document | None:
        """Signed by each identity key, perhaps with evidence; None without a key.

        Where this `attests`, it may wait for the machine; it is called from a thread.

        Raises:
            AttesterError: there is no evidence to be had now.
        """
        if self._identity is None:
            return None
        with self._making:
            now = int(self._clock())
            if not self._second.serves(ring, now):
                self._second = self._sign_v2(ring.document, self._identity, now)
            return self._document(self._second, now)

    def _sign_v2(
        self, document: bytes, identity: ec.EllipticCurvePrivateKey, now: int
    ) -> _Signed:
        window = {"not_before": now, "not_after": now + self._overlap_s}
        keys: list[PrivateKey] = [identity]
        if self._mldsa is not None:
            keys.append(self._mldsa)
        evidence = self._attest(attestation_nonce(document, **window))
        envelope = sign_keys_v2(document, keys, attestation=evidence, **window)
        return _Signed(document, now, envelope)

    def _attest(self, nonce: bytes) -> Mapping[str, Any] | None:
        if self._attester is None:
            return None
        # A clock that was put back does not make this longer.
        if 0 < self._failed_until - self._clock() <= ATTEST_AGAIN_S:
            raise AttesterError("there was no evidence a moment ago")
        try:
            return self._attester.attest(nonce)
        except Exception as error:  # noqa: BLE001  (may be someone else's code)
            self._failed_until = self._clock() + ATTEST_AGAIN_S
            ours = isinstance(error, AttesterError)
            why = str(error) if ours else f"the attester raised {type(error).__name__}"
            _log.warning("no evidence for the key configurations: %s", why)
            raise AttesterError(why) from None

    def _document(self, signed: _Signed, now: int) -> Document:
        left = signed.since + self._overlap_s - now
        return Document(signed.envelope, max(0, min(self._cache_s, left)))


def load_publication(
    settings: SealingSettings, attestation: AttestationSettings = AttestationSettings()
) -> Publication:
    """What the settings ask for; unsigned where there is no identity key.

    Raises:
        KeyFileError: an identity key is there, but cannot be used; or there is one of
            ML-DSA-65 alone, or evidence with none to sign it.
        AttesterError: the attestation key cannot be used.
        SettingsError: nothing installed makes evidence of this type.
    """
    classical, lattice = settings.identity, settings.identity_mldsa
    if lattice.exists() and not classical.exists():
        raise KeyFileError(f"{lattice}: without {classical}, which signs beside it")
    if attestation.type and not classical.exists():
        raise KeyFileError(
            f"{classical}: no such file; it signs attestation's evidence"
        )
    return Publication(
        overlap_s=settings.key_overlap_s,
        cache_s=settings.key_cache_s,
        identity=load_identity(classical) if classical.exists() else None,
        mldsa=load_mldsa_identity(lattice) if lattice.exists() else None,
        attester=load_attester(attestation),
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


def load_identities(settings: SealingSettings) -> tuple[PublicKey, ...]:
    """What clients may pin: the public halves of the identity keys that there are.

    Raises:
        KeyFileError: the ECDSA P-256 key is missing, or one cannot be used.
    """
    classical = load_identity(settings.identity).public_key()
    if not settings.identity_mldsa.exists():
        return (classical,)
    return classical, load_mldsa_identity(settings.identity_mldsa).public_key()


def generate_mldsa_identity(path: Path, *, passphrase: bytes | None = None) -> None:
    """Write a fresh identity key, ML-DSA-65.

    Raises:
        KeyFileError: the file exists.
    """
    write_private(path, MLDSA65PrivateKey.generate(), passphrase=passphrase)


def load_mldsa_identity(path: Path) -> MLDSA65PrivateKey:
    """Read the ML-DSA-65 identity key.

    Raises:
        KeyFileError: missing, or another key.
    """
    key = read_private(path)
    if not isinstance(key, MLDSA65PrivateKey):
        raise KeyFileError(f"{path}: not an ML-DSA-65 key")
    return key
