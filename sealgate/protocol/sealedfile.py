r"""A file encrypted to the keys of deployments, to be opened in memory.

::

    magic         8 bytes, b"SGSEAL\x00" and the version, 1 or 2
    length        4 bytes, big endian, of the header
    header        JSON: schema, plaintext digest and size, chunk size, recipients, and
                  from version 2 on the HPKE suite
    chunks        AES-256-GCM, each its plaintext and a tag of 16 bytes

A fresh content key is wrapped for each recipient by HPKE (RFC 9180, base mode,
HKDF-SHA256, ChaCha20Poly1305), bound to the header without its recipients. The key and
nonces of the chunks are derived from the content key and the whole header, so that no
byte of the header can change.

A file has one KEM, since it is as strong as its weakest recipient: version 1 is X25519,
version 2 names X-Wing, HPKE's MLKEM768-X25519. To X25519 keys version 1 is written,
which deployments of every release open.

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
from dataclasses import dataclass, replace
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from sealgate.errors import DecryptionError, JsonError, SealedFileError
from sealgate.protocol import hpke, kem, strict_json
from sealgate.protocol.hpke import KEM_X25519, KEM_XWING
from sealgate.protocol.versions import unread

__all__ = [
    "FORMATS",
    "Format",
    "Header",
    "Recipient",
    "is_plaintext",
    "key_hint",
    "open_chunks",
    "overhead_bytes",
    "parse_header",
    "seal_chunks",
]

MAX_RECIPIENTS = 64
MIN_CHUNK_BYTES = 1 << 10
MAX_CHUNK_BYTES = 16 << 20
DEFAULT_CHUNK_BYTES = 1 << 20

_TAG_BYTES = 16
_KEY_BYTES = 32
_PREFIX_BYTES = 7
_COUNTER_LIMIT = 1 << 32
_MAGIC = b"SGSEAL\x00"
_LENGTH_START = len(_MAGIC) + 1
_LENGTH_END = _LENGTH_START + 4
_HEX = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Format:
    """A version of the file.

    Attributes:
        version: the last byte of the magic.
        suite: what content keys are wrapped with.
        suite_names: how the header names that, by HPKE's registry; None if it does not.
        max_header_bytes: room for the most recipients.
    """

    version: int
    suite: hpke.Suite
    suite_names: Mapping[str, str] | None
    max_header_bytes: int

    @property
    def magic(self) -> bytes:
        """How a file begins, 8 bytes."""
        return _MAGIC + bytes([self.version])

    @property
    def schema(self) -> str:
        """What the header names itself."""
        return f"https://sealgate.dev/sealed-file/v{self.version}"


def _suite(kem_id: int) -> hpke.Suite:
    return hpke.Suite(kem_id, hpke.KDF_HKDF_SHA256, hpke.AEAD_CHACHA20_POLY1305)


# By KEM; a version more for each that is added.
FORMATS: Mapping[int, Format] = {
    KEM_X25519: Format(1, _suite(KEM_X25519), None, 64 << 10),
    KEM_XWING: Format(
        2,
        _suite(KEM_XWING),
        {"kem": "MLKEM768-X25519", "kdf": "HKDF-SHA256", "aead": "ChaCha20Poly1305"},
        112 << 10,
    ),
}
_BY_VERSION = {format_.version: format_ for format_ in FORMATS.values()}

Buffer = bytes | memoryview


@dataclass(frozen=True)
class Recipient:
    """The content key, wrapped for one deployment.

    Attributes:
        hint: `key_hint` of the public key it is wrapped for.
        enc: encapsulated key, 32 bytes of X25519 or 1120 of X-Wing.
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
        format_: the version, and with it the suite.
    """

    plaintext_sha256: str
    plaintext_bytes: int
    chunk_bytes: int
    recipients: tuple[Recipient, ...] = ()
    format_: Format = FORMATS[KEM_X25519]

    @property
    def recipient_hints(self) -> tuple[str, ...]:
        """`key_hint` of who can open it, in the order of the file."""
        return tuple(recipient.hint for recipient in self.recipients)

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
        label = f"sealgate sealed file v{self.format_.version}\0".encode()
        return label + strict_json.dumps(self._core())

    def _core(self) -> dict[str, Any]:
        plaintext = {"sha256": self.plaintext_sha256, "bytes": self.plaintext_bytes}
        core = {
            "schema": self.format_.schema,
            "plaintext": plaintext,
            "chunk_bytes": self.chunk_bytes,
        }
        names = self.format_.suite_names
        return core if names is None else core | {"suite": dict(names)}

    @classmethod
    def from_json(cls, data: bytes, format_: Format = FORMATS[KEM_X25519]) -> Header:
        """Parse and validate.

        Args:
            data: possibly hostile.
            format_: of the version that the magic said.

        Raises:
            SealedFileError: not JSON, of another version or suite, another field than
                these, or out of range. Only the canonical form is taken: one header has
                one digest.
        """
        try:
            value = strict_json.loads_object(data, max_bytes=format_.max_header_bytes)
        except JsonError as error:
            raise SealedFileError(f"sealed file: header: {error}") from None
        _check_format(value, format_)
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
            recipients=tuple(
                _recipient(item, format_.suite.nenc) for item in recipients
            ),
            format_=format_,
        )
        if len(set(header.recipient_hints)) != len(recipients):
            raise SealedFileError("sealed file: a recipient occurs twice")
        if header.chunks > _COUNTER_LIMIT:
            raise SealedFileError("sealed file: more chunks than can be counted")
        if header.to_json() != data:
            raise SealedFileError("sealed file: header is not canonical")
        return header


def key_hint(public_key: bytes) -> str:
    """Hex SHA-256 of `kem.public_pem`: of the file that the key is handed on in.

    Raises:
        KeyConfigError, DecryptionError: as `kem.public_pem`.
    """
    return hashlib.sha256(kem.public_pem(public_key)).hexdigest()


def overhead_bytes(plaintext_bytes: int) -> int:
    """By how much a sealed file may at most be longer than what is in it."""
    chunks = max(1, -(-plaintext_bytes // MIN_CHUNK_BYTES))
    header = max(format_.max_header_bytes for format_ in FORMATS.values())
    return _LENGTH_END + header + chunks * _TAG_BYTES


def seal_chunks(
    plaintext: Buffer,
    public_keys: Sequence[bytes],
    *,
    chunk_bytes: int = DEFAULT_CHUNK_BYTES,
) -> Iterator[bytes]:
    """Encrypt to some public keys; yields the file in pieces, the header first.

    Args:
        plaintext: the whole file.
        public_keys: raw public keys, all of X25519 (32 bytes) or all of X-Wing (1216),
            no two the same.
        chunk_bytes: see `Header`.

    Raises:
        SealedFileError: no key, too many, the same twice, keys of two kinds, or a chunk
            size out of range.
        KeyConfigError, DecryptionError: a public key that is none.

    >>> key = hpke.PrivateKey.generate()
    >>> data = b"".join(seal_chunks(b"weights", [key.public_bytes]))
    >>> b"".join(open_chunks(data, key))
    b'weights'
    """
    content_key = secrets.token_bytes(_KEY_BYTES)
    format_ = _format_of(public_keys)
    digest = hashlib.sha256(plaintext).hexdigest()
    core = Header(digest, len(plaintext), chunk_bytes, format_=format_)
    recipients = tuple(_wrap(core, content_key, key) for key in public_keys)
    header = replace(core, recipients=recipients)
    data = header.to_json()
    Header.from_json(data, format_)  # so that nothing is written that cannot be read
    yield format_.magic + len(data).to_bytes(4, "big") + data
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
    format_, raw = _split(data)
    start = _LENGTH_END + len(raw)
    header = Header.from_json(raw, format_)
    surplus = len(data) - start - header.content_bytes
    if surplus:
        what = f"{surplus} bytes too many" if surplus > 0 else f"{-surplus} bytes short"
        raise SealedFileError(f"sealed file: {what}")
    return header, start


def open_chunks(data: Buffer, key: hpke.KemPrivateKey) -> Iterator[bytes]:
    """Decrypt; yields the plaintext in pieces.

    1. the header is well-formed, and the content as long as it says;
    2. this key is of the file's KEM, and a recipient;
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


