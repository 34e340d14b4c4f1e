"""Sealed files of version 2: X-Wing, and what tries to pass for it or for version 1."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hpke as other
from hypothesis import given, settings

from sealgate.errors import (
    DecryptionError,
    KeyConfigError,
    ProtocolError,
    SealedFileError,
)
from sealgate.protocol import hpke, kem, sealedfile, strict_json
from sealgate.protocol.hpke import KEM_X25519, KEM_XWING, HybridPrivateKey, PrivateKey
from sealgate.protocol.sealedfile import (
    FORMATS,
    Header,
    is_plaintext,
    key_hint,
    open_chunks,
    overhead_bytes,
    parse_header,
    seal_chunks,
)
from tests.support.mutations import changed, mutated

V1, V2 = FORMATS[KEM_X25519], FORMATS[KEM_XWING]
KEY = HybridPrivateKey.from_seed(b"\x07" * 32)
OTHER = HybridPrivateKey.from_seed(b"\x08" * 32)
CLASSICAL = PrivateKey.from_bytes(b"\x07" * 32)
CHUNK = 1024
PLAIN = bytes(range(256)) * 10
FIXTURE = Path(__file__).parents[2] / "vectors" / "sealed-v2.bin"

Key = HybridPrivateKey | PrivateKey


def seal(plain: bytes = PLAIN, *keys: Key) -> bytes:
    public = [key.public_bytes for key in keys or (KEY,)]
    return b"".join(seal_chunks(plain, public, chunk_bytes=CHUNK))


def open_(data: bytes, key: Key = KEY) -> bytes:
    return b"".join(open_chunks(data, key))


SEALED = seal()
HEADER, START = parse_header(SEALED)
DOCUMENT: dict[str, Any] = json.loads(HEADER.to_json())
RECIPIENT = DOCUMENT["recipients"][0]


def framed(
    document: Any, content: bytes = SEALED[START:], magic: bytes = V2.magic
) -> bytes:
    header = strict_json.dumps(document)
    return magic + len(header).to_bytes(4, "big") + header + content


def test_the_header_names_schema_and_suite() -> None:
    assert SEALED[:8] == b"SGSEAL\x00\x02"
    assert DOCUMENT["schema"] == "https://sealgate.dev/sealed-file/v2"
    assert DOCUMENT["suite"] == {
        "kem": "MLKEM768-X25519",
        "kdf": "HKDF-SHA256",
        "aead": "ChaCha20Poly1305",
    }
    assert len(base64.b64decode(RECIPIENT["enc"])) == 1120


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK])
def test_round_trip(size: int) -> None:
    data = seal(PLAIN[:1] * size, KEY, OTHER)
    assert open_(data) == open_(data, OTHER) == PLAIN[:1] * size
    assert len(data) == parse_header(data)[1] + parse_header(data)[0].content_bytes
    with pytest.raises(SealedFileError, match="sealed to other keys than this one"):
        open_(data, HybridPrivateKey.generate())


def test_to_x25519_keys_the_file_is_what_it_was() -> None:
    data = seal(PLAIN, CLASSICAL)
    header, _ = parse_header(data)
    assert data[:8] == b"SGSEAL\x00\x01"
    assert json.loads(header.to_json())["schema"] == V1.schema
    assert set(json.loads(header.to_json())) == {
        *("schema", "plaintext", "chunk_bytes", "recipients")
    }


def test_another_implementation_unwraps_the_content_key() -> None:
    theirs = other.Suite(
        other.KEM.MLKEM768_X25519, other.KDF.HKDF_SHA256, other.AEAD.CHACHA20_POLY1305
    )
    private = other.MLKEM768X25519PrivateKey(KEY.mlkem, KEY.x25519.key)
    item, info = HEADER.recipients[0], HEADER.info()
    wrapped = item.enc + item.wrapped_key
    content_key = theirs.decrypt(wrapped, private, info=info)
    assert content_key == sealedfile._unwrap(HEADER, KEY)
    core = {name: DOCUMENT[name] for name in DOCUMENT if name != "recipients"}
    assert info == b"sealgate sealed file v2\x00" + strict_json.dumps(core)


def test_a_file_that_was_written_once_opens_for_good() -> None:
    data = FIXTURE.read_bytes()
    assert open_(data) == PLAIN
    assert key_hint(KEY.public_bytes) in parse_header(data)[0].recipient_hints


def test_the_published_keys_open_what_was_encapsulated_to_them(
    shared_data: Path,
) -> None:
    """The vectors' ciphertext as a recipient's `enc`: only its secret can open it."""
    path = shared_data / "vectors-xwing" / "xwing_vectors.json"
    for vector in json.loads(path.read_text()):
        seed, public, enc, secret = (
            bytes.fromhex(vector[name]) for name in ("sk", "pk", "ct", "ss")
        )
        context = hpke._key_schedule(V2.suite, secret, HEADER.info())
        content_key = sealedfile._unwrap(HEADER, KEY)
        item = {
            "hint": key_hint(public),
            "enc": base64.b64encode(enc).decode(),
            "wrapped_key": base64.b64encode(context.seal(content_key)).decode(),
        }
        document = changed(DOCUMENT, "recipients", [item])
        cipher, prefix = sealedfile._schedule(content_key, strict_json.dumps(document))
        pieces = [PLAIN[i : i + CHUNK] for i in range(0, len(PLAIN), CHUNK)]
        content = b"".join(
            cipher.encrypt(sealedfile._nonce(prefix, i, last=i == 2), piece, None)
            for i, piece in enumerate(pieces)
        )
        data = framed(document, content)
        assert open_(data, HybridPrivateKey.from_seed(seed)) == PLAIN


# Sizes.


def test_sixty_four_recipients_fit_and_no_more() -> None:
    keys = [HybridPrivateKey.generate() for _ in range(65)]
    data = seal(b"", *keys[:64])
    header, start = parse_header(data)
    assert len(header.recipients) == 64
    assert 106_000 < start < V2.max_header_bytes == 112 << 10
    assert open_(data, keys[63]) == b""
    assert len(data) <= overhead_bytes(0)
    with pytest.raises(SealedFileError, match="1 to 64 recipients"):
        seal(b"", *keys)


@pytest.mark.parametrize("format_", FORMATS.values(), ids=["v1", "v2"])
def test_each_version_keeps_its_own_bound(format_: sealedfile.Format) -> None:
    # Nothing follows: a header beyond its bound is refused before it is looked for.
    for length in (0, format_.max_header_bytes + 1, (1 << 32) - 1):
        data = format_.magic + length.to_bytes(4, "big")
        with pytest.raises(SealedFileError, match="header of 1 to"):
            parse_header(data)
    data = format_.magic + format_.max_header_bytes.to_bytes(4, "big")
    with pytest.raises(SealedFileError, match="cut inside the header"):
        parse_header(data)
    assert V1.max_header_bytes == 64 << 10


# Versions and suites that do not belong together.

V1_DOCUMENT: dict[str, Any] = json.loads(
    parse_header(seal(PLAIN, CLASSICAL))[0].to_json()
)
CONFUSED = {
    "v1's magic, v2's header": (V1.magic, DOCUMENT, "expected schema .*/v1"),
    "v2's magic, v1's header": (V2.magic, V1_DOCUMENT, "expected schema .*/v2"),
    "v1's schema in v2": (
        V2.magic,
        {**DOCUMENT, "schema": V1.schema},
        "expected schema .*/v2",
    ),
    "v2's schema in v1": (
        V1.magic,
        {**V1_DOCUMENT, "schema": V2.schema},
        "expected schema .*/v1",
    ),
    "a suite in v1": (
        V1.magic,
        {**V1_DOCUMENT, "suite": DOCUMENT["suite"]},
        "header has other fields than",
    ),
    "no suite in v2": (
        V2.magic,
        {name: DOCUMENT[name] for name in DOCUMENT if name != "suite"},
        "header has other fields than",
    ),
    "no schema": (
        V2.magic,
        {name: DOCUMENT[name] for name in DOCUMENT if name != "schema"},
        "expected schema",
    ),
    "X25519 named in v2": (
        V2.magic,
        changed(DOCUMENT, "suite.kem", "DHKEM(X25519, HKDF-SHA256)"),
        "expected the suite MLKEM768-X25519, HKDF-SHA256, ChaCha20Poly1305",
    ),
    "another AEAD": (
        V2.magic,
        changed(DOCUMENT, "suite.aead", "Export-only"),
        "expected the suite",
    ),
    "one name too many": (
        V2.magic,
        changed(DOCUMENT, "suite.mode", "psk"),
        "expected the suite",
    ),
    "a suite that is a word": (
        V2.magic,
        {**DOCUMENT, "suite": "MLKEM768-X25519"},
        "expected the suite",
    ),
    "a later version": (
        b"SGSEAL\x00\x03",
        {**DOCUMENT, "schema": "https://sealgate.dev/sealed-file/v3"},
        "version 3 is not known here",
    ),
}


@pytest.mark.parametrize("name", CONFUSED)
def test_a_version_is_one_in_magic_schema_and_suite(name: str) -> None:
    magic, document, message = CONFUSED[name]
    with pytest.raises(SealedFileError, match=message):
        parse_header(framed(document, magic=magic))


def test_an_enc_of_x25519_under_the_hint_of_an_x_wing_key() -> None:
    item = V1_DOCUMENT["recipients"][0] | {"hint": RECIPIENT["hint"]}
    with pytest.raises(SealedFileError, match="enc is not 1120 bytes"):
        parse_header(framed(changed(DOCUMENT, "recipients", [item])))


def test_an_enc_of_x_wing_in_version_1() -> None:
    document = changed(V1_DOCUMENT, "recipients", [RECIPIENT])
    with pytest.raises(SealedFileError, match="enc is not 32 bytes"):
        parse_header(framed(document, magic=V1.magic))


def half_sealed(hint: str) -> bytes:
    """A file that only the X25519 half of the X-Wing key would have to open."""
    data = seal(PLAIN, KEY.x25519)
    document = json.loads(parse_header(data)[0].to_json())
    document["recipients"][0]["hint"] = hint
    return framed(document, data[parse_header(data)[1] :], V1.magic)


def test_half_of_an_x_wing_key_opens_nothing() -> None:
    """A downgrade: sealed to X25519 alone, under either name of the key."""
    own, half = key_hint(KEY.public_bytes), key_hint(KEY.x25519.public_bytes)
    assert own != half
    for hint in (own, half):
        with pytest.raises(SealedFileError, match="to X25519 keys, unlike this one"):
            open_(half_sealed(hint))
    # It is the file that was meant: whoever holds that half alone can open it.
    assert open_(seal(PLAIN, KEY.x25519), KEY.x25519) == PLAIN


@pytest.mark.parametrize("key", [CLASSICAL, KEY.x25519], ids=["another", "its half"])
def test_an_x25519_key_opens_no_file_of_version_2(key: PrivateKey) -> None:
    named = changed(RECIPIENT, "hint", key_hint(key.public_bytes))
    for recipients in ([RECIPIENT], [named]):
        data = framed(changed(DOCUMENT, "recipients", recipients))
        with pytest.raises(SealedFileError, match="to X-Wing keys, unlike this one"):
            open_(data, key)


def test_wrapped_for_another_key_under_this_ones_hint() -> None:
    foreign = json.loads(parse_header(seal(PLAIN, OTHER))[0].to_json())
    item = foreign["recipients"][0] | {"hint": RECIPIENT["hint"]}
    with pytest.raises(DecryptionError, match="message does not authenticate"):
        open_(framed(changed(DOCUMENT, "recipients", [item])))


@pytest.mark.parametrize("half", ["ML-KEM", "X25519"])
def test_one_half_of_the_key_is_not_enough(half: str) -> None:
    mixed = (
        HybridPrivateKey(KEY.mlkem, OTHER.x25519.key)
        if half == "ML-KEM"
        else HybridPrivateKey(OTHER.mlkem, KEY.x25519.key)
    )
    item = changed(RECIPIENT, "hint", key_hint(mixed.public_bytes))
    with pytest.raises(DecryptionError, match="message does not authenticate"):
        open_(framed(changed(DOCUMENT, "recipients", [item])), mixed)


# Bytes that changed.


def test_every_byte_counts() -> None:
    small = seal(b"weights")
    for i in range(len(small)):
        flipped = bytearray(small)
        flipped[i] ^= 1 << i % 8
        with pytest.raises(ProtocolError):
            open_(bytes(flipped))


def test_every_truncation_is_refused() -> None:
    small = seal(b"weights")
    for length in range(len(small)):
        with pytest.raises(SealedFileError):
            open_(small[:length])


@settings(deadline=None, max_examples=100)
@given(document=mutated(DOCUMENT))
def test_any_header_is_read_or_refused(document: object) -> None:
    text = json.dumps(
        document, sort_keys=True, separators=(",", ":"), ensure_ascii=False
    )
    try:
        header = Header.from_json(text.encode("utf-8", "surrogatepass"), V2)
    except SealedFileError:
        return
    if header != HEADER:
        with pytest.raises(ProtocolError):
            open_(framed(json.loads(header.to_json())))


def test_chunks_that_are_not_encrypted() -> None:
    pieces = [PLAIN[i : i + CHUNK] + bytes(16) for i in range(0, len(PLAIN), CHUNK)]
    assert is_plaintext(framed(DOCUMENT, b"".join(pieces)))
    assert not is_plaintext(SEALED)


# Keys to seal to.


def test_keys_of_two_kinds_are_never_in_one_file() -> None:
    for keys in ((KEY, CLASSICAL), (CLASSICAL, KEY)):
        with pytest.raises(SealedFileError, match="as strong as its weakest recipient"):
            seal(PLAIN, *keys)


@pytest.mark.parametrize("size", [0, 31, 33, 1184, 1215, 1217])
def test_a_public_key_of_another_size(size: int) -> None:
    with pytest.raises(KeyConfigError, match="a public key has 32 bytes"):
        list(seal_chunks(PLAIN, [bytes(size)]))
    with pytest.raises(KeyConfigError, match="a public key has 32 bytes"):
        kem.public_pem(bytes(size))


@pytest.mark.parametrize(
    "public",
    [b"\xff" * 1184 + KEY.public_bytes[1184:], KEY.public_bytes[:1184] + bytes(32)],
    ids=["no ML-KEM key", "X25519 gives zero"],
)
def test_a_public_key_that_is_none(public: bytes) -> None:
    with pytest.raises(DecryptionError):
        list(seal_chunks(PLAIN, [public]))


def test_the_hint_is_the_digest_of_the_public_file() -> None:
    pem = kem.public_pem(KEY.public_bytes)
    assert pem.count(b"-----BEGIN PUBLIC KEY-----") == 2
    assert pem.endswith(kem.public_pem(KEY.x25519.public_bytes))
    assert key_hint(KEY.public_bytes) == hashlib.sha256(pem).hexdigest()
