"""Quotes in a TPM's form, by a key of our own: for what lies behind their verification.

A TPM's own are in tests/vectors/tpm2; tests/interop/tpm has one make others.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from sealgate.protocol.dsse import key_hint, public_pem
from sealgate.protocol.tpm2 import Evidence

RECORDED: Mapping[str, Any] = json.loads(
    (Path(__file__).parents[1] / "vectors" / "tpm2" / "quotes.json").read_text()
)
QUOTED = base64.b64decode(RECORDED["evidence"]["quoted"])
OURS = ec.derive_private_key(11, ec.SECP256R1())
OURS_PEM = public_pem(OURS.public_key())
REGISTERS = {15: hashlib.sha256(b"a state").digest(), 16: bytes(32)}


def signed(quoted: bytes) -> bytes:
    """A TPMT_SIGNATURE by our key."""
    r, s = decode_dss_signature(OURS.sign(quoted, ec.ECDSA(hashes.SHA256())))
    return b"\x00\x18\x00\x0b" + b"".join(
        b"\x00\x20" + number.to_bytes(32) for number in (r, s)
    )


def quote(nonce: bytes, registers: Mapping[int, bytes] = REGISTERS) -> dict[str, Any]:
    """Evidence over a nonce, of PCR 15 and 16."""
    digest = hashlib.sha256(registers[15] + registers[16]).digest()
    # The recorded quote, but for its extraData and its pcrDigest.
    quoted = QUOTED[:44] + nonce + QUOTED[76:113] + digest
    return Evidence(
        key_hint(OURS.public_key()), quoted, signed(quoted), registers
    ).to_object()
