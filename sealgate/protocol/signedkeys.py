"""Key configurations signed by a deployment's identity key.

HPKE keys change often. A client that knows the identity key, an ECDSA P-256 key that
stays for years, accepts whichever of them that key vouches for, and nobody in between,
not even whoever ends TLS, can offer keys of their own.

A DSSE envelope (secure-systems-lab/dsse) whose payload is the object::

    {"keys": <base64 of the application/ohttp-keys document>,
     "not_after": <Unix seconds>, "not_before": <Unix seconds>}

The times are inside, so that keys which were replaced cannot be served again later.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from sealgate.errors import JsonError, StatementError
from sealgate.protocol import keyconfig, strict_json
from sealgate.protocol.dsse import key_hint, pae
from sealgate.protocol.keyconfig import KeyConfig

__all__ = [
    "SIGNED_KEYS_MEDIA_TYPE",
    "SIGNED_KEYS_PATH",
    "SignedKeys",
    "sign_keys",
    "verify_keys",
]

SIGNED_KEYS_PATH = "/.well-known/sealgate-keys"
SIGNED_KEYS_MEDIA_TYPE = "application/vnd.dsse.envelope.v1+json"
PAYLOAD_TYPE = "application/vnd.sealgate.ohttp-keys+json"
MAX_ENVELOPE_BYTES = 256 << 10

_ECDSA = ec.ECDSA(hashes.SHA256())


@dataclass(frozen=True)
class SignedKeys:
    """Key configurations that a trusted identity key vouches for.

    Attributes:
        configs: in the gateway's order of preference; at least one.
        document: the ``application/ohttp-keys`` bytes they were decoded from.
        not_before, not_after: Unix seconds, both inclusive.
        hint: `key_hint` of the identity key that signed.
    """

    configs: tuple[KeyConfig, ...]
    document: bytes
    not_before: int
    not_after: int
    hint: str


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
    payload = strict_json.dumps(
        {
            "keys": base64.b64encode(document).decode(),
            "not_after": not_after,
            "not_before": not_before,
        }
    )
    signature = key.sign(pae(PAYLOAD_TYPE, payload), _ECDSA)
    return strict_json.dumps(
        {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [
                {
                    "keyid": key_hint(key.public_key()),
                    "sig": base64.b64encode(signature).decode(),
                }
            ],
        }
    )


def verify_keys(
    envelope: bytes,
    keys: Mapping[str, ec.EllipticCurvePublicKey],
    *,
    now: float,
    leeway_s: float = 60.0,
) -> SignedKeys:
    """Verify an envelope against the identity keys one trusts.

    1. bounded, strict JSON; exact payload type; exactly one signature;
    2. its key id names a trusted key: it only selects, trust is the mapping's;
    3. ECDSA over the pre-authentication encoding; only then is the payload read;
    4. exactly the three members; ``not_before <= now <= not_after``, with leeway;
    5. the key configurations decode.

    Args:
        envelope: JSON, possibly hostile.
        keys: trusted public keys by `sealgate.protocol.dsse.key_hint`.
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
    if key is None:
        raise StatementError("signed by a key that is not trusted for it")
    payload = _base64(value.get("payload"))
    try:
        key.verify(_base64(signature.get("sig")), pae(PAYLOAD_TYPE, payload), _ECDSA)
    except InvalidSignature:
        raise StatementError("signature does not verify") from None
    return _payload(payload, key_hint(key), now=now, leeway_s=leeway_s)


def _payload(payload: bytes, hint: str, *, now: float, leeway_s: float) -> SignedKeys:
    value = _object(payload, "payload")
    if value.keys() != {"keys", "not_after", "not_before"}:
        raise StatementError("payload: unexpected members")
    not_before, not_after = value["not_before"], value["not_after"]
    if type(not_before) is not int or type(not_after) is not int:
        raise StatementError("payload: times are not whole seconds")
    if now + leeway_s < not_before:
        raise StatementError("key configurations are not valid yet")
    if now - leeway_s > not_after:
        raise StatementError("key configurations are not valid any more")
    document = _base64(value["keys"])
    configs = tuple(keyconfig.decode_list(document))
    return SignedKeys(configs, document, not_before, not_after, hint)


def _object(data: bytes, where: str) -> dict[str, Any]:
    try:
        return strict_json.loads_object(data, max_bytes=MAX_ENVELOPE_BYTES)
    except JsonError as error:
        raise StatementError(f"{where}: {error}") from None


def _base64(text: Any) -> bytes:
    if not isinstance(text, str):
        raise StatementError("envelope: not base64")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise StatementError("envelope: not base64") from None
    if base64.b64encode(data).decode() != text:
        raise StatementError("envelope: not canonical base64")
    return data
