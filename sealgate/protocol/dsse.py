r"""DSSE envelopes inside Sigstore bundles, signed with ECDSA P-256 or with ML-DSA-65.

Envelope: secure-systems-lab/dsse, envelope.md and protocol.md. Bundle: Sigstore bundle
v0.3 with a public key instead of a certificate; its hint is the hex SHA-256 of the
key's SubjectPublicKeyInfo in PEM. Such a bundle has one signature: what two algorithms
sign is in two bundles over the same payload.

ECDSA is with SHA-256 over the pre-authentication encoding, in DER. ML-DSA-65 (FIPS 204,
algorithm 2: pure, the context empty) is over the encoding itself. securesystemslib's
signers, and so those of key services, sign ``"tuf\x01" || SHA-512(encoding)`` instead.
A key has one of the two forms, and the caller says which: neither is taken for the
other.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.mldsa import (
    MLDSA65PrivateKey,
    MLDSA65PublicKey,
)

from sealgate.errors import JsonError, StatementError
from sealgate.protocol import strict_json
from sealgate.protocol.versions import unread

__all__ = [
    "BUNDLE_MEDIA_TYPE",
    "ECDSA_P256",
    "ML_DSA_65",
    "KeySigner",
    "PrivateKey",
    "PublicKey",
    "Signer",
    "SigningKey",
    "Verified",
    "algorithm_of",
    "check_signature",
    "decode_base64",
    "key_hint",
    "pae",
    "parse_public",
    "prehashed",
    "public_pem",
    "read_hint",
    "read_payload",
    "read_signature",
    "sign",
    "stamped",
    "unstamped",
    "verify",
]

BUNDLE_MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
MAX_BUNDLE_BYTES = 4 << 20
MAX_TIMESTAMPS = 8
MAX_TIMESTAMP_BYTES = 16 << 10

ECDSA_P256 = "ecdsa-p256-sha256"
ML_DSA_65 = "ml-dsa-65"

PublicKey = ec.EllipticCurvePublicKey | MLDSA65PublicKey
PrivateKey = ec.EllipticCurvePrivateKey | MLDSA65PrivateKey

_ECDSA = ec.ECDSA(hashes.SHA256())
_STAMPS = "timestampVerificationData"
_HINT = re.compile(r"[0-9a-f]{64}")


class Signer(Protocol):
    """Whoever can sign with an ECDSA P-256 or ML-DSA-65 key, wherever it is kept."""

    @property
    def hint(self) -> str:
        """`key_hint` of the public key."""

    @property
    def public_key(self) -> PublicKey:
        """What the signatures verify under."""

    def sign(self, data: bytes) -> bytes:
        """A signature over the data: ECDSA with SHA-256 in DER, or 3,309 bytes."""


SigningKey = Signer | PrivateKey


@dataclass(frozen=True)
class KeySigner:
    """A `Signer` over a key in memory; ML-DSA-65 in its plain form."""

    key: PrivateKey = field(repr=False)

    @property
    def hint(self) -> str:
        """`key_hint` of the public key."""
        return key_hint(self.key.public_key())

    @property
    def public_key(self) -> PublicKey:
        """What the signatures verify under."""
        return self.key.public_key()

    def sign(self, data: bytes) -> bytes:
        """A signature over the data: ECDSA with SHA-256 in DER, or 3,309 bytes."""
        if isinstance(self.key, MLDSA65PrivateKey):
            return self.key.sign(data)
        return self.key.sign(data, _ECDSA)


@dataclass(frozen=True)
class Verified:
    """A payload whose signature verified, and by which key: what makes two equal.

    Attributes:
        payload: the signed bytes.
        hint: `key_hint` of the key that signed.
        signature: its raw bytes: DER, or 3,309 bytes of ML-DSA-65.
        timestamps: RFC 3161 TimeStampResp in DER, as the bundle has them: nothing of
            them is verified.
    """

    payload: bytes
    hint: str
    signature: bytes = field(default=b"", repr=False, compare=False)
    timestamps: tuple[bytes, ...] = field(default=(), repr=False, compare=False)


def pae(payload_type: str, payload: bytes) -> bytes:
    """Pre-authentication encoding: what is actually signed (DSSE protocol.md).

    >>> pae("http://example.com/HelloWorld", b"hello world")
    b'DSSEv1 29 http://example.com/HelloWorld 11 hello world'
    """
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def algorithm_of(key: PublicKey) -> str:
    """`ECDSA_P256` or `ML_DSA_65`.

    Raises:
        StatementError: the key is of neither.
    """
    if isinstance(key, MLDSA65PublicKey):
        return ML_DSA_65
    if isinstance(key.curve, ec.SECP256R1):
        return ECDSA_P256
    raise StatementError("neither ECDSA P-256 nor ML-DSA-65")


def parse_public(pem: str) -> PublicKey:
    """The public key of a SubjectPublicKeyInfo in PEM.

    Raises:
        StatementError: not that, or a key of another algorithm.
    """
    try:
        key = serialization.load_pem_public_key(pem.encode(errors="replace"))
    except (ValueError, UnsupportedAlgorithm):
        raise StatementError("not a PEM public key") from None
    if isinstance(key, PublicKey):
        algorithm_of(key)
        return key
    raise StatementError("neither ECDSA P-256 nor ML-DSA-65")


def public_pem(key: PublicKey) -> str:
    """SubjectPublicKeyInfo in PEM: what a `key_hint` is the digest of."""
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    ).decode()


def key_hint(key: PublicKey) -> str:
    """Hex SHA-256 of the key's SubjectPublicKeyInfo in PEM."""
    return hashlib.sha256(public_pem(key).encode()).hexdigest()


