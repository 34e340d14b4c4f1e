"""DSSE envelopes: refusals one by one, and a second implementation's opinion."""

from __future__ import annotations

import base64
import copy
import json

import pytest
import securesystemslib.exceptions
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from securesystemslib.dsse import Envelope
from securesystemslib.signer import CryptoSigner, SSlibKey

from sealgate.errors import StatementError
from sealgate.protocol.dsse import (
    ECDSA_P256,
    ML_DSA_65,
    PAYLOAD_TYPE,
    Verified,
    key_hint,
    pae,
    parse_public,
    public_pem,
    sign,
    verify,
)

PAYLOAD = b'{"_type":"https://in-toto.io/Statement/v1"}'
KEY = ec.generate_private_key(ec.SECP256R1())
OTHER = ec.generate_private_key(ec.SECP256R1())
HINT = key_hint(KEY.public_key())
TRUSTED = {HINT: KEY.public_key()}
BUNDLE = json.loads(sign(PAYLOAD, KEY))


def edited(path: str, value: object) -> bytes:
    """The bundle with one field replaced; deleted if the value is `...`."""
    bundle = copy.deepcopy(BUNDLE)
    *parents, last = [int(p) if p.isdigit() else p for p in path.split(".")]
    target = bundle
    for part in parents:
        target = target[part]
    if value is ...:
        del target[last]
    else:
        target[last] = value
    return json.dumps(bundle).encode()


