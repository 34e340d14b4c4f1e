"""Key configurations signed by a deployment's identity keys.

HPKE keys change often. A client that knows the identity keys, which stay for years,
accepts whichever of them those keys vouch for, and nobody in between, not even whoever
ends TLS, can offer keys of their own.

The first version is a DSSE envelope (secure-systems-lab/dsse) with one signature, ECDSA
P-256, whose payload is the object::

    {"keys": <base64 of the application/ohttp-keys document>,
     "not_after": <Unix seconds>, "not_before": <Unix seconds>}

The times are inside, so that keys which were replaced cannot be served again later.

The second is at a path of its own, so that clients which know the first alone never
meet it. Its envelope has a signature for each identity key, ECDSA P-256 or ML-DSA-65
(FIPS 204, pure, the context empty, over the same encoding), and its payload has one
member more, ``attestation``: null, or an object with a ``type``, evidence about the
machine that is bound to the rest of the payload by `attestation_nonce`. Each version
has a payload type of its own: no signature of one is a signature of the other.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from sealgate.errors import JsonError, StatementError
from sealgate.protocol import keyconfig, strict_json
from sealgate.protocol.dsse import (
    ECDSA_P256,
    KeySigner,
    PrivateKey,
    PublicKey,
    algorithm_of,
    check_signature,
    decode_base64,
    key_hint,
    pae,
)
from sealgate.protocol.keyconfig import KeyConfig
from sealgate.protocol.versions import unread

__all__ = [
    "SIGNED_KEYS_MEDIA_TYPE",
    "SIGNED_KEYS_PATH",
    "SIGNED_KEYS_V2_PATH",
    "SignedKeys",
    "attestation_nonce",
    "sign_keys",
    "sign_keys_v2",
    "verify_keys",
    "verify_keys_v2",
]

SIGNED_KEYS_PATH = "/.well-known/sealgate-keys"
SIGNED_KEYS_V2_PATH = "/.well-known/sealgate-keys-v2"
SIGNED_KEYS_MEDIA_TYPE = "application/vnd.dsse.envelope.v1+json"
PAYLOAD_TYPE = "application/vnd.sealgate.ohttp-keys+json"
PAYLOAD_TYPE_V2 = "application/vnd.sealgate.ohttp-keys.v2+json"
MAX_ENVELOPE_BYTES = 256 << 10
# Two algorithms, and two keys of each while one replaces the other.
MAX_SIGNATURES = 4
MAX_TYPE_CHARACTERS = 64

_NONCE_LABEL = b"sealgate attested keys v1\x00"
_MEMBERS = frozenset({"keys", "not_after", "not_before"})


@dataclass(frozen=True)
class SignedKeys:
    """Key configurations that trusted identity keys vouch for.

    Attributes:
        configs: in the gateway's order of preference; at least one.
        document: the ``application/ohttp-keys`` bytes they were decoded from.
        not_before, not_after: Unix seconds, both inclusive.
        hint: `key_hint` of the identity key that signed; of the first one that did.
        hints: of all identity keys whose signatures were verified.
        attestation: evidence about the machine, an object with its ``type``; nothing of
            it is verified. None where there is none.
    """

    configs: tuple[KeyConfig, ...]
    document: bytes
    not_before: int
    not_after: int
    hint: str
    hints: tuple[str, ...] = ()
    attestation: Mapping[str, Any] | None = None

    @property
    def nonce(self) -> bytes:
        """What evidence about these keys must be over."""
        return attestation_nonce(
            self.document, not_before=self.not_before, not_after=self.not_after
        )


def attestation_nonce(document: bytes, *, not_before: int, not_after: int) -> bytes:
    """What evidence is bound to: SHA-256 over the keys and their window, 32 bytes.

    A label comes first, which no other digest here begins with. So evidence is about
    these keys, and as old as their window at most: what was made for another window is
    of no use in this one.

    >>> attestation_nonce(b"keys", not_before=0, not_after=1).hex()[:16]
    '985380007b95d2b8'
    """
    core = _core(document, not_before, not_after)
    return hashlib.sha256(_NONCE_LABEL + strict_json.dumps(core)).digest()


def sign_keys(
    document: bytes,
    key: ec.EllipticCurvePrivateKey,
    *,
    not_before: int,
    not_after: int,
) -> bytes:
    """Sign a key configuration document; returns the envelope as JSON.

    Args:
        document: ``application/ohttp-keys`` bytes.
        key: the deployment's identity key.
        not_before: Unix seconds from which on the keys are vouched for.
        not_after: Unix seconds until which they are, inclusive.
    """
    payload = strict_json.dumps(_core(document, not_before, not_after))
    return _envelope(PAYLOAD_TYPE, payload, [key])


def sign_keys_v2(
    document: bytes,
    keys: Sequence[PrivateKey],
    *,
    not_before: int,
    not_after: int,
    attestation: Mapping[str, Any] | None = None,
) -> bytes:
    """Sign a key configuration document in the second version, by each of some keys.

    Args:
        document: ``application/ohttp-keys`` bytes.
        keys: the deployment's identity keys, ECDSA P-256 and ML-DSA-65.
        not_before: Unix seconds from which on the keys are vouched for.
        not_after: Unix seconds until which they are, inclusive.
        attestation: evidence over `attestation_nonce` of these, with its ``type``.
    """
    payload = _core(document, not_before, not_after) | {"attestation": attestation}
    return _envelope(PAYLOAD_TYPE_V2, strict_json.dumps(payload), keys)


def _core(document: bytes, not_before: int, not_after: int) -> dict[str, Any]:
    return {
        "keys": base64.b64encode(document).decode(),
        "not_after": not_after,
        "not_before": not_before,
    }


def _envelope(kind: str, payload: bytes, keys: Sequence[PrivateKey]) -> bytes:
    signers, data = [KeySigner(key) for key in keys], pae(kind, payload)
    return strict_json.dumps(
        {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": kind,
            "signatures": [
                {
                    "keyid": signer.hint,
                    "sig": base64.b64encode(signer.sign(data)).decode(),
                }
                for signer in signers
            ],
        }
    )


def verify_keys(
    envelope: bytes,
    keys: Mapping[str, PublicKey],
    *,
    now: float,
    leeway_s: float = 60.0,
) -> SignedKeys:
    """Verify an envelope of the first version against the identity keys one trusts.

    1. bounded, strict JSON; exact payload type; exactly one signature;
    2. its key id names a trusted key: it only selects, trust is the mapping's;
    3. ECDSA over the pre-authentication encoding; only then is the payload read;
    4. exactly the three members; ``not_before <= now <= not_after``, with leeway;
    5. the key configurations decode.

    Args:
        envelope: JSON, possibly hostile.
        keys: trusted public keys by `sealgate.protocol.dsse.key_hint`; those of
            ML-DSA-65 sign no envelope of this version.
        now: Unix seconds.
        leeway_s: tolerated difference of the two clocks.

    Raises:
        StatementError: 1 to 4.
        KeyConfigError: 5.
    """
    value = _object(envelope, "envelope")
    if value.get("payloadType") != PAYLOAD_TYPE:
        raise StatementError("envelope: not signed key configurations")
    signatures = value.get("signatures")
    if not isinstance(signatures, list) or len(signatures) != 1:
        raise StatementError("envelope: expected exactly one signature")
    (signature,) = signatures
    hint = signature.get("keyid") if isinstance(signature, dict) else None
    key = keys.get(hint) if isinstance(hint, str) else None
    if key is None or algorithm_of(key) != ECDSA_P256:
        raise StatementError("signed by a key that is not trusted for it")
    payload = decode_base64(value.get("payload"))
    data = pae(PAYLOAD_TYPE, payload)
    check_signature(decode_base64(signature.get("sig")), data, key)
    content = _object(payload, "payload")
    if content.keys() != _MEMBERS:
        raise StatementError("payload: unexpected members")
    return _signed(content, (key_hint(key),), now=now, leeway_s=leeway_s)


def verify_keys_v2(
    envelope: bytes,
    keys: Mapping[str, PublicKey],
    *,
    now: float,
    leeway_s: float = 60.0,
) -> SignedKeys:
    """Verify an envelope of the second version against the identity keys one trusts.

    1. bounded, strict JSON; exact payload type; 1 to 4 signatures, no key id twice;
    2. signatures whose key id names a trusted key are verified, each with the algorithm
       of that key, whatever the envelope holds; one that does not verify refuses all;
    3. of each algorithm that one trusts a key of, a signature has verified: where both
       are trusted, half of them is nothing. Only then is the payload read;
    4. exactly the four members; ``not_before <= now <= not_after``, with leeway;
    5. attestation is null, or an object with a type; it is not verified here;
    6. the key configurations decode.

    Signatures of other keys are passed over: a deployment may sign for other clients.

    Args:
        envelope: JSON, possibly hostile.
        keys: trusted public keys by `sealgate.protocol.dsse.key_hint`.
        now: Unix seconds.
        leeway_s: tolerated difference of the two clocks.

    Raises:
        StatementError: 1 to 5.
        KeyConfigError: 6.
    """
    value = _object(envelope, "envelope")
    if value.get("payloadType") != PAYLOAD_TYPE_V2:
        text = unread(value.get("payloadType"), PAYLOAD_TYPE_V2)
        raise StatementError(
            f"envelope: not signed key configurations, version 2: {text}"
        )
    signatures = _signatures(value.get("signatures"))
    payload = decode_base64(value.get("payload"))
    data = pae(PAYLOAD_TYPE_V2, payload)
    known = {hint: keys[hint] for hint in signatures if hint in keys}
    for hint, key in known.items():
        if key_hint(key) != hint:
            raise StatementError("signed by a key that is not trusted for it")
        check_signature(decode_base64(signatures[hint]), data, key)
    _demand_all(keys, known)
    content = _object(payload, "payload")
    if content.keys() != _MEMBERS | {"attestation"}:
        raise StatementError("payload: unexpected members")
    return _signed(content, tuple(known), now=now, leeway_s=leeway_s)


def _signatures(value: Any) -> dict[str, Any]:
    """What an envelope has, by key id."""
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_SIGNATURES:
        raise StatementError(f"envelope: expected 1 to {MAX_SIGNATURES} signatures")
    found: dict[str, Any] = {}
    for item in value:
        hint = item.get("keyid") if isinstance(item, dict) else None
        if not isinstance(hint, str) or hint in found:
            raise StatementError("envelope: a signature without a key id of its own")
        found[hint] = item.get("sig")
    return found


def _demand_all(
    trusted: Mapping[str, PublicKey], verified: Mapping[str, PublicKey]
) -> None:
    wanted = {algorithm_of(key) for key in trusted.values()}
    if not wanted:
        raise StatementError("signed by a key that is not trusted for it")
    missing = wanted - {algorithm_of(key) for key in verified.values()}
    if missing:
        raise StatementError(f"no signature by a trusted key of {min(missing)}")


def _signed(
    value: Mapping[str, Any], hints: tuple[str, ...], *, now: float, leeway_s: float
) -> SignedKeys:
    not_before, not_after = value["not_before"], value["not_after"]
    if type(not_before) is not int or type(not_after) is not int:
        raise StatementError("payload: times are not whole seconds")
    if now + leeway_s < not_before:
        raise StatementError("key configurations are not valid yet")
    if now - leeway_s > not_after:
        raise StatementError("key configurations are not valid any more")
    return SignedKeys(
        document=(document := decode_base64(value["keys"])),
        configs=tuple(keyconfig.decode_list(document)),
        not_before=not_before,
        not_after=not_after,
        hint=hints[0],
        hints=hints,
        attestation=_attestation(value.get("attestation")),
    )


def _attestation(value: Any) -> Mapping[str, Any] | None:
    if value is None:
        return None
    kind = value.get("type") if isinstance(value, dict) else None
    if not isinstance(kind, str) or not 1 <= len(kind) <= MAX_TYPE_CHARACTERS:
        raise StatementError("payload: attestation is not an object with a type")
    evidence: Mapping[str, Any] = value
    return evidence


def _object(data: bytes, where: str) -> dict[str, Any]:
    try:
        return strict_json.loads_object(data, max_bytes=MAX_ENVELOPE_BYTES)
    except JsonError as error:
        raise StatementError(f"{where}: {error}") from None
