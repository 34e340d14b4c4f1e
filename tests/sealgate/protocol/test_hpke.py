"""HPKE against RFC 9180's vectors, Wycheproof, and another implementation."""

from __future__ import annotations

import gzip
import json
import re
from importlib import resources

import pytest
from cryptography.hazmat.primitives import hpke as other
from hypothesis import given, settings
from hypothesis import strategies as st

from sealgate.errors import DecryptionError, KeyConfigError
from sealgate.protocol.hpke import (
    AEAD_AES_128_GCM,
    AEAD_CHACHA20_POLY1305,
    KDF_HKDF_SHA256,
    KEM_X25519,
    KEM_XWING,
    HybridPrivateKey,
    PrivateKey,
    Suite,
    hkdf_expand,
    hkdf_extract,
    setup_receiver,
    setup_sender,
)
from sealgate.protocol.kem import encapsulate

AEADS = (AEAD_AES_128_GCM, AEAD_CHACHA20_POLY1305)
OTHER_AEADS = {
    AEAD_AES_128_GCM: other.AEAD.AES_128_GCM,
    AEAD_CHACHA20_POLY1305: other.AEAD.CHACHA20_POLY1305,
}
# Points of small order (RFC 7748, section 6.1): the exchange gives zero.
LOW_ORDER = [
    "00" * 32,
    "01" + "00" * 31,
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
]


def suite(aead: int) -> Suite:
    return Suite(KEM_X25519, KDF_HKDF_SHA256, aead)


def vectors() -> dict[int, dict]:
    """Base mode of our suites, from PyPI's cryptography_vectors (RFC 9180, A)."""
    file = resources.files("cryptography_vectors") / "HPKE" / "test-vectors.json"
    wanted = {(0, KEM_X25519, KDF_HKDF_SHA256, aead) for aead in AEADS}
    return {
        v["aead_id"]: v
        for v in json.loads(file.read_text())
        if (v["mode"], v["kem_id"], v["kdf_id"], v["aead_id"]) in wanted
    }


@pytest.fixture(scope="module", params=AEADS, ids=["aes-128-gcm", "chacha20-poly1305"])
def vector(request):
    return vectors()[request.param]


def _hex(vector: dict, *names: str) -> list[bytes]:
    return [bytes.fromhex(vector[name]) for name in names]


def _sender(vector: dict):
    public, info, ephemeral = _hex(vector, "pkRm", "info", "skEm")
    return setup_sender(
        suite(vector["aead_id"]),
        public,
        info,
        ephemeral=PrivateKey.from_bytes(ephemeral),
    )


def _receiver(vector: dict):
    secret, enc, info = _hex(vector, "skRm", "enc", "info")
    key = PrivateKey.from_bytes(secret)
    return setup_receiver(suite(vector["aead_id"]), key, enc, info)


def test_rfc9180_key_schedule(vector):
    enc, context = _sender(vector)
    assert enc.hex() == vector["enc"]
    for side in (context, _receiver(vector)):
        assert side._base_nonce == int(vector["base_nonce"], 16)
        assert side._exporter_secret.hex() == vector["exporter_secret"]


def test_rfc9180_seals_and_opens_in_sequence(vector):
    _, sender = _sender(vector)
    receiver = _receiver(vector)
    assert len(vector["encryptions"]) == 257  # past the first byte of the counter
    for item in vector["encryptions"]:
        plaintext, aad, ciphertext = _hex(item, "pt", "aad", "ct")
        assert sender._nonce().hex() == item["nonce"]
        assert sender.seal(plaintext, aad=aad) == ciphertext
        assert receiver.open(memoryview(ciphertext), aad=aad) == plaintext


def test_rfc9180_exports(vector):
    for side in (_sender(vector)[1], _receiver(vector)):
        for item in vector["exports"]:
            context = bytes.fromhex(item["exporter_context"])
            assert side.export(context, item["L"]).hex() == item["exported_value"]


def test_rfc9180_public_keys(vector):
    for secret, public in (("skRm", "pkRm"), ("skEm", "pkEm")):
        key = PrivateKey.from_bytes(bytes.fromhex(vector[secret]))
        assert key.public_bytes.hex() == vector[public]


