"""Signed key configurations: what verifies, and every way in which it does not."""

from __future__ import annotations

import base64
import json

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from sealgate.errors import KeyConfigError, ProtocolError, StatementError
from sealgate.protocol import keyconfig
from sealgate.protocol.dsse import KeySigner, key_hint, pae, prehashed
from sealgate.protocol.hpke import KEM_X25519, KEM_XWING, HybridPrivateKey, PrivateKey
from sealgate.protocol.keyconfig import KeyConfig
from sealgate.protocol.signedkeys import (
    PAYLOAD_TYPE,
    PAYLOAD_TYPE_V2,
    attestation_nonce,
    sign_keys,
    sign_keys_v2,
    verify_keys,
    verify_keys_v2,
)

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
        "expected base64",
    ),
    "payload that is not base64": (
        envelope(payload(), payload="%"),
        "malformed base64",
    ),
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
    "keys that are no text": (envelope(payload(keys=1)), "expected base64"),
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


# The second version: signatures of two algorithms, and evidence.

LATTICE = MLDSA65PrivateKey.from_seed_bytes(b"\7" * 32)
LATTICE_HINT = key_hint(LATTICE.public_key())
BOTH = {**TRUSTED, LATTICE_HINT: LATTICE.public_key()}
WINDOW = {"not_before": 1000, "not_after": 2000}
EVIDENCE = {"type": "of-tests", "value": "x"}
SIGNED_V2 = sign_keys_v2(DOCUMENT, [KEY, LATTICE], attestation=EVIDENCE, **WINDOW)


def resigned(change, kind=PAYLOAD_TYPE_V2, keys=(KEY, LATTICE), **members) -> bytes:
    """The second version's envelope, changed before it is signed or after."""
    value = json.loads(SIGNED_V2)
    content = json.loads(base64.b64decode(value["payload"])) | change
    data = json.dumps(content).encode()
    signatures = []
    for key in keys:
        sig = KeySigner(key).sign(pae(kind, data))
        signatures.append(
            {"keyid": KeySigner(key).hint, "sig": base64.b64encode(sig).decode()}
        )
    value |= {"payload": base64.b64encode(data).decode(), "payloadType": kind}
    return json.dumps(value | {"signatures": signatures} | members).encode()


def edited(edit) -> bytes:
    """The second version's envelope, its signatures edited."""
    value = json.loads(SIGNED_V2)
    edit(value["signatures"])
    return json.dumps(value).encode()


def verify_v2(data, trusted=BOTH, now=1500):
    return verify_keys_v2(data, trusted, now=now)


def test_both_signatures_verify():
    signed = verify_v2(SIGNED_V2)
    assert signed.configs == CONFIGS
    assert set(signed.hints) == {HINT, LATTICE_HINT}
    assert signed.attestation == EVIDENCE
    assert signed.nonce == attestation_nonce(DOCUMENT, **WINDOW)
    assert len(SIGNED_V2) < 12_000


@pytest.mark.parametrize("trusted", [TRUSTED, {LATTICE_HINT: LATTICE.public_key()}])
def test_who_trusts_one_algorithm_needs_that_one(trusted):
    assert verify_v2(SIGNED_V2, trusted).hints == tuple(trusted)


@pytest.mark.parametrize(("half", "missing"), [(0, "ecdsa-p256"), (1, "ml-dsa-65")])
def test_one_half_stripped(half, missing):
    stripped = edited(lambda signatures: signatures.pop(half))
    with pytest.raises(
        StatementError, match=f"no signature by a trusted key of {missing}"
    ):
        verify_v2(stripped)


def test_keys_in_rotation_stand_beside_each_other():
    fresh = MLDSA65PrivateKey.generate()
    trusted = BOTH | {key_hint(fresh.public_key()): fresh.public_key()}
    assert verify_v2(SIGNED_V2, trusted)
    all_three = resigned({}, keys=(KEY, LATTICE, fresh))
    assert len(verify_v2(all_three, trusted).hints) == 3


def test_a_signature_by_a_stranger_is_passed_over():
    stranger = ec.generate_private_key(ec.SECP256R1())
    assert verify_v2(resigned({}, keys=(stranger, KEY, LATTICE)))
    with pytest.raises(StatementError, match="no signature by a trusted key"):
        verify_v2(resigned({}, keys=(stranger, LATTICE)))