def encode(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_sign_and_verify():
    assert verify(sign(PAYLOAD, KEY), TRUSTED) == Verified(PAYLOAD, HINT)


def test_pae_of_the_specification():
    # secure-systems-lab/dsse, protocol.md, test vectors; lengths count bytes.
    assert pae("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )
    assert pae("\xe9", b"") == b"DSSEv1 2 \xc3\xa9 0 "


def test_the_hint_is_the_digest_of_the_pem():
    pem = KEY.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    digest = hashes.Hash(hashes.SHA256())
    digest.update(pem)
    assert digest.finalize().hex() == HINT


def sslib(key: ec.EllipticCurvePrivateKey) -> SSlibKey:
    return SSlibKey.from_crypto(key.public_key(), keyid=HINT)


def sslib_envelope(bundle: bytes) -> Envelope:
    envelope = json.loads(bundle)["dsseEnvelope"]
    # The optional keyid, which securesystemslib matches on; the bundle has its hint.
    for signature in envelope["signatures"]:
        signature["keyid"] = HINT
    return Envelope.from_dict(envelope)


def test_securesystemslib_verifies_our_envelope():
    envelope = sslib_envelope(sign(PAYLOAD, KEY))
    assert envelope.payload == PAYLOAD
    assert envelope.payload_type == PAYLOAD_TYPE
    assert envelope.pae() == pae(PAYLOAD_TYPE, PAYLOAD)
    assert list(envelope.verify([sslib(KEY)], threshold=1)) == [HINT]
    with pytest.raises(securesystemslib.exceptions.VerificationError):
        envelope.verify([sslib(OTHER)], threshold=1)


def test_securesystemslib_refuses_another_payload_too():
    envelope = sslib_envelope(edited("dsseEnvelope.payload", encode(b"{}")))
    with pytest.raises(securesystemslib.exceptions.VerificationError):
        envelope.verify([sslib(KEY)], threshold=1)


def _signature(data: bytes, key: ec.EllipticCurvePrivateKey = KEY) -> str:
    return encode(key.sign(data, ec.ECDSA(hashes.SHA256())))


PAYLOAD_TEXT = BUNDLE["dsseEnvelope"]["payload"]
SIGNATURE = BUNDLE["dsseEnvelope"]["signatures"][0]["sig"]
HINT_PATH = "verificationMaterial.publicKey.hint"
SIG_PATH = "dsseEnvelope.signatures.0.sig"
UNTRUSTED = "signed by a key that is not trusted for it"
NOT_VERIFIED = "signature does not verify"
NOT_BASE64 = "envelope: malformed base64"

FAULTS = {
    "empty": (b"", "bundle: not JSON"),
    "not an object": (b"[]", "bundle: top level is not an object"),
    "not UTF-8": (b"\xff", "bundle: not JSON: invalid UTF-8 at byte 0"),
    "huge": (
        b" " * ((4 << 20) + 1),
        "bundle: document has 4194305 bytes, at most 4194304 allowed",
    ),
    "deep": (b'{"a":' * 40 + b"1" + b"}" * 40, "bundle: nested more than 32 levels"),
    "very deep": (b"[" * 100_000, "bundle: nested too deeply"),
    "repeated key": (
        b'{"mediaType":"a",' + json.dumps(BUNDLE).encode()[1:],
        "bundle: an object repeats a key",
    ),
    "repeated payload": (
        json.dumps(BUNDLE)
        .replace('"payload":', '"payload": "e30=", "payload":')
        .encode(),
        "bundle: an object repeats a key",
    ),
    "no media type": (edited("mediaType", ...), "bundle: missing mediaType"),
    "other media type": (
        edited("mediaType", "application/vnd.dev.sigstore.bundle.v0.2+json"),
        "bundle: not a Sigstore bundle v0.3",
    ),
    "no material": (
        edited("verificationMaterial", ...),
        "bundle: missing verificationMaterial",
    ),
    "material is text": (
        edited("verificationMaterial", "x"),
        "bundle: missing publicKey",
    ),
    "no hint": (edited(HINT_PATH, ...), "bundle: missing hint"),
    "unknown hint": (edited(HINT_PATH, key_hint(OTHER.public_key())), UNTRUSTED),
    "hint is null": (edited(HINT_PATH, None), UNTRUSTED),
    "hint is a list": (edited(HINT_PATH, [HINT]), UNTRUSTED),
    "hint in upper case": (edited(HINT_PATH, HINT.upper()), UNTRUSTED),
    "no envelope": (edited("dsseEnvelope", ...), "bundle: missing dsseEnvelope"),
    "envelope is null": (edited("dsseEnvelope", None), "bundle: missing payloadType"),
    "no payload type": (
        edited("dsseEnvelope.payloadType", ...),
        "bundle: missing payloadType",
    ),
    "other payload type": (
        edited("dsseEnvelope.payloadType", "application/json"),
        "envelope: not an in-toto payload",
    ),
    "no signatures": (
        edited("dsseEnvelope.signatures", []),
        "envelope: expected exactly one signature",
    ),
    "two signatures": (
        edited("dsseEnvelope.signatures", [{"sig": SIGNATURE}, {"sig": SIGNATURE}]),
        "envelope: expected exactly one signature",
    ),
    "signatures is an object": (
        edited("dsseEnvelope.signatures", {"0": {"sig": SIGNATURE}}),
        "envelope: expected exactly one signature",
    ),
    "signature is text": (
        edited("dsseEnvelope.signatures", [SIGNATURE]),
        "bundle: missing sig",
    ),
    "no sig": (edited(SIG_PATH, ...), "bundle: missing sig"),
    "sig is null": (edited(SIG_PATH, None), "envelope: expected base64"),
    "sig is empty": (edited(SIG_PATH, ""), NOT_VERIFIED),
    "sig is not DER": (edited(SIG_PATH, encode(b"x" * 70)), NOT_VERIFIED),
    "no payload": (edited("dsseEnvelope.payload", ...), "bundle: missing payload"),
    "payload is a number": (
        edited("dsseEnvelope.payload", 1),
        "envelope: expected base64",
    ),
    "other payload": (edited("dsseEnvelope.payload", encode(b"{}")), NOT_VERIFIED),
    "empty payload": (edited("dsseEnvelope.payload", ""), NOT_VERIFIED),
    "payload with a line break": (
        edited("dsseEnvelope.payload", PAYLOAD_TEXT[:8] + "\n" + PAYLOAD_TEXT[8:]),
        NOT_BASE64,
    ),
    "payload without padding": (
        edited("dsseEnvelope.payload", encode(b"1").rstrip("=")),
        NOT_BASE64,
    ),
    "payload beyond ASCII": (edited("dsseEnvelope.payload", "é==="), NOT_BASE64),
    "payload in base64url": (
        edited("dsseEnvelope.payload", encode(b"\xff\xfe\xfd").replace("/", "_")),
        NOT_BASE64,
    ),
    "payload with spare bits": (
        # "MQ==" and "MR==" decode alike; only the first is what an encoder writes.
        edited("dsseEnvelope.payload", "MR=="),
        "envelope: base64 is not canonical",
    ),
    "sig with spare bits": (
        edited(SIG_PATH, "MR=="),
        "envelope: base64 is not canonical",
    ),
    "signature over the bare payload": (
        edited(SIG_PATH, _signature(PAYLOAD)),
        NOT_VERIFIED,
    ),
    "signature over another type": (
        edited(SIG_PATH, _signature(pae("application/json", PAYLOAD))),
        NOT_VERIFIED,
    ),
    "signature of another key": (
        edited(SIG_PATH, _signature(pae(PAYLOAD_TYPE, PAYLOAD), OTHER)),
        NOT_VERIFIED,
    ),
}


@pytest.mark.parametrize(("bundle", "message"), FAULTS.values(), ids=FAULTS)
def test_refused(bundle, message):
    with pytest.raises(StatementError) as caught:
        verify(bundle, TRUSTED)
    assert str(caught.value).startswith(message)


def test_the_unedited_bundle_verifies():
    # The faults above fail for the reason they name, not for the way they are built.
    assert verify(json.dumps(BUNDLE).encode(), TRUSTED).payload == PAYLOAD


def test_a_trusted_key_does_not_vouch_for_another_keys_bundle():
    trusted = {**TRUSTED, key_hint(OTHER.public_key()): OTHER.public_key()}
    with pytest.raises(StatementError, match=NOT_VERIFIED):
        verify(edited(HINT_PATH, key_hint(OTHER.public_key())), trusted)


def test_no_key_is_trusted_without_being_given():
    with pytest.raises(StatementError, match=UNTRUSTED):
        verify(sign(PAYLOAD, KEY), {})


def test_the_mapping_cannot_be_fooled_by_its_names():
    # The key that verified is named, not what the mapping calls it.
    verified = verify(edited(HINT_PATH, "alias"), {"alias": KEY.public_key()})
    assert verified.hint == HINT


def test_every_bit_of_the_signature_counts():
    r, s = decode_dss_signature(base64.b64decode(SIGNATURE))
    for i in range(256):
        for broken in (encode_dss_signature(r ^ 1 << i, s), encode_dss_signature(r, 0)):
            with pytest.raises(StatementError, match=NOT_VERIFIED):
                verify(edited(SIG_PATH, encode(broken)), TRUSTED)


@given(st.binary(max_size=200))
@settings(deadline=None, max_examples=60)
def test_any_payload_round_trips(payload):
    assert verify(sign(payload, KEY), TRUSTED).payload == payload


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["sig", "hint", "payload"]), inner, max_size=3
        )
    ),
    max_leaves=6,
)
PATHS = st.sampled_from(
    [
        "mediaType",
        "verificationMaterial",
        "verificationMaterial.publicKey",
        HINT_PATH,
        "dsseEnvelope",
        "dsseEnvelope.payload",
        "dsseEnvelope.payloadType",
        "dsseEnvelope.signatures",
        "dsseEnvelope.signatures.0",
        SIG_PATH,
    ]
)


