r"""A file encrypted to the keys of deployments, to be opened in memory.

::

    magic         8 bytes, b"SGSEAL\x00\x01"
    length        4 bytes, big endian, of the header
    header        JSON: schema, plaintext digest and size, chunk size, recipients
    chunks        AES-256-GCM, each its plaintext and a tag of 16 bytes

A fresh content key is wrapped for each recipient by HPKE (RFC 9180, base mode, X25519,
HKDF-SHA256, ChaCha20Poly1305), bound to the header without its recipients. The key and
nonces of the chunks are derived from the content key and the whole header, so that no
byte of the header can change.

The chunks are the STREAM construction (Hoang, Reyhanitabar, Rogaway, Vizár: Online
Authenticated-Encryption and its Nonce-Reuse Misuse-Resistance, 2015): a nonce is a
prefix of 7 bytes, a counter of 4, and 1 in the last byte of the last chunk alone. Cut,
longer, reordered or doubled files do not authenticate.

GCM commits to no key: two recipients could be given content keys that open the same
bytes to different files. The digest in the header closes that; who assembles the chunks
must check it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from sealgate.errors import DecryptionError, JsonError, SealedFileError
from sealgate.protocol import hpke, strict_json

__all__ = [
    "MAX_HEADER_BYTES",
    "SEALED_SCHEMA",
    "Header",
    "Recipient",
    "is_plaintext",
    "key_hint",
    "open_chunks",
    "overhead_bytes",
    "parse_header",
    "seal_chunks",
]

MAGIC = b"SGSEAL\x00\x01"
SEALED_SCHEMA = "https://sealgate.dev/sealed-file/v1"
MAX_HEADER_BYTES = 64 << 10
MAX_RECIPIENTS = 64
MIN_CHUNK_BYTES = 1 << 10
MAX_CHUNK_BYTES = 16 << 20
DEFAULT_CHUNK_BYTES = 1 << 20

_SUITE = hpke.Suite(hpke.KEM_X25519, hpke.KDF_HKDF_SHA256, hpke.AEAD_CHACHA20_POLY1305)
_TAG_BYTES = 16
_KEY_BYTES = 32
_PREFIX_BYTES = 7
_COUNTER_LIMIT = 1 << 32
_LENGTH_END = len(MAGIC) + 4
_HEX = re.compile(r"[0-9a-f]{64}")

Buffer = bytes | memoryview


@dataclass(frozen=True)
class Recipient:
    """The content key, wrapped for one deployment.

    Attributes:
        hint: `key_hint` of the public key it is wrapped for.
        enc: encapsulated key, 32 bytes.
        wrapped_key: the content key and a tag, 48 bytes.
    """

    hint: str
    enc: bytes
    wrapped_key: bytes

    def to_object(self) -> dict[str, str]:
        """The JSON form."""
        return {
            "hint": self.hint,
            "enc": base64.b64encode(self.enc).decode(),
            "wrapped_key": base64.b64encode(self.wrapped_key).decode(),
        }


@dataclass(frozen=True)
class Header:
    """What a sealed file says about itself. Nothing of it holds until it is opened.

    Attributes:
        plaintext_sha256: hex digest of what it opens to.
        plaintext_bytes: size of that.
        chunk_bytes: plaintext in every chunk but the last.
        recipients: who can open it.
    """

    plaintext_sha256: str
    plaintext_bytes: int
    chunk_bytes: int
    recipients: tuple[Recipient, ...] = ()

    @property
    def chunks(self) -> int:
        """How many chunks follow; an empty file has one."""
        return max(1, -(-self.plaintext_bytes // self.chunk_bytes))

    @property
    def content_bytes(self) -> int:
        """How many bytes follow the header."""
        return self.plaintext_bytes + self.chunks * _TAG_BYTES

    def to_json(self) -> bytes:
        """The canonical bytes; `from_json` gives it back."""
        recipients = [recipient.to_object() for recipient in self.recipients]
        return strict_json.dumps(self._core() | {"recipients": recipients})

    def info(self) -> bytes:
        """What wrapped keys are bound to: all of the header but the recipients."""
        return b"sealgate sealed file v1\x00" + strict_json.dumps(self._core())

    def _core(self) -> dict[str, Any]:
        plaintext = {"sha256": self.plaintext_sha256, "bytes": self.plaintext_bytes}
        return {
            "schema": SEALED_SCHEMA,
            "plaintext": plaintext,
            "chunk_bytes": self.chunk_bytes,
        }

    @classmethod
    def from_json(cls, data: bytes) -> Header:
        """Parse and validate.

        Raises:
            SealedFileError: not JSON, another field than these, or out of range. Only
                the canonical form is taken: one header has one digest.
        """
        try:
            value = strict_json.loads_object(data, max_bytes=MAX_HEADER_BYTES)
        except JsonError as error:
            raise SealedFileError(f"sealed file: header: {error}") from None
        _fields(value, {"schema", "plaintext", "chunk_bytes", "recipients"}, "header")
        if value["schema"] != SEALED_SCHEMA:
            raise SealedFileError(f"sealed file: expected schema {SEALED_SCHEMA}")
        plaintext, recipients = value["plaintext"], value["recipients"]
        _fields(plaintext, {"sha256", "bytes"}, "plaintext")
        if not isinstance(recipients, list) or not (
            1 <= len(recipients) <= MAX_RECIPIENTS
        ):
            raise SealedFileError(f"sealed file: 1 to {MAX_RECIPIENTS} recipients")
        header = cls(
            plaintext_sha256=_hex(plaintext["sha256"], "plaintext.sha256"),
            plaintext_bytes=_count(plaintext["bytes"], "plaintext.bytes", 0, 1 << 48),
            chunk_bytes=_count(
                value["chunk_bytes"], "chunk_bytes", MIN_CHUNK_BYTES, MAX_CHUNK_BYTES
            ),
            recipients=tuple(_recipient(item) for item in recipients),
        )
        if len({item.hint for item in header.recipients}) != len(header.recipients):
            raise SealedFileError("sealed file: a recipient occurs twice")
        if header.chunks > _COUNTER_LIMIT:
            raise SealedFileError("sealed file: more chunks than can be counted")
        if header.to_json() != data:
            raise SealedFileError("sealed file: header is not canonical")
        return header


def key_hint(public_key: bytes) -> str:
    """Hex SHA-256 of a raw X25519 public key's SubjectPublicKeyInfo in PEM."""
    pem = X25519PublicKey.from_public_bytes(public_key).public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return hashlib.sha256(pem).hexdigest()