def _split(data: Buffer) -> tuple[Format, bytes]:
    """The version, whose bound the header has, and the header's bytes."""
    magic = bytes(data[:_LENGTH_START])
    if len(magic) != _LENGTH_START or not magic.startswith(_MAGIC):
        raise SealedFileError("sealed file: does not begin like one")
    format_ = _BY_VERSION.get(magic[-1])
    if format_ is None:
        known = (f"v{number}" for number in sorted(_BY_VERSION))
        raise SealedFileError(f"sealed file: {unread(f'v{magic[-1]}', *known)}")
    length = int.from_bytes(data[_LENGTH_START:_LENGTH_END], "big")
    most = format_.max_header_bytes
    if len(data) < _LENGTH_END or not 0 < length <= most:
        raise SealedFileError(f"sealed file: header of 1 to {most} bytes")
    raw = bytes(data[_LENGTH_END : _LENGTH_END + length])
    if len(raw) != length:
        raise SealedFileError("sealed file: cut inside the header")
    return format_, raw


def _check_format(value: Mapping[str, Any], format_: Format) -> None:
    """The schema and suite must be those of the version in front of the header."""
    if value.get("schema") != format_.schema:
        raise SealedFileError(f"sealed file: expected schema {format_.schema}")
    names = {"schema", "plaintext", "chunk_bytes", "recipients"}
    if format_.suite_names is None:
        _fields(value, names, "header")
        return
    _fields(value, names | {"suite"}, "header")
    if value["suite"] != format_.suite_names:
        wanted = ", ".join(format_.suite_names.values())
        raise SealedFileError(f"sealed file: expected the suite {wanted}")


