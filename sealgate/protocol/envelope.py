"""DSSE envelopes that several keys sign: secure-systems-lab/dsse, protocol.md 1.0.2.

An envelope holds a payload, its type, and for each signer a signature over the
pre-authentication encoding of both; `keyid` is the `dsse.key_hint` of the signer's key,
and only selects. Which algorithm a signature is of says the key that the verifier holds
under that hint, never the envelope.

A Sigstore bundle holds one signature only: statements are in those, by `dsse.sign`.
"""

from __future__ import annotations

import base64
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from sealgate.errors import JsonError, StatementError
from sealgate.protocol import strict_json
from sealgate.protocol.dsse import (
    PublicKey,
    Signer,
    check_signature,
    decode_base64,
    pae,
)

__all__ = ["MAX_SIGNATURES", "Envelope"]

MAX_SIGNATURES = 32
MAX_SIGNATURE_BYTES = 8 << 10
MAX_HINT_CHARACTERS = 64


@dataclass(frozen=True)
class Envelope:
    """A payload, and who says to have signed it.

    Attributes:
        payload_type: a URI or media type, part of what is signed.
        payload: the bytes.
        signatures: by `keyid`; none of them is verified yet.
    """

    payload_type: str
    payload: bytes = field(repr=False)
    signatures: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    @classmethod
    def parse(cls, data: bytes, *, payload_type: str, max_bytes: int) -> Self:
        """Read an envelope; nothing is verified.

        Args:
            data: JSON, possibly hostile.
            payload_type: that it must have.
            max_bytes: of the JSON.

        Raises:
            StatementError: longer, malformed, of another type, more signatures than
                `MAX_SIGNATURES`, or two by one `keyid`.
        """
        try:
            value = strict_json.loads_object(data, max_bytes=max_bytes, max_depth=4)
        except JsonError as error:
            raise StatementError(f"envelope: {error}") from None
        if value.keys() != {"payload", "payloadType", "signatures"}:
            raise StatementError("envelope: has payload, payloadType and signatures")
        if value["payloadType"] != payload_type:
            raise StatementError(f"envelope: expected the type {payload_type}")
        payload = decode_base64(value["payload"])
        return cls(payload_type, payload, _signatures(value["signatures"]))

    def to_json(self) -> bytes:
        """The envelope's bytes; `parse` gives it back."""
        return strict_json.dumps(
            {
                "payload": base64.b64encode(self.payload).decode(),
                "payloadType": self.payload_type,
                "signatures": [
                    {"keyid": hint, "sig": base64.b64encode(signature).decode()}
                    for hint, signature in sorted(self.signatures.items())
                ],
            }
        )

    def signed_by(self, signer: Signer) -> Self:
        """The same with one more signature; a second of the same key replaces it."""
        signature = signer.sign(pae(self.payload_type, self.payload))
        return replace(self, signatures={**self.signatures, signer.hint: signature})

    def signers(
        self, keys: Mapping[str, PublicKey], *, prehash: Collection[str] = ()
    ) -> frozenset[str]:
        """Whose signatures verify: the hints of distinct keys.

        Signatures by other keys, and those that do not verify, count for nothing: who
        relays an envelope can add any (DSSE protocol.md, "Protocol", verification).

        Args:
            keys: that are asked about, by `key_hint`.
            prehash: hints of the ML-DSA-65 keys that sign `dsse.prehashed` encodings.
        """
        data = pae(self.payload_type, self.payload)
        return frozenset(
            hint
            for hint, key in keys.items()
            if hint in self.signatures
            and _verifies(self.signatures[hint], data, key, prehash=hint in prehash)
        )


def _verifies(signature: bytes, data: bytes, key: PublicKey, *, prehash: bool) -> bool:
    try:
        check_signature(signature, data, key, prehash=prehash)
    except StatementError:
        return False
    return True


def _signatures(value: Any) -> dict[str, bytes]:
    if not isinstance(value, list) or len(value) > MAX_SIGNATURES:
        raise StatementError(f"envelope: more than {MAX_SIGNATURES} signatures")
    found: dict[str, bytes] = {}
    for item in value:
        if not isinstance(item, dict) or item.keys() != {"keyid", "sig"}:
            raise StatementError("envelope: a signature has keyid and sig")
        hint, signature = item["keyid"], decode_base64(item["sig"])
        if not isinstance(hint, str) or len(hint) > MAX_HINT_CHARACTERS:
            raise StatementError("envelope: a keyid is not the hint of a key")
        if len(signature) > MAX_SIGNATURE_BYTES:
            raise StatementError(f"envelope: a signature over {MAX_SIGNATURE_BYTES}")
        if hint in found:
            raise StatementError("envelope: a key signed twice")
        found[hint] = signature
    return found
