"""Chunked Oblivious HTTP: the draft's example to the byte, and streams that lie."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealgate.errors import (
    DecryptionError,
    EncapsulationError,
    ProtocolError,
    UnknownKeyError,
)
from sealgate.protocol.drafts.chunked import (
    CHUNK_BYTES,
    ChunkLimits,
    RequestOpener,
    seal_chunked_request,
)
from sealgate.protocol.hpke import (
    KEM_X25519,
    KEM_XWING,
    HybridPrivateKey,
    PrivateKey,
)
from sealgate.protocol.keyconfig import KeyConfig
from sealgate.protocol.ohttp import open_request

KEY = PrivateKey.from_bytes(b"\x11" * 32)
CONFIG = KeyConfig(7, KEM_X25519, KEY.public_bytes, ((1, 1),))
HYBRID = HybridPrivateKey.from_seed(b"\x11" * 32)
CONFIGS = {
    "x25519-aes": (KEY, CONFIG),
    "x25519-chacha": (KEY, KeyConfig(7, KEM_X25519, KEY.public_bytes, ((1, 3),))),
    "xwing-aes": (HYBRID, KeyConfig(7, KEM_XWING, HYBRID.public_bytes, ((1, 1),))),
}
EACH = pytest.mark.parametrize(("key", "config"), CONFIGS.values(), ids=CONFIGS)
CUT = "the stream ends before its final chunk"


@pytest.fixture(scope="module")
def example(shared_data):
    path = shared_data / "vectors-ohttp" / "chunked_ohttp_example.json"
    document = json.loads(path.read_text())
    return {
        name: [bytes.fromhex(part) for part in value]
        if name.endswith(("_parts", "_nonces"))
        else bytes.fromhex(value)
        for name, value in document.items()
        if name.startswith(("gateway", "key_config", "client", "encaps", "response_"))
        and not name.endswith("_lengths")
    } | {
        "request": bytes.fromhex(document["request_bhttp"]),
        "cuts": document["request_chunk_plaintext_lengths"],
        "response_cuts": document["response_chunk_plaintext_lengths"],
    }


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    parts, position = [], 0
    for size in sizes:
        parts.append(data[position : position + size])
        position += size
    assert position == len(data)
    return parts


def test_the_drafts_request_is_sealed_byte_for_byte(example):
    sealer, _ = seal_chunked_request(
        KeyConfig.decode(example["key_config"]),
        ephemeral=PrivateKey.from_bytes(example["client_ephemeral_secret_key"]),
    )
    first, second, last = cut(example["request"], example["cuts"])
    header, enc, *chunks = example["encapsulated_request_parts"]
    assert sealer.head == header + enc
    sealed = [sealer.seal(first), sealer.seal(second), sealer.finish(last)]
    assert sealed == chunks
    assert sealer.head + b"".join(sealed) == example["encapsulated_request"]


def test_the_drafts_exchange(example):
    gateway = PrivateKey.from_bytes(example["gateway_secret_key"])
    opener = RequestOpener(lambda _: gateway)
    chunks = opener.feed(example["encapsulated_request"])
    assert [*chunks, opener.finish()] == cut(example["request"], example["cuts"])
    nonce, *expected = example["encapsulated_response_parts"]
    sealer = opener.seal_response(nonce=nonce)
    *chunks, last = cut(example["response_bhttp"], example["response_cuts"])
    assert sealer.head == nonce
    assert [*map(sealer.seal, chunks), sealer.finish(last)] == expected


def test_the_drafts_response_opens(example):
    _, opener = seal_chunked_request(
        KeyConfig.decode(example["key_config"]),
        ephemeral=PrivateKey.from_bytes(example["client_ephemeral_secret_key"]),
    )
    chunks = opener.feed(example["encapsulated_response"])
    assert b"".join([*chunks, opener.finish()]) == example["response_bhttp"]


def sealed(config=CONFIG, chunks=(b"one", b"two"), last=b"end"):
    sealer, opener = seal_chunked_request(config)
    parts = [sealer.head, *map(sealer.seal, chunks), sealer.finish(last)]
    return b"".join(parts), opener


def opened(data: bytes, key=KEY, limits: ChunkLimits = ChunkLimits()) -> bytes:
    opener = RequestOpener(lambda _: key, limits)
    return b"".join([*opener.feed(data), opener.finish()])


@EACH
@pytest.mark.parametrize("portion", [1, 7, 100, 100_000])
def test_round_trip_in_any_portions(key, config, portion):
    data, client = sealed(config, (b"a" * CHUNK_BYTES, b"b"), b"")
    gateway = RequestOpener(lambda _: key)
    message = b""
    for start in range(0, len(data), portion):
        message += b"".join(gateway.feed(data[start : start + portion]))
    assert message + gateway.finish() == b"a" * CHUNK_BYTES + b"b"
    assert gateway.enc == data[7 : 7 + (1120 if key is HYBRID else 32)]
    sealer = gateway.seal_response()
    data = sealer.head + sealer.seal(b"answer") + sealer.finish(b"!")
    message = b""
    for start in range(0, len(data), portion):
        message += b"".join(client.feed(data[start : start + portion]))
    assert message + client.finish() == b"answer!"


def test_every_truncation_of_a_request():
    data, _ = sealed()
    final = data.rindex(b"\x00" + data[-19:])
    for size in range(len(data)):
        # With less than a tag behind the final mark it is cut short for certain; with
        # more, the tag does not fit.
        error = DecryptionError if size >= final + 17 else EncapsulationError
        with pytest.raises(error) as caught:
            opened(data[:size])
        if error is EncapsulationError:
            assert str(caught.value) == CUT


def test_every_truncation_of_a_response():
    data, _ = sealed()
    gateway = RequestOpener(lambda _: KEY)
    gateway.feed(data)
    gateway.finish()
    sealer = gateway.seal_response()
    answer = sealer.head + sealer.seal(b"answer") + sealer.finish()
    for size in range(len(answer)):
        _, client = seal_chunked_request(CONFIG)
        with pytest.raises((EncapsulationError, DecryptionError)):
            client.feed(answer[:size])
            client.finish()


def test_every_bit_of_a_request_counts():
    data, _ = sealed()
    for i in range(8, len(data) * 8):
        broken = bytearray(data)
        broken[i // 8] ^= 1 << i % 8
        with pytest.raises((EncapsulationError, DecryptionError)):
            opened(bytes(broken))


def frame(*chunks: bytes) -> bytes:
    """Length and chunk, as if sealed."""
    return b"".join(bytes([len(chunk)]) + chunk for chunk in chunks)


HEAD = sealed()[0][: 7 + 32]
FAULTS = {
    "empty non-final chunk": (
        frame(bytes(16)),
        EncapsulationError,
        "an empty chunk that is not final",
    ),
    "chunk shorter than a tag": (
        frame(bytes(15)),
        EncapsulationError,
        "an empty chunk that is not final",
    ),
    "a length of 2^62-1": (b"\xff" * 8, EncapsulationError, "a chunk is too long"),
    "a length of a MiB and one": (
        (0x80000000 + (1 << 20) + 17).to_bytes(4, "big"),
        EncapsulationError,
        "a chunk is too long",
    ),
    "garbage chunk": (
        frame(bytes(20)),
        DecryptionError,
        "message does not authenticate",
    ),
    "garbage final chunk": (
        b"\0" + bytes(20),
        DecryptionError,
        "message does not authenticate",
    ),
    "final chunk of 15 bytes": (b"\0" + bytes(15), EncapsulationError, CUT),
    "nothing behind the head": (b"", EncapsulationError, CUT),
    "half a length": (b"\x40", EncapsulationError, CUT),
    "half a chunk": (b"\x20" + bytes(31), EncapsulationError, CUT),
}


@pytest.mark.parametrize(("rest", "error", "message"), FAULTS.values(), ids=FAULTS)
def test_streams_that_lie(rest, error, message):
    with pytest.raises(error) as caught:
        opened(HEAD + rest)
    assert str(caught.value) == message


def test_an_empty_chunk_sealed_as_it_should_be_is_refused_all_the_same():
    sealer, _ = seal_chunked_request(CONFIG)
    empty = sealer._protect(b"", b"")
    with pytest.raises(EncapsulationError, match="an empty chunk that is not final"):
        opened(sealer.head + frame(empty) + sealer.finish(b"x"))


def test_chunks_swapped_repeated_or_dropped():
    sealer, _ = seal_chunked_request(CONFIG)
    first, second, last = sealer.seal(b"1"), sealer.seal(b"2"), sealer.finish(b"3")
    assert opened(sealer.head + first + second + last) == b"123"
    for parts in (
        (second, first, last), (first, first, last), (first, last), (second, last),
        (first, second, second, last), (last, first), (last,),
    ):  # fmt: skip
        with pytest.raises(DecryptionError):
            opened(sealer.head + b"".join(parts))


def test_a_final_chunk_is_not_another_and_the_reverse():
    sealer, _ = seal_chunked_request(CONFIG)
    ordinary = sealer.seal(b"all there is")
    with pytest.raises(DecryptionError):
        opened(sealer.head + b"\0" + ordinary[1:])
    sealer, _ = seal_chunked_request(CONFIG)
    final = sealer.finish(b"all there is")
    with pytest.raises(DecryptionError):
        opened(sealer.head + frame(final[1:]))


def test_the_two_formats_do_not_open_each_other():
    data, _ = sealed(chunks=(), last=b"message")
    with pytest.raises(DecryptionError):
        open_request(data[:39] + data[40:], KEY)


def test_limits_are_exact():
    limits = ChunkLimits(max_chunk_bytes=10, max_message_bytes=25)
    data, _ = sealed(chunks=(b"a" * 10, b"b" * 10), last=b"c" * 5)
    assert len(opened(data, limits=limits)) == 25
    for chunks, last, message in (
        ((b"a" * 11,), b"", "a chunk is too long"),
        ((b"a" * 10, b"b" * 10, b"c" * 6), b"", "the message is too long"),
        ((b"a" * 10, b"b" * 10), b"c" * 6, "the message is too long"),
        ((), b"c" * 60, "a chunk is too long"),
    ):
        data, _ = sealed(chunks=chunks, last=last)
        with pytest.raises(EncapsulationError, match=message):
            opened(data, limits=limits)


def test_a_chunk_of_sixteen_kibibytes_is_taken_by_default():
    data, _ = sealed(chunks=(b"a" * CHUNK_BYTES,), last=b"b" * CHUNK_BYTES)
    assert len(opened(data)) == 2 * CHUNK_BYTES


def test_a_final_chunk_that_never_ends_is_bounded():
    opener = RequestOpener(lambda _: KEY, ChunkLimits(max_chunk_bytes=100))
    opener.feed(HEAD + b"\0")
    with pytest.raises(EncapsulationError, match="a chunk is too long"):
        for _ in range(200):
            opener.feed(b"x")


def test_a_broken_stream_stays_broken():
    opener = RequestOpener(lambda _: KEY)
    with pytest.raises(DecryptionError):
        opener.feed(HEAD + frame(bytes(20)))
    with pytest.raises(EncapsulationError, match="the stream is over"):
        opener.feed(b"")
    with pytest.raises(EncapsulationError, match="the stream is over"):
        opener.finish()


def test_the_key_is_asked_for_once_and_before_enc_is_there():
    asked = []

    def find(header):
        asked.append(header)
        raise UnknownKeyError("none")

    opener = RequestOpener(find)
    assert opener.feed(HEAD[:6]) == []
    assert asked == []
    with pytest.raises(UnknownKeyError):
        opener.feed(HEAD[6:7])
    opener = RequestOpener(lambda header: asked.append(header) or KEY)
    for byte in HEAD:
        opener.feed(bytes([byte]))
    assert len(asked) == 2


def test_an_unsupported_suite_is_refused():
    with pytest.raises(EncapsulationError, match="unsupported suite"):
        opened(b"\x07\x00\x20\x00\x01\x00\x02" + bytes(60))


def test_a_sealer_refuses_misuse():
    sealer, opener = seal_chunked_request(CONFIG)
    with pytest.raises(EncapsulationError):
        sealer.seal(b"")
    sealer.finish()
    for again in (lambda: sealer.seal(b"x"), sealer.finish):
        with pytest.raises(EncapsulationError):
            again()
    with pytest.raises(EncapsulationError, match=CUT):
        opener.finish()
    with pytest.raises(EncapsulationError, match=CUT):
        RequestOpener(lambda _: KEY).seal_response()


@given(
    st.lists(st.binary(min_size=1, max_size=50), max_size=5),
    st.binary(max_size=50),
    st.integers(1, 60),
)
@settings(deadline=None, max_examples=60)
def test_round_trip(chunks, last, portion):
    data, _ = sealed(chunks=chunks, last=last)
    opener = RequestOpener(lambda _: KEY)
    found = []
    for start in range(0, len(data), portion):
        found += opener.feed(data[start : start + portion])
    assert [*found, opener.finish()] == [*chunks, last]


@given(st.binary(max_size=120), st.booleans())
@settings(deadline=None, max_examples=200)
def test_arbitrary_bytes_raise_our_errors_only(data, with_head):
    with pytest.raises(ProtocolError):
        opened((HEAD if with_head else b"") + data)
    _, client = seal_chunked_request(CONFIG)
    with pytest.raises(ProtocolError):
        client.feed(data)
        client.finish()