def _format_of(public_keys: Sequence[bytes]) -> Format:
    kems = {kem.kem_of(key) for key in public_keys} or {KEM_X25519}
    if len(kems) > 1:
        raise SealedFileError(
            "sealed file: X25519 and X-Wing keys together; a file is as strong as its "
            "weakest recipient, so seal to each kind apart"
        )
    return FORMATS[kems.pop()]


def _wrap(core: Header, content_key: bytes, public_key: bytes) -> Recipient:
    suite = core.format_.suite
    enc, context = hpke.setup_sender(suite, public_key, core.info())
    return Recipient(key_hint(public_key), enc, context.seal(content_key))


def _unwrap(header: Header, key: hpke.KemPrivateKey) -> bytes:
    suite = header.format_.suite
    if key.kem_id != suite.kem_id:
        kind = kem.KEM_NAMES[suite.kem_id]
        raise SealedFileError(f"sealed file: sealed to {kind} keys, unlike this one")
    hint = key_hint(key.public_bytes)
    for recipient in header.recipients:
        if recipient.hint == hint:
            context = hpke.setup_receiver(suite, key, recipient.enc, header.info())
            return context.open(recipient.wrapped_key)
    raise SealedFileError("sealed file: sealed to other keys than this one")


def _schedule(content_key: bytes, header: bytes) -> tuple[AESGCM, bytes]:
    """The cipher of the chunks, and the prefix of their nonces."""
    prk = hpke.hkdf_extract(hashlib.sha256(header).digest(), content_key)
    key = hpke.hkdf_expand(prk, b"sealgate chunk key", _KEY_BYTES)
    return AESGCM(key), hpke.hkdf_expand(prk, b"sealgate chunk nonce", _PREFIX_BYTES)


def _nonce(prefix: bytes, counter: int, *, last: bool) -> bytes:
    return prefix + counter.to_bytes(4, "big") + bytes([last])


def _recipient(value: Any, enc_bytes: int) -> Recipient:
    _fields(value, {"hint", "enc", "wrapped_key"}, "recipient")
    return Recipient(
        hint=_hex(value["hint"], "hint"),
        enc=_base64(value["enc"], "enc", enc_bytes),
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