@given(PATHS, JSON)
@settings(deadline=None, max_examples=200)
def test_no_field_takes_another_value(path, value):
    with pytest.raises(StatementError):
        verify(edited(path, value), TRUSTED)


@given(st.binary(max_size=100))
@settings(deadline=None)
def test_arbitrary_bytes_only_raise_statement_error(data):
    with pytest.raises(StatementError):
        verify(data, TRUSTED)


# ML-DSA-65


SECOND = MLDSA65PrivateKey.generate()
SECOND_HINT = key_hint(SECOND.public_key())
BOTH = {**TRUSTED, SECOND_HINT: SECOND.public_key()}


class Library:
    """securesystemslib's own signer over an ML-DSA-65 key."""

    public_key, hint = SECOND.public_key(), SECOND_HINT

    def sign(self, data: bytes) -> bytes:
        key = SSlibKey.from_crypto(self.public_key, keyid=SECOND_HINT)
        return bytes.fromhex(CryptoSigner(SECOND, key).sign(data).signature)


def test_ml_dsa_signs_the_encoding_itself():
    bundle = sign(PAYLOAD, SECOND)
    verified = verify(bundle, BOTH, algorithm=ML_DSA_65)
    assert verified == Verified(PAYLOAD, SECOND_HINT)
    assert len(verified.signature) == 3309
    # FIPS 204, pure, no context: what any implementation gives and takes.
    SECOND.public_key().verify(verified.signature, pae(PAYLOAD_TYPE, PAYLOAD))
    for algorithm, data in ((ECDSA_P256, bundle), (ML_DSA_65, sign(PAYLOAD, KEY))):
        with pytest.raises(
            StatementError, match=f"expected a signature by {algorithm}"
        ):
            verify(data, BOTH, algorithm=algorithm)