def prehashed(data: bytes) -> bytes:
    """What securesystemslib signs with ML-DSA in place of the data.

    securesystemslib 1.6, signer/_mldsa.py: a prefix that no encoding begins with.

    >>> len(prehashed(b""))
    68
    """
    return b"tuf\x01" + hashlib.sha512(data).digest()


def check_signature(
    signature: bytes, data: bytes, key: PublicKey, *, prehash: bool = False
) -> None:
    """Verify a signature over data, by a key whose algorithm the caller has checked.

    Args:
        signature: raw, possibly hostile.
        data: what was signed.
        key: whose algorithm decides how.
        prehash: whether this key signs `prehashed` data; only ML-DSA-65 can.

    Raises:
        StatementError: it does not verify.
    """
    try:
        if isinstance(key, MLDSA65PublicKey):
            key.verify(signature, prehashed(data) if prehash else data)
        elif prehash:
            raise StatementError("only ML-DSA-65 signs a pre-hash")
        else:
            key.verify(signature, data, _ECDSA)
    except InvalidSignature:
        raise StatementError("signature does not verify") from None


def sign(payload: bytes, key: SigningKey) -> bytes:
    """Sign an in-toto payload; returns the Sigstore bundle as JSON."""
    signer = KeySigner(key) if isinstance(key, PrivateKey) else key
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


def verify(
    bundle: bytes,
    keys: Mapping[str, PublicKey],
    *,
    algorithm: str = ECDSA_P256,
    prehash: Collection[str] = (),
) -> Verified:
    """Verify a Sigstore bundle against the keys one trusts.

    1. bounded, strict JSON; exact media type;
    2. the hint names a trusted key: it only selects, trust is the mapping's; the key is
       of the algorithm that the caller expects, whatever the bundle says;
    3. exact payload type; canonical base64; exactly one signature;
    4. the signature over the pre-authentication encoding, in the key's form.

    Transparency log entries are not looked at: keys are pinned, not issued. Time stamps
    are bounded and returned, not verified.

    Args:
        bundle: JSON, possibly hostile.
        keys: trusted public keys by `key_hint`, of either algorithm.
        algorithm: of the signature that is expected, `ECDSA_P256` or `ML_DSA_65`.
        prehash: hints of the ML-DSA-65 keys that sign `prehashed` encodings.

    Raises:
        StatementError: any of the above.
    """
    value = _object(bundle)
    media_type = _get(value, "mediaType")
    if media_type != BUNDLE_MEDIA_TYPE:
        text = unread(media_type, BUNDLE_MEDIA_TYPE)
        raise StatementError(f"bundle: not a Sigstore bundle v0.3: {text}")
    material = _get(value, "verificationMaterial")
    hint = _get(material, "publicKey", "hint")
    key = keys.get(hint) if isinstance(hint, str) else None
    if key is None:
        raise StatementError("signed by a key that is not trusted for it")
    if algorithm_of(key) != algorithm:
        raise StatementError(f"expected a signature by {algorithm}")
    envelope = _get(value, "dsseEnvelope")
    if _get(envelope, "payloadType") != PAYLOAD_TYPE:
        raise StatementError("envelope: not an in-toto payload")
    signatures = _signatures(envelope)
    payload = decode_base64(_get(envelope, "payload"))
    signature = decode_base64(_get(signatures[0], "sig"))
    timestamps = _timestamps(material)
    data = pae(PAYLOAD_TYPE, payload)
    check_signature(signature, data, key, prehash=hint in prehash)
    return Verified(payload, key_hint(key), signature, timestamps)


