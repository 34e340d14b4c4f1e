"""Quotes that swtpm made, and every way in which evidence is none.

tests/vectors/tpm2/quotes.json was recorded by tests/interop/tpm/record.py.
"""

from __future__ import annotations

import base64

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from sealgate.errors import AttestationError
from sealgate.protocol.dsse import key_hint, parse_public
from sealgate.protocol.tpm2 import (
    Evidence,
    extended,
    parse_quote,
    verify_evidence,
    verify_quote,
)
from tests.support.quotes import OURS, QUOTED, RECORDED, REGISTERS, quote, signed

NONCE = bytes.fromhex(RECORDED["nonce"])
KEY = parse_public(RECORDED["key"])
OTHER = parse_public(RECORDED["other_key"])
TRUSTED = {key_hint(KEY): KEY}
EVIDENCE = RECORDED["evidence"]
SIGNATURE = base64.b64decode(EVIDENCE["signature"])


def verify(value, keys=TRUSTED, nonce=NONCE):
    return verify_evidence(Evidence.from_object(value), keys, nonce=nonce)


def test_a_quote_vouches_for_registers():
    measured = [bytes.fromhex(digest) for digest in RECORDED["measured"]]
    assert verify(EVIDENCE) == {15: extended(measured), 16: bytes(32)}
    assert Evidence.from_object(EVIDENCE).to_object() == EVIDENCE


def test_what_a_quote_says():
    quote = verify_quote(QUOTED, SIGNATURE, KEY)
    assert (quote.nonce, quote.pcrs, quote.reset_count) == (NONCE, (15, 16), 1)


def test_a_replayed_quote():
    with pytest.raises(AttestationError, match="over another nonce"):
        verify(RECORDED["of_another_nonce"])
    assert verify(
        RECORDED["of_another_nonce"], nonce=bytes.fromhex(RECORDED["other_nonce"])
    )


def test_registers_after_an_extend_are_other_ones():
    assert verify(RECORDED["after_an_extend"])[15] != verify(EVIDENCE)[15]


def test_values_that_are_not_those_quoted():
    stale = RECORDED["after_an_extend"] | {"pcrs": EVIDENCE["pcrs"]}
    with pytest.raises(AttestationError, match="not those quoted"):
        verify(stale)


@pytest.mark.parametrize(
    "pcrs",
    [
        {"15": EVIDENCE["pcrs"]["15"]},
        EVIDENCE["pcrs"] | {"17": "00" * 32},
        {"15": EVIDENCE["pcrs"]["15"], "17": EVIDENCE["pcrs"]["16"]},
    ],
)
def test_other_registers_than_were_quoted(pcrs):
    with pytest.raises(AttestationError, match="of other registers"):
        verify(EVIDENCE | {"pcrs": pcrs})


def test_another_attestation_key():
    with pytest.raises(AttestationError, match="not trusted"):
        verify(RECORDED["by_another_key"])
    renamed = RECORDED["by_another_key"] | {"key": key_hint(KEY)}
    with pytest.raises(AttestationError, match="signature does not verify"):
        verify(renamed)
    with pytest.raises(AttestationError, match="not trusted"):
        verify(renamed, {key_hint(KEY): OTHER})


RAW = {
    "sha384_bank": "not one selection of the SHA-256 bank",
    "two_banks": "not one selection of the SHA-256 bank",
    "rsa": "not signed by ECDSA with SHA-256",
    "certified": "an attestation of something else",
    "time": "an attestation of something else",
}


@pytest.mark.parametrize("name", RAW)
def test_what_the_key_signs_that_is_no_such_quote(name):
    assert RAW.keys() == RECORDED["raw"].keys()
    quoted, signature = map(base64.b64decode, RECORDED["raw"][name])
    with pytest.raises(AttestationError, match=RAW[name]):
        verify_quote(quoted, signature, KEY)


def replaced(at: int, data: bytes) -> bytes:
    return QUOTED[:at] + data + QUOTED[at + len(data) :]


# Where fields of this quote begin: magic 0, type 4, name 6, data 42, clock 76,
# safe 92, firmware 93, selections 101, bank 105, size 107, bits 108, digest 111.
CONTENTS = {
    "no magic": (replaced(0, b"\x00"), "not made by a TPM"),
    "another type": (replaced(4, b"\x80\x17"), "something else"),
    "a name without end": (replaced(6, b"\xff\xff"), "too long"),
    "neither yes nor no": (replaced(92, b"\x02"), "not yes or no"),
    "no selection": (replaced(101, bytes(4)), "not one selection"),
    "selections without end": (replaced(101, b"\xff" * 4), "not one selection"),
    "a selection of 4 bytes": (replaced(107, b"\x04"), "24 registers"),
    "of no register": (replaced(108, bytes(3)), "of no register"),
    "a digest of SHA-1": (QUOTED[:111] + b"\x00\x14" + bytes(20), "not of SHA-256"),
    "a byte too many": (QUOTED + b"\x00", "bytes after its end"),
    "a byte too few": (QUOTED[:-1], "cut off"),
    "nothing": (b"", "cut off"),
    "far too long": (QUOTED + bytes(512), "too long"),
}