def test_each_algorithm_under_the_others_name():
    def swap(signatures):
        first, second = signatures
        first["keyid"], second["keyid"] = second["keyid"], first["keyid"]

    with pytest.raises(StatementError, match="signature does not verify"):
        verify_v2(edited(swap))


def test_a_key_of_one_algorithm_under_the_hint_of_the_other():
    crossed = {HINT: LATTICE.public_key(), LATTICE_HINT: KEY.public_key()}
    with pytest.raises(StatementError, match="not trusted for it"):
        verify_v2(SIGNED_V2, crossed)


def test_one_signature_twice_is_not_two():
    def double(signatures):
        signatures[1] = signatures[0]

    with pytest.raises(StatementError, match="key id of its own"):
        verify_v2(edited(double))


def test_a_prehash_is_not_the_plain_form():
    def prehash(signatures):
        data = base64.b64decode(json.loads(SIGNED_V2)["payload"])
        signature = LATTICE.sign(prehashed(pae(PAYLOAD_TYPE_V2, data)))
        signatures[1]["sig"] = base64.b64encode(signature).decode()

    with pytest.raises(StatementError, match="signature does not verify"):
        verify_v2(edited(prehash))


def test_neither_version_is_taken_for_the_other():
    with pytest.raises(StatementError, match="version 2"):
        verify_v2(SIGNED, TRUSTED)
    with pytest.raises(StatementError, match="not signed key configurations"):
        verify_keys(SIGNED_V2, TRUSTED, now=1500)
    relabelled = json.loads(SIGNED) | {"payloadType": PAYLOAD_TYPE_V2}
    with pytest.raises(StatementError, match="signature does not verify"):
        verify_v2(json.dumps(relabelled).encode(), TRUSTED)


def test_the_first_version_is_signed_by_no_other_algorithm():
    signed = json.loads(SIGNED)
    data = pae(PAYLOAD_TYPE, base64.b64decode(signed["payload"]))
    signature = base64.b64encode(LATTICE.sign(data)).decode()
    signed["signatures"] = [{"keyid": LATTICE_HINT, "sig": signature}]
    with pytest.raises(StatementError, match="not trusted for it"):
        verify_keys(json.dumps(signed).encode(), BOTH, now=1500)


V2_FAULTS = {
    "no signatures": (resigned({}, signatures=[]), "1 to 4 signatures"),
    "too many": (resigned({}, signatures=[{}] * 5), "1 to 4 signatures"),
    "no list": (resigned({}, signatures={}), "1 to 4 signatures"),
    "no key id": (resigned({}, signatures=[{"sig": ""}]), "key id of its own"),
    "no text": (
        resigned({}, signatures=[{"keyid": HINT, "sig": None}]),
        "expected base64",
    ),
    "no evidence's place": (resigned({"more": 1}), "unexpected members"),
    "evidence as text": (resigned({"attestation": "x"}), "object with a type"),
    "evidence without type": (resigned({"attestation": {}}), "object with a type"),
    "a type without end": (
        resigned({"attestation": {"type": "x" * 65}}),
        "object with a type",
    ),
    "too old": (resigned({"not_after": 1000}), "not valid any more"),
    "too new": (resigned({"not_before": 2000}), "not valid yet"),
}


@pytest.mark.parametrize(("data", "message"), V2_FAULTS.values(), ids=V2_FAULTS)
def test_faults_of_the_second_version(data, message):
    with pytest.raises(StatementError, match=message):
        verify_v2(data)


def test_who_trusts_nobody():
    with pytest.raises(StatementError, match="not trusted"):
        verify_v2(SIGNED_V2, {})


@pytest.mark.parametrize(
    ("document", "window"),
    [
        (DOCUMENT[:-1], WINDOW),
        (DOCUMENT, WINDOW | {"not_before": 1001}),
        (DOCUMENT, WINDOW | {"not_after": 2001}),
    ],
)
def test_evidence_is_bound_to_the_keys_and_their_window(document, window):
    nonce = attestation_nonce(DOCUMENT, **WINDOW)
    assert len(nonce) == 32
    assert attestation_nonce(document, **window) != nonce
