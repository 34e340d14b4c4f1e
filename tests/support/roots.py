"""Signed trust roots by real keys, well made and not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey

from sealgate.protocol.dsse import KeySigner, PrivateKey, key_hint
from sealgate.protocol.envelope import Envelope
from security.admission.trust import RootKeys, TrustRoot
from security.admission.trust_chain import PAYLOAD_TYPE, TrustDocument, parse

NOW = datetime(2027, 3, 1, tzinfo=UTC)
YEAR = timedelta(days=365)


@cache
def p256(name: str) -> ec.EllipticCurvePrivateKey:
    """A key of that name, the same for the whole run."""
    return ec.generate_private_key(ec.SECP256R1())


@cache
def mldsa(name: str) -> MLDSA65PrivateKey:
    return MLDSA65PrivateKey.generate()


def hint(key: PrivateKey) -> str:
    return key_hint(key.public_key())


def root_keys(keys: Iterable[PrivateKey], threshold: int = 1) -> RootKeys:
    return RootKeys({hint(key): key.public_key() for key in keys}, threshold)


def trust(
    version: int,
    keys: Iterable[PrivateKey],
    *,
    threshold: int = 1,
    expires: datetime = NOW + YEAR,
    base: TrustRoot = TrustRoot({}),
) -> TrustRoot:
    """What a version says."""
    return replace(
        base, version=version, expires=expires, root=root_keys(keys, threshold)
    )


def signed(root: TrustRoot, signers: Sequence[PrivateKey]) -> TrustDocument:
    """A version as it is handed over."""
    envelope = Envelope(PAYLOAD_TYPE, root.to_json())
    for key in signers:
        envelope = envelope.signed_by(KeySigner(key))
    return parse(envelope.to_json(), f"version {root.version}")


def version(
    number: int,
    keys: Sequence[PrivateKey],
    *,
    threshold: int = 1,
    signers: Sequence[PrivateKey] | None = None,
    expires: datetime = NOW + YEAR,
    base: TrustRoot = TrustRoot({}),
) -> TrustDocument:
    """A version that its own root keys signed, or others."""
    root = trust(number, keys, threshold=threshold, expires=expires, base=base)
    return signed(root, keys if signers is None else signers)