# X-Wing: what the library's interface lets one fix is the private key and the
# encapsulated key. It takes no randomness for ML-KEM's encapsulation, so the sender's
# side of these vectors cannot be repeated; it is tried against `hpke.Suite` below.


def pq_vectors() -> list[dict]:
    """draft-ietf-hpke-pq's vectors of MLKEM768-X25519 with HKDF-SHA256."""
    folder = resources.files("cryptography_vectors") / "HPKE"
    document = json.loads((folder / "hpke-pq-test-vectors.json").read_text())
    return [
        v
        for v in document
        if (v["mode"], v["kem_id"], v["kdf_id"]) == (0, KEM_XWING, KDF_HKDF_SHA256)
    ]


def test_hpke_pq_vectors():
    (vector,) = pq_vectors()
    secret, public, enc, info = _hex(vector, "skRm", "pkRm", "enc", "info")
    key = HybridPrivateKey.from_seed(secret)
    assert key.public_bytes == public
    assert key.decapsulate(enc).hex() == vector["shared_secret"]
    suite = Suite(KEM_XWING, KDF_HKDF_SHA256, vector["aead_id"])
    assert suite.identifier.hex() == vector["suite_id"]
    context = setup_receiver(suite, key, enc, info)
    assert f"{context._base_nonce:024x}" == vector["base_nonce"]
    assert context._exporter_secret.hex() == vector["exporter_secret"]
    for item in vector["encryptions"]:
        plaintext, aad, ciphertext = _hex(item, "pt", "aad", "ct")
        assert context.open(ciphertext, aad=aad) == plaintext
    for item in vector["exports"]:
        exported = context.export(bytes.fromhex(item["exporter_context"]), item["L"])
        assert exported.hex() == item["exported_value"]


def test_xwing_vectors(shared_data):
    path = shared_data / "vectors-xwing" / "xwing_vectors.json"
    vectors = json.loads(path.read_text())
    assert len(vectors) == 3
    for vector in vectors:
        seed, public, enc = _hex(vector, "sk", "pk", "ct")
        key = HybridPrivateKey.from_seed(seed)
        assert key.public_bytes == public
        assert key.decapsulate(enc).hex() == vector["ss"]


def _parties(kem: int):
    """Our key, and the same for `hpke.Suite`: private and public half."""
    if kem == KEM_X25519:
        key = PrivateKey.generate()
        return key, key.key, key.key.public_key()
    key = HybridPrivateKey.generate()
    theirs = other.MLKEM768X25519PrivateKey(key.mlkem, key.x25519.key)
    return key, theirs, theirs.public_key()


OTHER_KEMS = {KEM_X25519: other.KEM.X25519, KEM_XWING: other.KEM.MLKEM768_X25519}
KEMS = pytest.mark.parametrize("kem", OTHER_KEMS, ids=["x25519", "xwing"])


@KEMS
@pytest.mark.parametrize("aead", AEADS)
def test_both_directions_against_the_library(kem, aead):
    theirs = other.Suite(OTHER_KEMS[kem], other.KDF.HKDF_SHA256, OTHER_AEADS[aead])
    ours = Suite(kem, KDF_HKDF_SHA256, aead)
    key, private, public = _parties(kem)
    enc, context = setup_sender(ours, key.public_bytes, b"info")
    assert len(enc) == ours.nenc
    sealed = enc + context.seal(b"message")
    assert theirs.decrypt(sealed, private, info=b"info") == b"message"
    sealed = theirs.encrypt(b"message", public, info=b"info")
    context = setup_receiver(ours, key, sealed[: ours.nenc], b"info")
    assert context.open(sealed[ours.nenc :]) == b"message"


def test_every_byte_of_a_hybrid_enc_counts():
    key = HybridPrivateKey.generate()
    ours = Suite(KEM_XWING, KDF_HKDF_SHA256, AEAD_AES_128_GCM)
    enc, context = setup_sender(ours, key.public_bytes, b"")
    sealed = context.seal(b"message")
    for i in range(len(enc)):
        broken = bytearray(enc)
        broken[i] ^= 1 << i % 8
        with pytest.raises(DecryptionError):
            setup_receiver(ours, key, bytes(broken), b"").open(sealed)


