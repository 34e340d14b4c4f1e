"""Oblivious HTTP: RFC 9458's example byte for byte, and every way to break it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealgate.errors import DecryptionError, EncapsulationError, KeyConfigError
from sealgate.protocol.hpke import KEM_X25519, PrivateKey
from sealgate.protocol.keyconfig import KeyConfig
from sealgate.protocol.ohttp import (
    RequestHeader,
    open_request,
    parse_header,
    seal_request,
)

KEY = PrivateKey.from_bytes(b"\x11" * 32)
AES = KeyConfig(7, KEM_X25519, KEY.public_bytes, ((1, 1),))
CHACHA = KeyConfig(7, KEM_X25519, KEY.public_bytes, ((1, 3),))
BOTH = pytest.mark.parametrize("config", [AES, CHACHA], ids=["aes", "chacha"])


@pytest.fixture(scope="module")
def example(shared_data):
    path = shared_data / "vectors-ohttp" / "rfc9458_example.json"
    texts = {"source", "kem", "kdf", "aead"}
    return {
        name: bytes.fromhex(value)
        for name, value in json.loads(path.read_text()).items()
        if name not in texts
    }


def _seal_example(example):
    return seal_request(
        KeyConfig.decode(example["key_config"]),
        example["request_bhttp"],
        ephemeral=PrivateKey.from_bytes(example["client_ephemeral_secret_key"]),
    )


def test_rfc9458_request_is_sealed_byte_for_byte(example):
    sealed, context = _seal_example(example)
    assert sealed == example["encapsulated_request"]
    assert context._secret == example["exported_secret"]


def test_rfc9458_request_opens(example):
    gateway = PrivateKey.from_bytes(example["gateway_secret_key"])
    request, context = open_request(example["encapsulated_request"], gateway)
    assert request == example["request_bhttp"]
    assert context._secret == example["exported_secret"]


def test_rfc9458_response_is_sealed_byte_for_byte(example):
    gateway = PrivateKey.from_bytes(example["gateway_secret_key"])
    _, context = open_request(example["encapsulated_request"], gateway)
    nonce = example["response_salt"][32:]
    assert (
        context.seal(example["response_bhttp"], nonce=nonce)
        == example["encapsulated_response"]
    )
    assert context._keys(nonce)[1] == example["response_aead_nonce"]


def test_rfc9458_response_opens(example):
    _, context = _seal_example(example)
    assert context.open(example["encapsulated_response"]) == example["response_bhttp"]


def test_header_round_trip(example):
    header = parse_header(example["encapsulated_request"])
    assert header == RequestHeader(key_id=1, kem_id=0x20, kdf_id=1, aead_id=1)
    assert header.encode() == example["encapsulated_request"][:7]


@BOTH
def test_every_truncation_of_a_request_refused(config):
    sealed, _ = seal_request(config, b"request")
    for size in range(len(sealed)):
        short = size < 7 + 32 + 16
        error = EncapsulationError if short else DecryptionError
        with pytest.raises(error) as caught:
            open_request(sealed[:size], KEY)
        if short:
            assert str(caught.value) == "encapsulated request is too short"


@BOTH
def test_every_bit_of_a_request_counts(config):
    sealed, _ = seal_request(config, b"request")
    for i in range(len(sealed) * 8):
        broken = bytearray(sealed)
        broken[i // 8] ^= 1 << i % 8
        # KEM, KDF and AEAD are checked; the key id only selects, but is authenticated,
        # and so is the bit of enc that X25519 itself would mask.
        named = 1 <= i // 8 <= 6
        allowed = (DecryptionError, EncapsulationError) if named else DecryptionError
        with pytest.raises(allowed):
            open_request(bytes(broken), KEY)


@BOTH
def test_every_bit_of_a_response_counts(config):
    sealed, client = seal_request(config, b"request")
    _, gateway = open_request(sealed, KEY)
    response = gateway.seal(b"response")
    for i in range(len(response) * 8):
        broken = bytearray(response)
        broken[i // 8] ^= 1 << i % 8
        with pytest.raises(DecryptionError, match="response does not authenticate"):
            client.open(bytes(broken))
    assert client.open(response) == b"response"


@pytest.mark.parametrize(("config", "nonce"), [(AES, 16), (CHACHA, 32)])
def test_every_truncation_of_a_response_refused(config, nonce):
    sealed, client = seal_request(config, b"request")
    response = open_request(sealed, KEY)[1].seal(b"response")
    assert len(response) == nonce + len(b"response") + 16
    for size in range(len(response)):
        error = EncapsulationError if size < nonce + 16 else DecryptionError
        with pytest.raises(error):
            client.open(response[:size])


def test_wrong_key_refused():
    sealed, _ = seal_request(AES, b"request")
    with pytest.raises(DecryptionError, match="message does not authenticate"):
        open_request(sealed, PrivateKey.generate())


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"\x07\x00\x10\x00\x01\x00\x01", "unsupported suite KEM 0x0010"),
        (b"\x07\x00\x20\x00\x02\x00\x01", "KDF 0x0002"),
        (b"\x07\x00\x20\x00\x01\x00\x02", "AEAD 0x0002"),
        (b"\x07\x00\x20\x00\x01\xff\xff", "AEAD 0xffff"),
    ],
)
def test_unsupported_suites_refused(header, message):
    sealed, _ = seal_request(AES, b"request")
    with pytest.raises(EncapsulationError, match=message):
        open_request(header + sealed[7:], KEY)


def test_low_order_enc_refused():
    sealed, _ = seal_request(AES, b"request")
    with pytest.raises(DecryptionError):
        open_request(sealed[:7] + bytes(32) + sealed[39:], KEY)


def test_low_order_configuration_refused():
    with pytest.raises(DecryptionError):
        seal_request(KeyConfig(1, KEM_X25519, bytes(32)), b"request")


def test_configuration_without_a_known_algorithm_refused():
    config = KeyConfig(1, KEM_X25519, KEY.public_bytes, ((1, 2),))
    with pytest.raises(KeyConfigError, match="no supported symmetric algorithm"):
        seal_request(config, b"request")


def test_response_of_another_request_refused():
    first, _ = seal_request(AES, b"request")
    _, second = seal_request(AES, b"request")
    response = open_request(first, KEY)[1].seal(b"response")
    with pytest.raises(DecryptionError):
        second.open(response)


def test_a_request_is_not_a_response():
    sealed, client = seal_request(AES, b"request")
    with pytest.raises(DecryptionError):
        client.open(sealed)


def test_requests_and_responses_are_fresh():
    first, _ = seal_request(AES, b"request")
    second, _ = seal_request(AES, b"request")
    assert first[7:39] != second[7:39]
    _, context = open_request(first, KEY)
    responses = {context.seal(b"response")[:16] for _ in range(4)}
    assert len(responses) == 4


def test_repr_shows_no_secret():
    sealed, context = seal_request(AES, b"request")
    _, gateway = open_request(sealed, KEY)
    for side in (context, gateway):
        assert repr(side).startswith("<ResponseContext Suite(")
        assert side._secret.hex() not in repr(side)
        assert repr(side._secret) not in repr(side)


@given(st.sampled_from([AES, CHACHA]), st.binary(max_size=300), st.binary(max_size=300))
@settings(deadline=None, max_examples=60)
def test_round_trip(config, request, response):
    sealed, client = seal_request(config, request)
    opened, gateway = open_request(sealed, KEY)
    assert opened == request
    assert client.open(gateway.seal(response)) == response


HEADER = seal_request(AES, b"")[0][:7]


@given(
    st.binary(max_size=80)
    | st.binary(min_size=48, max_size=90).map(lambda rest: HEADER + rest)
)
@settings(deadline=None, max_examples=200)
def test_arbitrary_bytes_only_raise_our_errors(data):
    with pytest.raises((EncapsulationError, DecryptionError)):
        open_request(data, KEY)
    with pytest.raises((EncapsulationError, DecryptionError)):
        seal_request(AES, b"")[1].open(data)