def overhead_bytes(plaintext_bytes: int) -> int:
    """By how much a sealed file may at most be longer than what is in it."""
    chunks = max(1, -(-plaintext_bytes // MIN_CHUNK_BYTES))
    return _LENGTH_END + MAX_HEADER_BYTES + chunks * _TAG_BYTES


def seal_chunks(
    plaintext: Buffer,
    public_keys: Sequence[bytes],
    *,
    chunk_bytes: int = DEFAULT_CHUNK_BYTES,
) -> Iterator[bytes]:
    """Encrypt to some X25519 keys; yields the file in pieces, the header first.

    Args:
        plaintext: the whole file.
        public_keys: raw public keys, 32 bytes each, no two the same.
        chunk_bytes: see `Header`.

    Raises:
        SealedFileError: no key, too many, the same twice, or a chunk size out of range.
        DecryptionError: a public key that gives no secret.

    >>> key = hpke.PrivateKey.generate()
    >>> data = b"".join(seal_chunks(b"weights", [key.public_bytes]))
    >>> b"".join(open_chunks(data, key))
    b'weights'
    """
    content_key = secrets.token_bytes(_KEY_BYTES)
    core = Header(hashlib.sha256(plaintext).hexdigest(), len(plaintext), chunk_bytes)
    recipients = tuple(_wrap(core, content_key, key) for key in public_keys)
    header = Header(
        core.plaintext_sha256, core.plaintext_bytes, chunk_bytes, recipients
    )
    data = header.to_json()
    Header.from_json(data)  # so that nothing is written that cannot be read
    yield MAGIC + len(data).to_bytes(4, "big") + data
    cipher, prefix = _schedule(content_key, data)
    view = memoryview(plaintext)
    for i in range(header.chunks):
        piece = view[i * chunk_bytes : (i + 1) * chunk_bytes]
        yield cipher.encrypt(
            _nonce(prefix, i, last=i == header.chunks - 1), piece, None
        )


def parse_header(data: Buffer) -> tuple[Header, int]:
    """Read the header, and check that the content has the length it says.

    Args:
        data: the whole file, possibly hostile.

    Returns:
        The header, and where the chunks begin.

    Raises:
        SealedFileError: not a sealed file, or one that was cut or added to.
    """
    raw, start = _split(data)
    header = Header.from_json(raw)
    surplus = len(data) - start - header.content_bytes
    if surplus:
        what = f"{surplus} bytes too many" if surplus > 0 else f"{-surplus} bytes short"
        raise SealedFileError(f"sealed file: {what}")
    return header, start


def open_chunks(data: Buffer, key: hpke.KemPrivateKey) -> Iterator[bytes]:
    """Decrypt; yields the plaintext in pieces.

    1. the header is well-formed, and the content as long as it says;
    2. a recipient is this key;
    3. the content key unwraps;
    4. each chunk authenticates in its place, the last as the last.

    A caller that stops early, or meets an error, must forget what came before, and the
    digest in the header is the caller's to check.

    Raises:
        SealedFileError: (1) or (2).
        DecryptionError: (3) or (4).
    """
    header, start = parse_header(data)
    content_key = _unwrap(header, key)
    view = memoryview(data)
    cipher, prefix = _schedule(content_key, bytes(view[_LENGTH_END:start]))
    size = header.chunk_bytes + _TAG_BYTES
    for i in range(header.chunks):
        piece = view[start + i * size : start + (i + 1) * size]
        nonce = _nonce(prefix, i, last=i == header.chunks - 1)
        try:
            yield cipher.decrypt(nonce, piece, None)
        except InvalidTag:
            raise DecryptionError(
                f"chunk {i + 1} of {header.chunks} does not authenticate"
            ) from None


def is_plaintext(data: Buffer) -> bool:
    """Whether the chunks of a well-formed file are not encrypted at all.

    Needs no key: what is between the tags is hashed, and should not be the plaintext.

    Raises:
        SealedFileError: not a sealed file.
    """
    header, start = parse_header(data)
    view = memoryview(data)[start:]
    size = header.chunk_bytes + _TAG_BYTES
    digest = hashlib.sha256()
    for i in range(header.chunks):
        digest.update(view[i * size : (i + 1) * size][:-_TAG_BYTES])
    return digest.hexdigest() == header.plaintext_sha256


def _split(data: Buffer) -> tuple[bytes, int]:
    """The header's bytes, and where they end."""
    if bytes(data[: len(MAGIC)]) != MAGIC:
        raise SealedFileError("sealed file: does not begin like one")
    length = int.from_bytes(data[len(MAGIC) : _LENGTH_END], "big")
    if len(data) < _LENGTH_END or not 0 < length <= MAX_HEADER_BYTES:
        raise SealedFileError(f"sealed file: header of 1 to {MAX_HEADER_BYTES} bytes")
    raw = bytes(data[_LENGTH_END : _LENGTH_END + length])
    if len(raw) != length:
        raise SealedFileError("sealed file: cut inside the header")
    return raw, _LENGTH_END + length


def _wrap(core: Header, content_key: bytes, public_key: bytes) -> Recipient:
    enc, context = hpke.setup_sender(_SUITE, public_key, core.info())
    return Recipient(key_hint(public_key), enc, context.seal(content_key))


def _unwrap(header: Header, key: hpke.KemPrivateKey) -> bytes:
    hint = key_hint(key.public_bytes)
    for recipient in header.recipients:
        if recipient.hint == hint:
            context = hpke.setup_receiver(_SUITE, key, recipient.enc, header.info())
            return context.open(recipient.wrapped_key)
    raise SealedFileError("sealed file: sealed to other keys than this one")


def _schedule(content_key: bytes, header: bytes) -> tuple[AESGCM, bytes]:
    """The cipher of the chunks, and the prefix of their nonces."""
    prk = hpke.hkdf_extract(hashlib.sha256(header).digest(), content_key)
    key = hpke.hkdf_expand(prk, b"sealgate chunk key", _KEY_BYTES)
    return AESGCM(key), hpke.hkdf_expand(prk, b"sealgate chunk nonce", _PREFIX_BYTES)


def _nonce(prefix: bytes, counter: int, *, last: bool) -> bytes:
    return prefix + counter.to_bytes(4, "big") + bytes([last])


def _recipient(value: Any) -> Recipient:
    _fields(value, {"hint", "enc", "wrapped_key"}, "recipient")
    return Recipient(
        hint=_hex(value["hint"], "hint"),
        enc=_base64(value["enc"], "enc", _SUITE.nenc),
        wrapped_key=_base64(
            value["wrapped_key"], "wrapped_key", _KEY_BYTES + _TAG_BYTES
        ),
    )


def _fields(value: Any, names: set[str], where: str) -> None:
    if not isinstance(value, Mapping) or value.keys() != names:
        raise SealedFileError(
            f"sealed file: {where} has other fields than {', '.join(sorted(names))}"
        )


def _hex(value: Any, where: str) -> str:
    if not isinstance(value, str) or not _HEX.fullmatch(value):
        raise SealedFileError(f"sealed file: {where} is not a sha256 digest")
    return value


def _count(value: Any, where: str, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise SealedFileError(f"sealed file: {where} is not from {low} to {high}")
    return value


def _base64(value: Any, where: str, length: int) -> bytes:
    try:
        data = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError, TypeError):
        data = b""
    if len(data) != length:
        raise SealedFileError(f"sealed file: {where} is not {length} bytes in base64")
    return data
