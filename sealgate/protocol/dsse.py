"""DSSE envelopes inside Sigstore bundles, signed with ECDSA P-256 and SHA-256.

Envelope: secure-systems-lab/dsse, envelope.md and protocol.md. Bundle: Sigstore bundle
v0.3 with a public key instead of a certificate; its hint is the hex SHA-256 of the
key's SubjectPublicKeyInfo in PEM.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from sealgate.errors import JsonError, StatementError
from sealgate.protocol import strict_json

__all__ = [
    "BUNDLE_MEDIA_TYPE",
    "KeySigner",
    "Signer",
    "SigningKey",
    "Verified",
    "key_hint",
    "pae",
    "sign",
    "verify",
]

BUNDLE_MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
MAX_BUNDLE_BYTES = 4 << 20

_ECDSA = ec.ECDSA(hashes.SHA256())


class Signer(Protocol):
    """Whoever can sign with an ECDSA P-256 key, wherever that key is kept."""

    @property
    def hint(self) -> str:
        """`key_hint` of the public key."""

    @property
    def public_key(self) -> ec.EllipticCurvePublicKey:
        """What the signatures verify under."""

    def sign(self, data: bytes) -> bytes:
        """An ECDSA signature with SHA-256 over the data, in DER."""


SigningKey = Signer | ec.EllipticCurvePrivateKey


@dataclass(frozen=True)
class KeySigner:
    """A `Signer` over a key in memory."""

    key: ec.EllipticCurvePrivateKey = field(repr=False)

    @property
    def hint(self) -> str:
        """`key_hint` of the public key."""
        return key_hint(self.key.public_key())

    @property
    def public_key(self) -> ec.EllipticCurvePublicKey:
        """What the signatures verify under."""
        return self.key.public_key()

    def sign(self, data: bytes) -> bytes:
        """An ECDSA signature with SHA-256 over the data, in DER."""
        return self.key.sign(data, _ECDSA)


@dataclass(frozen=True)
class Verified:
    """A payload whose signature verified, and by which key.

    Attributes:
        payload: the signed bytes.
        hint: `key_hint` of the key that signed.
    """

    payload: bytes
    hint: str


def pae(payload_type: str, payload: bytes) -> bytes:
    """Pre-authentication encoding: what is actually signed (DSSE protocol.md).

    >>> pae("http://example.com/HelloWorld", b"hello world")
    b'DSSEv1 29 http://example.com/HelloWorld 11 hello world'
    """
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def key_hint(key: ec.EllipticCurvePublicKey) -> str:
    """Hex SHA-256 of the key's SubjectPublicKeyInfo in PEM."""
    pem = key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return hashlib.sha256(pem).hexdigest()


def sign(payload: bytes, key: SigningKey) -> bytes:
    """Sign an in-toto payload; returns the Sigstore bundle as JSON."""
    signer = KeySigner(key) if isinstance(key, ec.EllipticCurvePrivateKey) else key
    signature = signer.sign(pae(PAYLOAD_TYPE, payload))
    return strict_json.dumps(
        {
            "mediaType": BUNDLE_MEDIA_TYPE,
            "verificationMaterial": {
                "publicKey": {"hint": signer.hint},
                "tlogEntries": [],
            },
            "dsseEnvelope": {
                "payload": base64.b64encode(payload).decode(),
                "payloadType": PAYLOAD_TYPE,
                "signatures": [{"sig": base64.b64encode(signature).decode()}],
            },
        }
    )


def verify(bundle: bytes, keys: Mapping[str, ec.EllipticCurvePublicKey]) -> Verified:
    """Verify a Sigstore bundle against the keys one trusts.

    1. bounded, strict JSON; exact media type;
    2. the hint names a trusted key: it only selects, trust is the mapping's;
    3. exact payload type; canonical base64; exactly one signature;
    4. ECDSA over the pre-authentication encoding.

    Transparency log entries are not looked at: keys are pinned, not issued.

    Args:
        bundle: JSON, possibly hostile.
        keys: trusted public keys by `key_hint`.

    Raises:
        StatementError: any of the above.
    """
    try:
        value = strict_json.loads_object(bundle, max_bytes=MAX_BUNDLE_BYTES)
    except JsonError as error:
        raise StatementError(f"bundle: {error}") from None
    if _get(value, "mediaType") != BUNDLE_MEDIA_TYPE:
        raise StatementError("bundle: not a Sigstore bundle v0.3")
    hint = _get(value, "verificationMaterial", "publicKey", "hint")
    key = keys.get(hint) if isinstance(hint, str) else None
    if key is None:
        raise StatementError("signed by a key that is not trusted for it")
    envelope = _get(value, "dsseEnvelope")
    if _get(envelope, "payloadType") != PAYLOAD_TYPE:
        raise StatementError("envelope: not an in-toto payload")
    signatures = _get(envelope, "signatures")
    if not isinstance(signatures, list) or len(signatures) != 1:
        raise StatementError("envelope: expected exactly one signature")
    payload = _base64(_get(envelope, "payload"))
    try:
        key.verify(
            _base64(_get(signatures[0], "sig")), pae(PAYLOAD_TYPE, payload), _ECDSA
        )
    except InvalidSignature:
        raise StatementError("signature does not verify") from None
    return Verified(payload=payload, hint=key_hint(key))


def _get(value: Any, *path: str) -> Any:
    for name in path:
        if not isinstance(value, dict) or name not in value:
            raise StatementError(f"bundle: missing {name}")
        value = value[name]
    return value


def _base64(text: Any) -> bytes:
    """Decode canonical base64: one encoding for one value, so digests are stable."""
    if not isinstance(text, str):
        raise StatementError("envelope: expected base64")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise StatementError("envelope: malformed base64") from None
    if base64.b64encode(data).decode() != text:
        raise StatementError("envelope: base64 is not canonical")
    return data