def read_signature(bundle: bytes) -> bytes:
    """The raw signature in a bundle, which is what a time stamp is of. Unverified.

    Raises:
        StatementError: not a bundle with one signature.
    """
    (signature,) = _signatures(_get(_object(bundle), "dsseEnvelope"))
    return decode_base64(_get(signature, "sig"))


def read_payload(bundle: bytes) -> bytes:
    """The payload of a bundle that something else vouches for. Unverified.

    Raises:
        StatementError: not a bundle with a payload.
    """
    return decode_base64(_get(_object(bundle), "dsseEnvelope", "payload"))


def read_hint(bundle: bytes) -> str:
    """The `key_hint` that a bundle names. Unverified: it only selects.

    Raises:
        StatementError: not a bundle that names a key.
    """
    hint = _get(_object(bundle), "verificationMaterial", "publicKey", "hint")
    if not isinstance(hint, str) or not _HINT.fullmatch(hint):
        raise StatementError("bundle: the key's hint is not a SHA-256 digest")
    return hint


def stamped(bundle: bytes, stamp: bytes) -> bytes:
    """A bundle with a time stamp more; what was signed and `unstamped` stay the same.

    Args:
        bundle: with or without stamps.
        stamp: RFC 3161 TimeStampResp in DER, of `read_signature`; not verified here.

    Raises:
        StatementError: not such a bundle, one that is not written as `sign` writes, or
            with as many stamps as there may be.
    """
    value = _object(bundle)
    material = _get(value, "verificationMaterial")
    stamps = [*_timestamps(material), stamp]
    if len(stamps) > MAX_TIMESTAMPS:
        raise StatementError(f"bundle: more than {MAX_TIMESTAMPS} time stamps")
    material[_STAMPS] = {
        "rfc3161Timestamps": [
            {"signedTimestamp": base64.b64encode(item).decode()} for item in stamps
        ]
    }
    data = strict_json.dumps(value)
    if unstamped(data) != unstamped(bundle):
        raise StatementError("bundle: written otherwise than this project does")
    return data


def unstamped(bundle: bytes) -> bytes:
    """A bundle without its time stamps: the bytes that a verdict's digest is over.

    So a statement can be stamped after a verdict has named it. What has no stamps, or
    is no bundle, is given back as it is.
    """
    # Escapes can spell the name too: then these very bytes are what a digest is over.
    if _STAMPS.encode() not in bundle:
        return bundle
    try:
        value = _object(bundle)
    except StatementError:
        return bundle
    material = value.get("verificationMaterial")
    if not isinstance(material, dict) or material.pop(_STAMPS, None) is None:
        return bundle
    return strict_json.dumps(value)


def _object(bundle: bytes) -> dict[str, Any]:
    try:
        return strict_json.loads_object(bundle, max_bytes=MAX_BUNDLE_BYTES)
    except JsonError as error:
        raise StatementError(f"bundle: {error}") from None


def _signatures(envelope: Any) -> list[Any]:
    signatures = _get(envelope, "signatures")
    if not isinstance(signatures, list) or len(signatures) != 1:
        raise StatementError("envelope: expected exactly one signature")
    return signatures


def _timestamps(material: Any) -> tuple[bytes, ...]:
    """RFC 3161 responses, within bounds."""
    if not isinstance(material, dict):
        raise StatementError("bundle: the verification material is no object")
    data = material.get(_STAMPS) or {}
    listed = data.get("rfc3161Timestamps") or [] if isinstance(data, dict) else None
    if not isinstance(listed, list):
        raise StatementError("bundle: time stamps are malformed")
    if len(listed) > MAX_TIMESTAMPS:
        raise StatementError(f"bundle: more than {MAX_TIMESTAMPS} time stamps")
    found = tuple(decode_base64(_get(item, "signedTimestamp")) for item in listed)
    if any(len(item) > MAX_TIMESTAMP_BYTES for item in found):
        raise StatementError(f"bundle: a time stamp over {MAX_TIMESTAMP_BYTES} bytes")
    return found


def _get(value: Any, *path: str) -> Any:
    for name in path:
        if not isinstance(value, dict) or name not in value:
            raise StatementError(f"bundle: missing {name}")
        value = value[name]
    return value


def decode_base64(text: Any) -> bytes:
    """Decode canonical base64: one encoding for one value, so digests are stable.

    Raises:
        StatementError: not a string, not base64, or another encoding of the same bytes.
    """
    if not isinstance(text, str):
        raise StatementError("envelope: expected base64")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise StatementError("envelope: malformed base64") from None
    if base64.b64encode(data).decode() != text:
        raise StatementError("envelope: base64 is not canonical")
    return data