@pytest.mark.parametrize("size", [0, 31, 32, 1088, 1119, 1121])
def test_hybrid_sizes_refused(size):
    key = HybridPrivateKey.generate()
    with pytest.raises(DecryptionError, match="invalid encapsulated key"):
        key.decapsulate(bytes(size))
    with pytest.raises(DecryptionError, match="invalid public key"):
        encapsulate(KEM_XWING, bytes(size))
    with pytest.raises(KeyConfigError, match="an X-Wing seed has 32 bytes"):
        HybridPrivateKey.from_seed(bytes(size + 33))


def test_hybrid_keys_that_are_none_refused():
    key = HybridPrivateKey.generate().public_bytes
    beyond_the_modulus = b"\xff" * 1184 + key[1184:]
    with pytest.raises(DecryptionError, match="invalid public key"):
        encapsulate(KEM_XWING, beyond_the_modulus)
    for cut in (key[:-1], key + b"\0", key[:1184] + bytes(32)):
        with pytest.raises(DecryptionError, match="invalid encapsulated key"):
            encapsulate(KEM_XWING, cut)


def test_a_key_of_the_other_kem_refused():
    ours = Suite(KEM_XWING, KDF_HKDF_SHA256, AEAD_AES_128_GCM)
    with pytest.raises(DecryptionError, match="invalid encapsulated key"):
        setup_receiver(ours, PrivateKey.generate(), bytes(1120), b"")


def test_the_repr_of_a_hybrid_key_hides_it():
    key = HybridPrivateKey.generate()
    assert re.fullmatch(
        "<HybridPrivateKey X-Wing public=sha256:[0-9a-f]{64}>", repr(key)
    )


@pytest.mark.parametrize(
    "point", LOW_ORDER, ids=[f"{point[:4]}-{point[-2:]}" for point in LOW_ORDER]
)
def test_low_order_keys_refused(point):
    peer, own = bytes.fromhex(point), PrivateKey.generate()
    with pytest.raises(DecryptionError, match="invalid encapsulated key"):
        own.exchange(peer)
    with pytest.raises(DecryptionError, match="invalid encapsulated key"):
        setup_receiver(suite(AEAD_AES_128_GCM), own, peer, b"")
    with pytest.raises(DecryptionError, match="invalid encapsulated key"):
        setup_sender(suite(AEAD_AES_128_GCM), peer, b"")


@pytest.mark.parametrize("size", [0, 31, 33])
def test_keys_of_other_sizes_refused(size):
    with pytest.raises(DecryptionError, match="invalid encapsulated key"):
        PrivateKey.generate().exchange(b"\x09" * size)
    with pytest.raises(KeyConfigError, match="an X25519 private key has 32 bytes"):
        PrivateKey.from_bytes(b"\x09" * size)


def test_wycheproof_x25519(shared_data):
    path = shared_data / "vectors-wycheproof" / "x25519_test.json.gz"
    document = json.loads(gzip.decompress(path.read_bytes()))
    tests = [test for group in document["testGroups"] for test in group["tests"]]
    assert len(tests) == document["numberOfTests"]
    zero = 0
    for test in tests:
        private, public, shared = _hex(test, "private", "public", "shared")
        key = PrivateKey.from_bytes(private)
        if "ZeroSharedSecret" in test["flags"]:
            zero += 1
            with pytest.raises(DecryptionError):
                key.exchange(public)
        else:
            assert key.exchange(public) == shared, test["tcId"]
    assert zero > 20


@pytest.mark.parametrize(
    "ids",
    [
        (0x0010, KDF_HKDF_SHA256, AEAD_AES_128_GCM),
        (KEM_X25519, 0x0003, AEAD_AES_128_GCM),
        (KEM_X25519, KDF_HKDF_SHA256, 0x0002),
        (KEM_X25519, KDF_HKDF_SHA256, 0xFFFF),
        (0, 0, 0),
    ],
)
def test_unsupported_suites_refused(ids):
    with pytest.raises(KeyConfigError) as caught:
        Suite(*ids)
    assert str(caught.value) == (
        f"unsupported suite KEM {ids[0]:#06x}, KDF {ids[1]:#06x}, AEAD {ids[2]:#06x}"
    )


