"""Quotes of a TPM 2.0: what they say, and which key signed them.

A quote is a statement that a TPM makes about its own platform configuration registers
(PCRs), over a nonce that whoever asks chooses, signed by an attestation key (AK). An AK
is a restricted key: it signs nothing but what its TPM made itself.

TCG, Trusted Platform Module Library, Family "2.0", Part 2: Structures: TPMS_ATTEST and
TPMS_QUOTE_INFO (10.12), TPML_PCR_SELECTION (10.9), TPMT_SIGNATURE (11.3). Of what they
allow, this takes ECDSA on P-256 with SHA-256, and one selection of the SHA-256 bank.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from sealgate.errors import AttestationError
from sealgate.protocol.dsse import key_hint

__all__ = [
    "MAX_PCR",
    "NONCE_BYTES",
    "PCR_BYTES",
    "RESETTABLE_PCRS",
    "TPM2",
    "Evidence",
    "Quote",
    "extended",
    "parse_quote",
    "verify_evidence",
    "verify_quote",
]

TPM2 = "tpm2"
MAX_PCR = 23
PCR_BYTES = 32
# For debugging and for applications: any program may reset them (PC Client Platform
# TPM Profile, PCR attributes), so what they hold says nothing.
RESETTABLE_PCRS = frozenset({16, 23})
NONCE_BYTES = 32
MAX_QUOTE_BYTES = 512
MAX_SIGNATURE_BYTES = 128

_MAGIC = 0xFF544347  # TPM_GENERATED_VALUE: no restricted key signs others' data with it
_ST_ATTEST_QUOTE = 0x8018
_ALG_SHA256 = 0x000B
_ALG_ECDSA = 0x0018
_MAX_NAME_BYTES = 66  # an algorithm, and a digest of SHA-512
_MAX_DATA_BYTES = 66
_SELECT_BYTES = 3  # PCR 0 to 23
_ECDSA = ec.ECDSA(hashes.SHA256())
_HEX = re.compile(r"[0-9a-f]{64}")
_INDEX = re.compile(r"0|[1-9][0-9]?")


@dataclass(frozen=True)
class Quote:
    """What a TPM said.

    Attributes:
        nonce: the bytes that whoever asked gave (extraData).
        pcrs: which registers of the SHA-256 bank, ascending.
        pcr_digest: SHA-256 over their values, in that order.
        clock_ms: since the TPM was made or cleared, not the time of day.
        reset_count, restart_count: how often it started, and resumed.
    """

    nonce: bytes
    pcrs: tuple[int, ...]
    pcr_digest: bytes
    clock_ms: int
    reset_count: int
    restart_count: int


@dataclass(frozen=True)
class Evidence:
    """A quote as it travels, with the values that its digest is over.

    Attributes:
        key: `sealgate.protocol.dsse.key_hint` of the attestation key.
        quoted: TPMS_ATTEST as the TPM gave it.
        signature: TPMT_SIGNATURE over it.
        pcrs: what each quoted register held, 32 bytes, by its number.
    """

    key: str
    quoted: bytes
    signature: bytes
    pcrs: Mapping[int, bytes]

    def to_object(self) -> dict[str, Any]:
        """The JSON form; `from_object` gives it back."""
        return {
            "type": TPM2,
            "key": self.key,
            "quoted": base64.b64encode(self.quoted).decode(),
            "signature": base64.b64encode(self.signature).decode(),
            "pcrs": {str(index): self.pcrs[index].hex() for index in sorted(self.pcrs)},
        }

    @classmethod
    def from_object(cls, value: Mapping[str, Any]) -> Evidence:
        """Parse, within bounds.

        Raises:
            AttestationError: another member than these, or one that is not its kind.
        """
        if value.keys() != {"type", "key", "quoted", "signature", "pcrs"}:
            raise AttestationError("TPM evidence: unexpected members")
        key, pcrs = value["key"], value["pcrs"]
        if value["type"] != TPM2 or not isinstance(key, str) or not _HEX.fullmatch(key):
            raise AttestationError("TPM evidence: not of a TPM 2.0 and a named key")
        if not isinstance(pcrs, dict) or not 1 <= len(pcrs) <= MAX_PCR + 1:
            raise AttestationError("TPM evidence: pcrs is not an object of registers")
        return cls(
            key=key,
            quoted=_base64(value["quoted"], MAX_QUOTE_BYTES, "quoted"),
            signature=_base64(value["signature"], MAX_SIGNATURE_BYTES, "signature"),
            pcrs={_index(name): _digest(text) for name, text in pcrs.items()},
        )


def extended(digests: Iterable[bytes], start: bytes = bytes(PCR_BYTES)) -> bytes:
    """What a register holds after some digests were measured into it, in this order.

    Args:
        digests: SHA-256, 32 bytes each.
        start: what it held before; zeros after a reset, for PCR 0 to 16.

    >>> extended([]) == bytes(32)
    True
    """
    for digest in digests:
        start = hashlib.sha256(start + digest).digest()
    return start


def verify_evidence(
    evidence: Evidence, keys: Mapping[str, ec.EllipticCurvePublicKey], *, nonce: bytes
) -> Mapping[int, bytes]:
    """Verify a quote, and return the register values that it vouches for.

    1. the key id names a trusted attestation key: it only selects;
    2. the signature verifies, and what it is over parses (`verify_quote`);
    3. the quote is over exactly this nonce: a quote of another moment is a replay;
    4. the values are of exactly the registers that were quoted, and hash to its digest.

    What the values should be is the caller's to decide.

    Args:
        evidence: possibly hostile.
        keys: trusted attestation keys by `key_hint`.
        nonce: what the quote must be over.

    Raises:
        AttestationError: any of these.
    """
    key = keys.get(evidence.key)
    if key is None or key_hint(key) != evidence.key:
        raise AttestationError("quoted under an attestation key that is not trusted")
    quote = verify_quote(evidence.quoted, evidence.signature, key)
    if not hmac.compare_digest(quote.nonce, nonce):
        raise AttestationError("the quote is over another nonce")
    if tuple(sorted(evidence.pcrs)) != quote.pcrs:
        raise AttestationError("the quote is of other registers")
    values = b"".join(evidence.pcrs[index] for index in quote.pcrs)
    if hashlib.sha256(values).digest() != quote.pcr_digest:
        raise AttestationError("the register values are not those quoted")
    return evidence.pcrs


def verify_quote(
    quoted: bytes, signature: bytes, key: ec.EllipticCurvePublicKey
) -> Quote:
    """Check the signature over a TPMS_ATTEST, and only then read it.

    Raises:
        AttestationError: another signature scheme than ECDSA with SHA-256, one that
            does not verify under this key, or not a quote.
    """
    if key.curve.name != "secp256r1":
        raise AttestationError("the attestation key is not on P-256")
    der = _ecdsa_der(signature)
    try:
        key.verify(der, quoted, _ECDSA)
    except InvalidSignature:
        raise AttestationError("the quote's signature does not verify") from None
    return parse_quote(quoted)


def parse_quote(quoted: bytes) -> Quote:
    """Read a TPMS_ATTEST that is a quote of the SHA-256 bank; all of it, and no more.

    Raises:
        AttestationError: it is something else.
    """
    if len(quoted) > MAX_QUOTE_BYTES:
        raise AttestationError("quote: too long")
    reader = _Reader(quoted)
    if reader.number(4) != _MAGIC:
        raise AttestationError("quote: not made by a TPM")
    if reader.number(2) != _ST_ATTEST_QUOTE:
        raise AttestationError("quote: an attestation of something else")
    reader.sized(_MAX_NAME_BYTES)  # qualifiedSigner: of the key, whom the caller knows
    nonce = reader.sized(_MAX_DATA_BYTES)
    clock_ms, resets, restarts = (reader.number(size) for size in (8, 4, 4))
    if reader.number(1) > 1:  # safe: TPMI_YES_NO
        raise AttestationError("quote: not yes or no")
    reader.number(8)  # firmwareVersion, which the TPM obfuscates for such a key
    pcrs = _selection(reader)
    digest = reader.sized(PCR_BYTES)
    reader.end()
    if len(digest) != PCR_BYTES:
        raise AttestationError("quote: its digest is not of SHA-256")
    return Quote(nonce, pcrs, digest, clock_ms, resets, restarts)


def _selection(reader: _Reader) -> tuple[int, ...]:
    if reader.number(4) != 1 or reader.number(2) != _ALG_SHA256:
        raise AttestationError("quote: not one selection of the SHA-256 bank")
    if reader.number(1) != _SELECT_BYTES:
        raise AttestationError("quote: not a selection of 24 registers")
    bits = int.from_bytes(reader.take(_SELECT_BYTES), "little")
    if bits == 0:
        raise AttestationError("quote: of no register")
    return tuple(index for index in range(MAX_PCR + 1) if bits >> index & 1)


def _ecdsa_der(signature: bytes) -> bytes:
    """TPMT_SIGNATURE to the DER that ECDSA is verified from."""
    reader = _Reader(signature[: MAX_SIGNATURE_BYTES + 1])
    if reader.number(2) != _ALG_ECDSA or reader.number(2) != _ALG_SHA256:
        raise AttestationError("quote: not signed by ECDSA with SHA-256")
    r, s = (int.from_bytes(reader.sized(32)) for _ in range(2))
    reader.end()
    return encode_dss_signature(r, s)


class _Reader:
    """Fields of a TPM structure, big endian, one after the other."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, size: int) -> bytes:
        field = self._data[self._at : self._at + size]
        if len(field) != size:
            raise AttestationError("TPM structure: cut off")
        self._at += size
        return field

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size))

    def sized(self, most: int) -> bytes:
        """A TPM2B: two bytes of length, then as many."""
        size = self.number(2)
        if size > most:
            raise AttestationError("TPM structure: a field is too long")
        return self.take(size)

    def end(self) -> None:
        if self._at != len(self._data):
            raise AttestationError("TPM structure: bytes after its end")


def _index(text: str) -> int:
    if not _INDEX.fullmatch(text) or int(text) > MAX_PCR:
        raise AttestationError(f"PCR numbers are 0 to {MAX_PCR}")
    return int(text)


def _digest(text: Any) -> bytes:
    if not isinstance(text, str) or not _HEX.fullmatch(text):
        raise AttestationError("a PCR's value is not 64 lower-case hex digits")
    return bytes.fromhex(text)


def _base64(text: Any, most: int, name: str) -> bytes:
    if not isinstance(text, str) or len(text) > 4 * (most // 3 + 1):
        raise AttestationError(f"TPM evidence: {name} is not base64, or too long")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise AttestationError(f"TPM evidence: {name} is not base64") from None
    if base64.b64encode(data).decode() != text:
        raise AttestationError(f"TPM evidence: {name} is not canonical base64")
    return data
