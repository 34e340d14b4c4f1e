"""Key configurations (RFC 9458, section 3)."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealgate.errors import KeyConfigError
from sealgate.protocol.hpke import KEM_X25519, PrivateKey, Suite
from sealgate.protocol.keyconfig import KeyConfig, decode_list, encode_list

KEY = PrivateKey.from_bytes(b"\x07" * 32).public_bytes
CONFIG = KeyConfig(3, KEM_X25519, KEY)
HEAD = b"\x03\x00\x20" + KEY
P256 = b"\x04\x00\x10" + bytes(65) + b"\x00\x04\x00\x01\x00\x01"  # another KEM


def sized(item: bytes) -> bytes:
    return len(item).to_bytes(2, "big") + item


def test_rfc9458_example(shared_data):
    path = shared_data / "vectors-ohttp" / "rfc9458_example.json"
    example = json.loads(path.read_text())
    data = bytes.fromhex(example["key_config"])
    config = KeyConfig.decode(data)
    assert config.encode() == data
    assert config == KeyConfig(
        key_id=1,
        kem_id=0x0020,
        public_key=PrivateKey.from_bytes(
            bytes.fromhex(example["gateway_secret_key"])
        ).public_bytes,
        symmetric=((1, 1), (1, 3)),
    )
    assert config.choose() == Suite(0x0020, 1, 1)


def test_every_truncation_and_every_extra_byte_refused():
    data = CONFIG.encode()
    for size in range(len(data)):
        with pytest.raises(KeyConfigError):
            KeyConfig.decode(data[:size])
    with pytest.raises(KeyConfigError, match="do not match their length"):
        KeyConfig.decode(data + b"\x00")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "key configuration is truncated"),
        (b"\x03\x00\x20", "key configuration is truncated"),
        (HEAD[:-1], "key configuration is truncated"),
        (HEAD + b"\x00", "key configuration is truncated"),
        (HEAD + b"\x00\x00", "symmetric algorithms do not match their length"),
        (HEAD + b"\x00\x02\x00\x01", "symmetric algorithms do not match their length"),
        (
            HEAD + b"\x00\x08\x00\x01\x00\x01",
            "symmetric algorithms do not match their length",
        ),
        (
            HEAD + b"\x00\x04\x00\x01\x00\x01\x00",
            "symmetric algorithms do not match their length",
        ),
        (
            HEAD + b"\x00\x06\x00\x01\x00\x01\x00\x01",
            "symmetric algorithms do not match their length",
        ),
        (P256, "unknown KEM 0x0010"),
    ],
)
def test_malformed_configurations(data, message):
    with pytest.raises(KeyConfigError) as caught:
        KeyConfig.decode(data)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no usable key configuration"),
        (b"\x00", "key configuration list is truncated"),
        (b"\x00\x00", "key configuration list is truncated"),
        (b"\x00\x02\x03\x00", "key configuration list is truncated"),
        (CONFIG.encode(), "key configuration list is truncated"),
        (sized(CONFIG.encode())[:-1], "key configuration list is truncated"),
        (sized(CONFIG.encode()) + b"\x00", "key configuration list is truncated"),
        (sized(P256), "no usable key configuration"),
        (sized(CONFIG.encode() + b"\x00"), "do not match their length"),
        # One malformed configuration spoils the good one before it (section 3.2).
        (sized(CONFIG.encode()) + sized(HEAD), "key configuration is truncated"),
        (bytes((64 << 10) + 1), "more than 65536 bytes of key configurations"),
    ],
)
def test_malformed_lists(data, message):
    with pytest.raises(KeyConfigError, match=message):
        decode_list(data)


def test_other_kems_are_passed_over():
    document = sized(P256) + encode_list([CONFIG])
    assert decode_list(document) == [CONFIG]


def test_order_is_kept():
    configs = [KeyConfig(i, KEM_X25519, KEY) for i in (9, 1, 200)]
    assert decode_list(encode_list(configs)) == configs


def test_first_supported_algorithm_is_chosen():
    symmetric = ((3, 1), (1, 2), (1, 3), (1, 1))
    config = KeyConfig(1, KEM_X25519, KEY, symmetric)
    assert config.choose() == Suite(KEM_X25519, 1, 3)


def test_no_supported_algorithm():
    config = KeyConfig(1, KEM_X25519, KEY, ((3, 1), (1, 2)))
    with pytest.raises(KeyConfigError, match="no supported symmetric algorithm"):
        config.choose()


IDS = st.integers(0, 0xFFFF)
CONFIGS = st.builds(
    KeyConfig,
    st.integers(0, 255),
    st.just(KEM_X25519),
    st.binary(min_size=32, max_size=32),
    st.lists(st.tuples(IDS, IDS), min_size=1, max_size=5).map(tuple),
)


@given(st.lists(CONFIGS, min_size=1, max_size=4))
@settings(deadline=None)
def test_round_trip(configs):
    assert decode_list(encode_list(configs)) == configs


@given(
    st.binary(max_size=120)
    | st.binary(max_size=60).map(lambda rest: sized(HEAD + rest))
    | st.binary(max_size=60).map(lambda rest: encode_list([CONFIG]) + rest)
)
@settings(deadline=None, max_examples=300)
def test_arbitrary_bytes_only_raise_key_config_error(data):
    try:
        configs = decode_list(data)
    except KeyConfigError:
        return
    assert set(decode_list(encode_list(configs))) == set(configs)