def test_securesystemslib_and_the_pre_hash():
    """Both of its forms of one key are known, and neither is taken for the other."""
    theirs, ours = sign(PAYLOAD, Library()), sign(PAYLOAD, SECOND)
    told = {"algorithm": ML_DSA_65, "prehash": {SECOND_HINT}}
    assert verify(theirs, BOTH, **told).hint == SECOND_HINT
    for bundle, options in ((theirs, {"algorithm": ML_DSA_65}), (ours, told)):
        with pytest.raises(StatementError, match=NOT_VERIFIED):
            verify(bundle, BOTH, **options)
    # Its envelope verifies what its signers made, and agrees on what was signed.
    key = SSlibKey.from_crypto(SECOND.public_key(), keyid=SECOND_HINT)
    envelopes = [json.loads(item)["dsseEnvelope"] for item in (theirs, ours)]
    for envelope in envelopes:
        envelope["signatures"][0]["keyid"] = SECOND_HINT
    first, second = map(Envelope.from_dict, envelopes)
    assert list(first.verify([key], threshold=1)) == [SECOND_HINT]
    assert second.pae() == pae(PAYLOAD_TYPE, PAYLOAD)
    with pytest.raises(securesystemslib.exceptions.VerificationError):
        second.verify([key], threshold=1)


def test_an_ecdsa_key_signs_no_pre_hash():
    with pytest.raises(StatementError, match="only ML-DSA-65 signs a pre-hash"):
        verify(json.dumps(BUNDLE).encode(), TRUSTED, prehash={HINT})


def test_no_signature_of_another_length():
    value = json.loads(sign(PAYLOAD, SECOND))
    for length in (0, 1, 3308, 3310, 1 << 20):
        value["dsseEnvelope"]["signatures"][0]["sig"] = encode(bytes(length))
        with pytest.raises(StatementError, match=NOT_VERIFIED):
            verify(json.dumps(value).encode(), BOTH, algorithm=ML_DSA_65)


def test_keys_in_pem():
    for key in (KEY.public_key(), SECOND.public_key()):
        assert key_hint(parse_public(public_pem(key))) == key_hint(key)
    others = (
        ec.generate_private_key(ec.SECP384R1()),
        ed25519.Ed25519PrivateKey.generate(),
        mldsa.MLDSA44PrivateKey.generate(),
    )
    for other in others:
        with pytest.raises(StatementError, match="neither ECDSA P-256 nor ML-DSA-65"):
            parse_public(public_pem(other.public_key()))
    with pytest.raises(StatementError, match="not a PEM public key"):
        parse_public("x")


# Time stamps, which are returned and not verified


def stamped(*stamps: object, **other: object) -> bytes:
    data = {"rfc3161Timestamps": [{"signedTimestamp": item} for item in stamps]}
    return edited("verificationMaterial.timestampVerificationData", data | other)


def test_time_stamps_are_returned():
    assert verify(json.dumps(BUNDLE).encode(), TRUSTED).timestamps == ()
    found = verify(stamped(encode(b"one"), encode(b"two")), TRUSTED)
    assert found.timestamps == (b"one", b"two")
    assert verify(stamped(), TRUSTED).timestamps == ()
    empty = edited("verificationMaterial.timestampVerificationData", None)
    assert verify(empty, TRUSTED).timestamps == ()


@pytest.mark.parametrize(
    ("bundle", "message"),
    [
        (stamped(*["MQ=="] * 9), "more than 8 time stamps"),
        (stamped(encode(bytes((16 << 10) + 1))), "a time stamp over 16384 bytes"),
        (stamped(5), "expected base64"),
        (stamped("MR=="), "not canonical"),
        (stamped(rfc3161Timestamps={"a": 1}), "time stamps are malformed"),
        (stamped(rfc3161Timestamps=["MQ=="]), "missing signedTimestamp"),
        (
            edited("verificationMaterial.timestampVerificationData", [1]),
            "time stamps are malformed",
        ),
    ],
)
def test_time_stamps_within_bounds(bundle, message):
    with pytest.raises(StatementError, match=message):
        verify(bundle, TRUSTED)
