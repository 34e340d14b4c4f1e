"""Time stamps inside a bundle: put in, taken out, and nothing else touched."""

from __future__ import annotations

import json

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st
from sigstore_models.bundle.v1 import Bundle as SigstoreBundle

from sealgate.errors import StatementError
from sealgate.protocol.dsse import (
    MAX_TIMESTAMPS,
    key_hint,
    read_hint,
    read_payload,
    read_signature,
    sign,
    stamped,
    unstamped,
    verify,
)

KEY = ec.generate_private_key(ec.SECP256R1())
KEYS = {key_hint(KEY.public_key()): KEY.public_key()}
BUNDLE = sign(b"{}", KEY)


def edited(**material: object) -> bytes:
    document = json.loads(BUNDLE)
    document["verificationMaterial"] |= material
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


@given(st.lists(st.binary(min_size=1, max_size=200), min_size=1, max_size=8))
def test_what_is_put_in_is_read_back(stamps: list[bytes]) -> None:
    made = BUNDLE
    for stamp in stamps:
        made = stamped(made, stamp)
        assert unstamped(made) == BUNDLE
    verified = verify(made, KEYS)
    assert verified.timestamps == tuple(stamps)
    assert verified.payload == b"{}"
    assert verified.signature == read_signature(made) == read_signature(BUNDLE)
    material = SigstoreBundle.from_json(made).verification_material
    found = material.timestamp_verification_data.rfc3161_timestamps
    assert len(found) == len(stamps)


def test_no_more_than_a_reader_takes() -> None:
    made = BUNDLE
    for _ in range(MAX_TIMESTAMPS):
        made = stamped(made, b"x")
    with pytest.raises(StatementError, match="more than 8 time stamps"):
        stamped(made, b"x")


@pytest.mark.parametrize("material", [None, [], "", 1, True])
def test_stamps_of_no_bundle(material: object) -> None:
    data = json.dumps(json.loads(BUNDLE) | {"verificationMaterial": material}).encode()
    with pytest.raises(StatementError, match="no object"):
        stamped(data, b"stamp")
    with pytest.raises(StatementError, match="missing publicKey"):
        read_hint(data)
    assert read_payload(data) == b"{}"


def test_a_hint_is_a_digest() -> None:
    assert read_hint(BUNDLE) in KEYS
    for hint in ("", "A" * 64, f"{next(iter(KEYS))}\n", 5):
        with pytest.raises(StatementError, match="not a SHA-256 digest"):
            read_hint(edited(publicKey={"hint": hint}))


def test_only_what_is_written_as_here() -> None:
    """Otherwise the digest that a verdict names would change."""
    spaced = json.dumps(json.loads(BUNDLE)).encode()
    assert verify(spaced, KEYS).timestamps == ()
    with pytest.raises(StatementError, match="written otherwise"):
        stamped(spaced, b"x")


@pytest.mark.parametrize(
    "other",
    [
        edited(publicKey={"hint": "other"}),
        edited(tlogEntries=[{"timestampVerificationData": {}}]),
        edited(timestampVerificationData=None),
        BUNDLE.replace(b"verificationMaterial", b"timestampVerificationData"),
    ],
)
def test_nothing_but_stamps_is_left_out(other: bytes) -> None:
    assert unstamped(other) == other != BUNDLE


@given(st.binary(max_size=200))
def test_rubbish_is_given_back(data: bytes) -> None:
    for rubbish in (data, data + b'"timestampVerificationData"', b"[" * 99 + data):
        assert unstamped(rubbish) == rubbish
    with pytest.raises(StatementError):
        stamped(data, b"x")


def test_a_name_in_escapes_hides_nothing() -> None:
    """Then the very bytes are what a digest is over, and the stamps are read."""
    made = stamped(BUNDLE, b"x")
    hidden = made.replace(b"timestampV", b"\\u0074imestampV")
    assert verify(hidden, KEYS).timestamps == (b"x",)
    assert unstamped(hidden) == hidden
