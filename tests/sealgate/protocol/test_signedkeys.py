"""Signed key configurations: what verifies, and every way in which it does not."""

from __future__ import annotations

import base64
import json

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from sealgate.errors import KeyConfigError, ProtocolError, StatementError
from sealgate.protocol import keyconfig
from sealgate.protocol.dsse import key_hint, pae
from sealgate.protocol.hpke import KEM_X25519, KEM_XWING, HybridPrivateKey, PrivateKey
from sealgate.protocol.keyconfig import KeyConfig
from sealgate.protocol.signedkeys import PAYLOAD_TYPE, sign_keys, verify_keys

KEY = ec.derive_private_key(7, ec.SECP256R1())
HINT = key_hint(KEY.public_key())
TRUSTED = {HINT: KEY.public_key()}
CONFIGS = (
    KeyConfig(2, KEM_XWING, HybridPrivateKey.from_seed(bytes(32)).public_bytes),
    KeyConfig(1, KEM_X25519, PrivateKey.from_bytes(b"\1" * 32).public_bytes),
)
DOCUMENT = keyconfig.encode_list(CONFIGS)
SIGNED = sign_keys(DOCUMENT, KEY, not_before=1000, not_after=2000)


def envelope(content: bytes, **changes) -> bytes:
    """Any payload, signed as it should be; members changed after that."""
    signature = KEY.sign(pae(PAYLOAD_TYPE, content), ec.ECDSA(hashes.SHA256()))
    value = {
        "payload": base64.b64encode(content).decode(),
        "payloadType": PAYLOAD_TYPE,
        "signatures": [
            {"keyid": HINT, "sig": base64.b64encode(signature).decode()},
        ],
    }
    return json.dumps(value | changes).encode()


def payload(**changes) -> bytes:
    keys = base64.b64encode(DOCUMENT).decode()
    value = {"keys": keys, "not_after": 2000, "not_before": 1000}
    return json.dumps(value | changes).encode()


def test_what_was_signed_verifies():
    signed = verify_keys(SIGNED, TRUSTED, now=1500)
    assert signed.configs == CONFIGS
    assert signed.document == DOCUMENT
    assert (signed.not_before, signed.not_after) == (1000, 2000)
    assert signed.hint == HINT


@pytest.mark.parametrize("now", [940, 1000, 2000, 2060])
def test_the_window_has_leeway(now):
    assert verify_keys(SIGNED, TRUSTED, now=now)


@pytest.mark.parametrize(
    ("now", "message"), [(939, "not valid yet"), (2061, "not valid any more")]
)
def test_outside_the_window(now, message):
    with pytest.raises(StatementError, match=message):
        verify_keys(SIGNED, TRUSTED, now=now)


@pytest.mark.parametrize("trusted", [{}, {HINT.upper(): KEY.public_key()}])
def test_a_key_that_is_not_trusted(trusted):
    with pytest.raises(StatementError, match="not trusted"):
        verify_keys(SIGNED, trusted, now=1500)


def test_a_key_under_another_name_is_still_another_key():
    other = ec.generate_private_key(ec.SECP256R1())
    with pytest.raises(StatementError, match="signature does not verify"):
        verify_keys(SIGNED, {HINT: other.public_key()}, now=1500)


FAULTS = {
    "no JSON": (b"{", "envelope"),
    "an array": (b"[]", "top level is not an object"),
    "another payload type": (
        envelope(payload(), payloadType="application/ohttp-keys"),
        "not signed key configurations",
    ),
    "no signature": (envelope(payload(), signatures=[]), "exactly one signature"),
    "two signatures": (envelope(payload(), signatures=[{}, {}]), "exactly one"),
    "a signature that is none": (envelope(payload(), signatures=[1]), "not trusted"),
    "no key id": (envelope(payload(), signatures=[{"sig": "AA=="}]), "not trusted"),
    "a list as key id": (
        envelope(payload(), signatures=[{"keyid": [], "sig": ""}]),
        "not trusted",
    ),
    "an empty signature": (
        envelope(payload(), signatures=[{"keyid": HINT, "sig": ""}]),
        "signature does not verify",
    ),
    "a signature that is no text": (
        envelope(payload(), signatures=[{"keyid": HINT, "sig": 1}]),
        "not base64",
    ),
    "payload that is not base64": (envelope(payload(), payload="%"), "not base64"),
    "payload of another envelope": (
        envelope(payload(), payload=base64.b64encode(payload(not_after=9)).decode()),
        "signature does not verify",
    ),
    "base64 with stray bits": (
        envelope(payload(), payload="eyJh=="),
        "not base64|not canonical",
    ),
    "a payload that is no object": (envelope(b"[]"), "top level is not an object"),
    "a member too many": (envelope(payload(extra=1)), "unexpected members"),
    "times as text": (envelope(payload(not_after="2000")), "not whole seconds"),
    "times as truth": (envelope(payload(not_before=True)), "not whole seconds"),
    "keys that are no text": (envelope(payload(keys=1)), "not base64"),
}


@pytest.mark.parametrize(("data", "message"), FAULTS.values(), ids=FAULTS)
def test_faults(data, message):
    with pytest.raises(StatementError, match=message):
        verify_keys(data, TRUSTED, now=1500)


def test_keys_that_are_malformed_though_signed():
    broken = base64.b64encode(DOCUMENT[:-1]).decode()
    with pytest.raises(KeyConfigError):
        verify_keys(envelope(payload(keys=broken)), TRUSTED, now=1500)


def test_every_truncation_and_every_byte():
    for size in range(len(SIGNED)):
        with pytest.raises(ProtocolError):
            verify_keys(SIGNED[:size], TRUSTED, now=1500)
    for i in range(0, len(SIGNED), 3):
        broken = SIGNED[:i] + bytes([SIGNED[i] ^ 1]) + SIGNED[i + 1 :]
        with pytest.raises(ProtocolError):
            verify_keys(broken, TRUSTED, now=1500)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_raise_our_errors_only(data):
    with pytest.raises(ProtocolError):
        verify_keys(data, TRUSTED, now=1500)