def _pair(aead: int = AEAD_AES_128_GCM):
    key = PrivateKey.generate()
    enc, sender = setup_sender(suite(aead), key.public_bytes, b"info")
    return sender, setup_receiver(suite(aead), key, enc, b"info")


def test_every_bit_of_a_ciphertext_counts():
    sender, receiver = _pair()
    sealed = sender.seal(b"message", aad=b"aad")
    for i in range(len(sealed) * 8):
        broken = bytearray(sealed)
        broken[i // 8] ^= 1 << i % 8
        with pytest.raises(DecryptionError, match="message does not authenticate"):
            receiver.open(bytes(broken), aad=b"aad")
    # A refusal does not advance the sequence: the true message still opens.
    assert receiver.open(sealed, aad=b"aad") == b"message"


@pytest.mark.parametrize("aead", AEADS)
@pytest.mark.parametrize("size", range(17))
def test_truncated_ciphertexts_refused(aead, size):
    sender, receiver = _pair(aead)
    with pytest.raises(DecryptionError, match="message does not authenticate"):
        receiver.open(sender.seal(b"message")[:size])


def test_aad_info_order_and_replay_count():
    sender, receiver = _pair()
    first, second = sender.seal(b"1", aad=b"a"), sender.seal(b"2", aad=b"a")
    for ciphertext, aad in ((first, b"b"), (first, b""), (second, b"a")):
        with pytest.raises(DecryptionError):
            receiver.open(ciphertext, aad=aad)
    assert receiver.open(first, aad=b"a") == b"1"
    with pytest.raises(DecryptionError):
        receiver.open(first, aad=b"a")
    key = PrivateKey.generate()
    enc, sender = setup_sender(suite(AEAD_AES_128_GCM), key.public_bytes, b"info")
    other_info = setup_receiver(suite(AEAD_AES_128_GCM), key, enc, b"inf0")
    with pytest.raises(DecryptionError):
        other_info.open(sender.seal(b"message"))


def test_every_sender_is_fresh():
    key = PrivateKey.generate()
    encs = {
        setup_sender(suite(AEAD_AES_128_GCM), key.public_bytes, b"")[0] for _ in "ab"
    }
    assert len(encs) == 2


def test_repr_shows_no_secret():
    key = PrivateKey.generate()
    assert repr(key) == f"<PrivateKey X25519 public={key.public_bytes.hex()}>"
    _, context = setup_sender(suite(AEAD_AES_128_GCM), key.public_bytes, b"")
    context.seal(b"")
    assert repr(context).endswith("sequence=1>")
    for secret in (
        key.key.private_bytes_raw().hex(),
        context._exporter_secret.hex(),
        f"{context._base_nonce:x}",
        str(context._base_nonce),
        repr(context._exporter_secret),
    ):
        assert secret not in repr(key) + repr(context)


def test_hkdf_rfc5869_case_1():
    prk = hkdf_extract(bytes(range(13)), b"\x0b" * 22)
    assert prk.hex() == (
        "077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5"
    )
    assert hkdf_expand(prk, bytes(range(0xF0, 0xFA)), 42).hex() == (
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf"
        "34007208d5b887185865"
    )


@given(st.binary(max_size=64), st.binary(max_size=100))
@settings(deadline=None, max_examples=150)
def test_arbitrary_input_only_raises_decryption_error(enc, ciphertext):
    key = PrivateKey.from_bytes(b"\x42" * 32)
    with pytest.raises(DecryptionError):
        setup_receiver(suite(AEAD_AES_128_GCM), key, enc, b"").open(ciphertext)


@given(
    st.sampled_from(AEADS),
    st.lists(st.tuples(st.binary(max_size=80), st.binary(max_size=20)), max_size=4),
    st.binary(max_size=20),
    st.integers(0, 64),
)
@settings(deadline=None, max_examples=60)
def test_round_trip(aead, messages, info, length):
    key = PrivateKey.generate()
    enc, sender = setup_sender(suite(aead), key.public_bytes, info)
    receiver = setup_receiver(suite(aead), key, enc, info)
    for message, aad in messages:
        assert receiver.open(sender.seal(message, aad=aad), aad=aad) == message
    assert sender.export(info, length) == receiver.export(info, length)
