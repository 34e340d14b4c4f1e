"""sealgate.protocol.sealedfile: what is cut, moved, doubled or changed never opens."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealgate.errors import DecryptionError, ProtocolError, SealedFileError
from sealgate.protocol import sealedfile, strict_json
from sealgate.protocol.hpke import PrivateKey
from sealgate.protocol.sealedfile import (
    Header,
    is_plaintext,
    key_hint,
    open_chunks,
    parse_header,
    seal_chunks,
)
from tests.support.mutations import changed, mutated

KEY = PrivateKey.from_bytes(b"\x07" * 32)
OTHER = PrivateKey.from_bytes(b"\x08" * 32)
CHUNK = 1024
MAGIC = b"SGSEAL\x00\x01"
TAG = 16
PLAIN = bytes(range(256)) * 10  # 2560 bytes: two whole chunks and a half


def seal(plain: bytes = PLAIN, *keys: PrivateKey, chunk: int = CHUNK) -> bytes:
    public = [key.public_bytes for key in keys or (KEY,)]
    return b"".join(seal_chunks(plain, public, chunk_bytes=chunk))


def open_(data: bytes, key: PrivateKey = KEY) -> bytes:
    return b"".join(open_chunks(data, key))


SEALED = seal()
HEADER, START = parse_header(SEALED)
DOCUMENT = json.loads(HEADER.to_json())


def with_header(header: bytes, content: bytes = SEALED[START:]) -> bytes:
    return MAGIC + len(header).to_bytes(4, "big") + header + content


def canonical(document: Any) -> bytes:
    """As strict_json writes it, but of anything."""
    text = json.dumps(
        document, sort_keys=True, separators=(",", ":"), ensure_ascii=False
    )
    return text.encode("utf-8", "surrogatepass")


def chunks(data: bytes = SEALED) -> list[bytes]:
    content = data[parse_header(data)[1] :]
    size = CHUNK + TAG
    return [content[i : i + size] for i in range(0, len(content), size)]


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK])
def test_round_trip(size: int) -> None:
    data = seal(PLAIN[:1] * size)
    header, start = parse_header(data)
    assert open_(data) == PLAIN[:1] * size
    assert header.plaintext_bytes == size
    assert header.plaintext_sha256 == hashlib.sha256(PLAIN[:1] * size).hexdigest()
    assert len(data) == start + header.content_bytes


@settings(deadline=None, max_examples=30)
@given(plain=st.binary(max_size=5000), chunk=st.integers(1024, 4096))
def test_any_file_round_trips(plain: bytes, chunk: int) -> None:
    assert open_(seal(plain, chunk=chunk)) == plain


def test_every_recipient_opens_it_and_nobody_else() -> None:
    data = seal(PLAIN, KEY, OTHER)
    assert open_(data, KEY) == open_(data, OTHER) == PLAIN
    with pytest.raises(SealedFileError, match="sealed to other keys than this one"):
        open_(data, PrivateKey.generate())


def test_two_sealings_have_nothing_in_common() -> None:
    one, other = chunks(seal()), chunks(seal())
    assert not set(one) & set(other)
    assert PLAIN[:64] not in b"".join(one)


def test_takes_a_view_without_copying_it() -> None:
    assert b"".join(open_chunks(memoryview(SEALED), KEY)) == PLAIN


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ((), "1 to 64 recipients"),
        ((KEY, KEY), "a recipient occurs twice"),
        ((KEY,) * 65, "1 to 64 recipients"),
    ],
    ids=["none", "twice", "many"],
)
def test_refuses_to_seal_to(keys: tuple[PrivateKey, ...], message: str) -> None:
    with pytest.raises(SealedFileError, match=message):
        list(seal_chunks(PLAIN, [key.public_bytes for key in keys]))


def test_refuses_a_key_that_gives_no_secret() -> None:
    with pytest.raises(DecryptionError, match="invalid encapsulated key"):
        list(seal_chunks(PLAIN, [bytes(32)]))


# Bytes that changed.


def test_every_truncation_is_refused() -> None:
    small = seal(b"x" * 1500)
    for length in range(len(small)):
        with pytest.raises(SealedFileError):
            open_(small[:length])


def test_every_flipped_bit_is_refused() -> None:
    small = seal(b"weights")
    for i in range(len(small)):
        for bit in range(8):
            flipped = bytearray(small)
            flipped[i] ^= 1 << bit
            with pytest.raises(ProtocolError):
                open_(bytes(flipped))


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=300))
def test_any_bytes_are_refused(data: bytes) -> None:
    for given_ in (data, MAGIC + data, with_header(data)):
        with pytest.raises(SealedFileError):
            open_(given_)


@settings(deadline=None)
@given(document=mutated(DOCUMENT))
def test_any_header_is_read_or_refused(document: object) -> None:
    try:
        header = Header.from_json(canonical(document))
    except SealedFileError:
        return
    assert 1 <= len(header.recipients) <= 64
    if header != HEADER:
        with pytest.raises(ProtocolError):
            open_(with_header(header.to_json()))


REORDERED = {
    "swapped": lambda c: [c[1], c[0], c[2]],
    "doubled": lambda c: [c[0], c[0], c[2]],
    "from another file": lambda c: [c[0], chunks(seal())[1], c[2]],
}


@pytest.mark.parametrize("name", REORDERED)
def test_chunks_keep_their_place(name: str) -> None:
    content = b"".join(REORDERED[name](chunks()))
    with pytest.raises(DecryptionError, match=r"chunk [12] of 3 does not authenticate"):
        open_(SEALED[:START] + content)


def resized(count: int) -> bytes:
    """The file with its first chunks only, and a header that says so."""
    document = changed(DOCUMENT, "plaintext.bytes", count * CHUNK)
    content = b"".join(chunks()[:count])
    return with_header(strict_json.dumps(document), content)


def test_a_cut_that_the_header_agrees_with() -> None:
    with pytest.raises(DecryptionError):
        open_(resized(2))


def test_an_earlier_chunk_is_never_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    # With the header bound by nothing but its digest in the key schedule, this is what
    # is left of a cut: the flag in the nonce.
    schedule = sealedfile._schedule
    monkeypatch.setattr(
        sealedfile, "_schedule", lambda key, _: schedule(key, HEADER.to_json())
    )
    monkeypatch.setattr(Header, "info", lambda _: HEADER_INFO)
    with pytest.raises(DecryptionError, match="chunk 2 of 2 does not authenticate"):
        open_(resized(2))


HEADER_INFO = HEADER.info()


def test_bytes_after_the_last_chunk() -> None:
    with pytest.raises(SealedFileError, match="sealed file: 1 bytes too many"):
        open_(SEALED + b"\x00")


# Headers with one fault.

RECIPIENT = DOCUMENT["recipients"][0]
FAULTS: list[tuple[str, Any, str]] = [
    ("schema", "v2", "expected schema https://sealgate.dev/sealed-file/v1"),
    ("extra", 1, "header has other fields than"),
    ("plaintext.extra", 1, "plaintext has other fields than"),
    ("plaintext", [], "plaintext has other fields than"),
    ("plaintext.sha256", "A" * 64, "plaintext.sha256 is not a sha256 digest"),
    ("plaintext.sha256", 5, "plaintext.sha256 is not a sha256 digest"),
    ("plaintext.bytes", -1, "plaintext.bytes is not from 0"),
    ("plaintext.bytes", True, "plaintext.bytes is not from 0"),
    ("plaintext.bytes", 2561.0, "plaintext.bytes is not from 0"),
    ("plaintext.bytes", 1 << 60, "plaintext.bytes is not from 0"),
    ("plaintext.bytes", 1 << 47, "more chunks than can be counted"),
    ("chunk_bytes", 0, "chunk_bytes is not from 1024 to 16777216"),
    ("chunk_bytes", 1 << 30, "chunk_bytes is not from 1024 to 16777216"),
    ("recipients", [], "1 to 64 recipients"),
    ("recipients", {}, "1 to 64 recipients"),
    ("recipients", [RECIPIENT, RECIPIENT], "a recipient occurs twice"),
    ("recipients", [{**RECIPIENT, "hint": "x"}], "hint is not a sha256 digest"),
    ("recipients", [{**RECIPIENT, "enc": "AAAA"}], "enc is not 32 bytes"),
    ("recipients", [{**RECIPIENT, "enc": 5}], "enc is not 32 bytes"),
    ("recipients", [{**RECIPIENT, "enc": "é"}], "enc is not 32 bytes"),
    ("recipients", [{**RECIPIENT, "wrapped_key": ""}], "wrapped_key is not 48 bytes"),
    ("recipients", [{**RECIPIENT, "pin": ""}], "recipient has other fields than"),
]


@pytest.mark.parametrize(("path", "value", "message"), FAULTS, ids=range(len(FAULTS)))
def test_a_header_with_one_fault(path: str, value: object, message: str) -> None:
    header = strict_json.dumps(changed(DOCUMENT, path, value))
    with pytest.raises(SealedFileError, match=message):
        parse_header(with_header(header))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "does not begin like one"),
        (b"\x08\x0a" * 50, "does not begin like one"),
        (MAGIC, "header of 1 to 65536 bytes"),
        (MAGIC + b"\x00\x00\x00\x00", "header of 1 to 65536 bytes"),
        (MAGIC + b"\xff\xff\xff\xff", "header of 1 to 65536 bytes"),
        (MAGIC + b"\x00\x00\x00\x09{}", "cut inside the header"),
        (with_header(b"{"), "header: not JSON"),
        (with_header(HEADER.to_json() + b" "), "header is not canonical"),
    ],
    ids=range(8),
)
def test_no_sealed_file(data: bytes, message: str) -> None:
    with pytest.raises(SealedFileError, match=message):
        parse_header(data)


def test_the_longest_header_fits() -> None:
    keys = [PrivateKey.generate() for _ in range(64)]
    header, start = parse_header(seal(b"", *keys))
    assert len(header.recipients) == 64
    assert start < 64 << 10


@pytest.mark.parametrize("field", ["plaintext.sha256", "plaintext.bytes"])
def test_a_header_that_lies_does_not_open(field: str) -> None:
    # Same number of bytes in all: only the bindings can tell.
    lie = "0" * 64 if field.endswith("256") else HEADER.plaintext_bytes
    document = changed(DOCUMENT, field, lie)
    if field.endswith("bytes"):
        document = changed(document, "chunk_bytes", CHUNK + 1)
    with pytest.raises(DecryptionError, match="message does not authenticate"):
        open_(with_header(strict_json.dumps(document)))


def test_a_recipient_cannot_be_added_or_replaced() -> None:
    # The content key is another's: what it opens is not this file.
    foreign = json.loads(parse_header(seal(PLAIN, OTHER))[0].to_json())
    both = changed(DOCUMENT, "recipients", [RECIPIENT, foreign["recipients"][0]])
    for key in (KEY, OTHER):
        with pytest.raises(DecryptionError, match="chunk 1 of 3"):
            open_(with_header(strict_json.dumps(both)), key)


def test_chunks_that_are_not_encrypted() -> None:
    pieces = [PLAIN[i : i + CHUNK] + bytes(TAG) for i in range(0, len(PLAIN), CHUNK)]
    plain = with_header(HEADER.to_json(), b"".join(pieces))
    assert is_plaintext(plain)
    assert not is_plaintext(SEALED)
    with pytest.raises(DecryptionError, match="chunk 1 of 3 does not authenticate"):
        open_(plain)


def test_the_hint_is_that_of_the_public_key_in_pem() -> None:
    der = bytes.fromhex("302a300506032b656e032100") + KEY.public_bytes
    body = base64.b64encode(der).decode()
    pem = f"-----BEGIN PUBLIC KEY-----\n{body}\n-----END PUBLIC KEY-----\n"
    assert key_hint(KEY.public_bytes) == hashlib.sha256(pem.encode()).hexdigest()
    assert HEADER.recipients[0].hint == key_hint(KEY.public_bytes)