@pytest.mark.parametrize(("quoted", "message"), CONTENTS.values(), ids=CONTENTS)
def test_contents_that_are_no_quote_though_signed(quoted, message):
    with pytest.raises(AttestationError, match=message):
        verify_quote(quoted, signed(quoted), OURS.public_key())


def test_ours_signs_as_a_tpm_does():
    """Or the tests above would be refused for another reason."""
    evidence = quote(NONCE)
    assert verify(evidence, {evidence["key"]: OURS.public_key()}) == REGISTERS
    assert verify_quote(QUOTED, signed(QUOTED), OURS.public_key()).nonce == NONCE


SIGNATURES = {
    "another algorithm": b"\x00\x14" + SIGNATURE[2:],
    "another hash": SIGNATURE[:2] + b"\x00\x0c" + SIGNATURE[4:],
    "a byte too many": SIGNATURE + b"\x00",
    "a byte too few": SIGNATURE[:-1],
    "an integer too long": SIGNATURE[:4] + b"\x00\x21\x00" + SIGNATURE[6:],
    "integers of no bytes": SIGNATURE[:4] + bytes(4),
    "zeros": SIGNATURE[:4] + (b"\x00\x20" + bytes(32)) * 2,
    "DER": OURS.sign(QUOTED, ec.ECDSA(hashes.SHA256())),
    "nothing": b"",
}


@pytest.mark.parametrize("signature", SIGNATURES.values(), ids=SIGNATURES)
def test_signatures_that_are_none(signature):
    with pytest.raises(AttestationError):
        verify_quote(QUOTED, signature, KEY)


def test_a_key_of_another_curve():
    key = ec.generate_private_key(ec.SECP384R1()).public_key()
    with pytest.raises(AttestationError, match="not on P-256"):
        verify_quote(QUOTED, SIGNATURE, key)


def test_every_byte_of_a_quote_and_of_its_signature():
    for i in range(len(QUOTED)):
        with pytest.raises(AttestationError):
            verify_quote(replaced(i, bytes([QUOTED[i] ^ 1])), SIGNATURE, KEY)
    for i in range(len(SIGNATURE)):
        broken = SIGNATURE[:i] + bytes([SIGNATURE[i] ^ 1]) + SIGNATURE[i + 1 :]
        with pytest.raises(AttestationError):
            verify_quote(QUOTED, broken, KEY)


FAULTS = {
    "another type": EVIDENCE | {"type": "tpm1"},
    "a member too many": EVIDENCE | {"more": 1},
    "a member too few": {k: v for k, v in EVIDENCE.items() if k != "pcrs"},
    "a key that is no hint": EVIDENCE | {"key": "x"},
    "a key that is no text": EVIDENCE | {"key": []},
    "a quote that is no text": EVIDENCE | {"quoted": 1},
    "a quote that is no base64": EVIDENCE | {"quoted": "%"},
    "base64 with stray bits": EVIDENCE | {"quoted": "AB=="},
    "a quote that is too long": EVIDENCE | {"quoted": "A" * 4096},
    "a signature that is too long": EVIDENCE | {"signature": "A" * 4096},
    "no registers": EVIDENCE | {"pcrs": {}},
    "registers in a list": EVIDENCE | {"pcrs": []},
    "a register beyond the last": EVIDENCE | {"pcrs": {"24": "00" * 32}},
    "a register by another name": EVIDENCE | {"pcrs": {"015": "00" * 32}},
    "a register in other digits": EVIDENCE | {"pcrs": {"\u0661": "00" * 32}},
    "a value that is no digest": EVIDENCE | {"pcrs": {"15": "00"}},
    "a value in capitals": EVIDENCE | {"pcrs": {"15": "AA" * 32}},
    "a value that is no text": EVIDENCE | {"pcrs": {"15": 0}},
}


@pytest.mark.parametrize("value", FAULTS.values(), ids=FAULTS)
def test_faults(value):
    with pytest.raises(AttestationError):
        verify(value)


@given(st.binary(max_size=300))
def test_arbitrary_bytes_raise_our_errors_only(data):
    with pytest.raises(AttestationError):
        parse_quote(data)
    with pytest.raises(AttestationError):
        verify_quote(QUOTED, data, KEY)
