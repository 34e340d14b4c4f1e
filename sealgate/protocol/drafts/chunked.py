"""Chunked Oblivious HTTP (draft-ietf-ohai-chunked-ohttp-08).

A message travels as protected chunks, each with its length, and a last one that is
sealed with the associated data "final" and lasts until the end of the stream. Whoever
cuts the stream short is found out, since then that chunk is missing; what came before
is authentic, and must not be taken for the whole. Chunks are cut anywhere in the
Binary HTTP message; an empty one is allowed only at the end.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag

from sealgate.errors import DecryptionError, EncapsulationError
from sealgate.protocol import hpke
from sealgate.protocol.hpke import Buffer, Context, KemPrivateKey, PrivateKey, Suite
from sealgate.protocol.keyconfig import KeyConfig
from sealgate.protocol.ohttp import HEADER_BYTES, RequestHeader, choose_suite

__all__ = [
    "CHUNKED_REQUEST_MEDIA_TYPE",
    "CHUNKED_RESPONSE_MEDIA_TYPE",
    "CHUNK_BYTES",
    "ChunkLimits",
    "ChunkSealer",
    "RequestOpener",
    "ResponseOpener",
    "seal_chunked_request",
]

CHUNKED_REQUEST_MEDIA_TYPE = "message/ohttp-chunked-req"
CHUNKED_RESPONSE_MEDIA_TYPE = "message/ohttp-chunked-res"
# What every receiver takes; senders stay within it (section 3).
CHUNK_BYTES = 16 << 10

_REQUEST_LABEL = b"message/bhttp chunked request\x00"
_RESPONSE_LABEL = b"message/bhttp chunked response"
_FINAL = b"final"
_TAG_BYTES = 16

# Plaintext or ciphertext of a chunk, and its associated data.
_Protect = Callable[[Buffer, bytes], bytes]


@dataclass(frozen=True)
class ChunkLimits:
    """Bounds on one stream, in bytes of plaintext."""

    max_chunk_bytes: int = 1 << 20
    max_message_bytes: int = 64 << 20


class ChunkSealer:
    """Seals one message, chunk by chunk.

    Attributes:
        head: what goes in front of the first chunk.
    """

    def __init__(self, head: bytes, protect: _Protect) -> None:
        self.head = head
        self._protect = protect
        self._finished = False

    def seal(self, chunk: Buffer) -> bytes:
        """The bytes of one more chunk.

        Raises:
            EncapsulationError: it is empty, or the message is finished.
        """
        if not chunk or self._finished:
            raise EncapsulationError("an empty chunk, or one behind the final chunk")
        protected = self._protect(chunk, b"")
        return _encode_varint(len(protected)) + protected

    def finish(self, chunk: Buffer = b"") -> bytes:
        """The bytes of the final chunk.

        Raises:
            EncapsulationError: the message is finished.
        """
        if self._finished:
            raise EncapsulationError("the message is finished")
        self._finished = True
        return b"\x00" + self._protect(chunk, _FINAL)


class _Stream:
    """Cuts a stream into protected chunks and opens them."""

    def __init__(self, unprotect: _Protect, limits: ChunkLimits) -> None:
        self._unprotect = unprotect
        self._limits = limits
        self._left = limits.max_message_bytes
        self._buffer = bytearray()
        self._in_final = False

    def feed(self, data: Buffer) -> list[bytes]:
        self._buffer += data
        chunks: list[bytes] = []
        position = 0
        while not self._in_final:
            length, size = _decode_varint(self._buffer, position)
            if not size:
                break
            self._in_final = not length
            if length:
                end = position + size + self._checked(length)
                if end > len(self._buffer):
                    break
                chunks.append(self._open(self._buffer[position + size : end], b""))
                position = end
            else:
                position += size
        del self._buffer[:position]
        if len(self._buffer) > self._limits.max_chunk_bytes + _TAG_BYTES + 8:
            raise EncapsulationError("a chunk is too long")
        return chunks

    def finish(self) -> bytes:
        if not self._in_final or len(self._buffer) < _TAG_BYTES:
            raise EncapsulationError("the stream ends before its final chunk")
        return self._open(self._buffer, _FINAL)

    def _checked(self, length: int) -> int:
        if length <= _TAG_BYTES:
            raise EncapsulationError("an empty chunk that is not final")
        if length > self._limits.max_chunk_bytes + _TAG_BYTES:
            raise EncapsulationError("a chunk is too long")
        return length

    def _open(self, chunk: Buffer, aad: bytes) -> bytes:
        self._left -= len(chunk) - _TAG_BYTES
        if self._left < 0:
            raise EncapsulationError("the message is too long")
        return self._unprotect(chunk, aad)


class _Opener:
    """Waits for what is in front of the chunks, then opens them.

    A stream that broke once stays broken: nothing is read from it any more.
    """

    def __init__(self, limits: ChunkLimits) -> None:
        self._limits = limits
        self._head = bytearray()
        self._stream: _Stream | None = None
        self._over = False

    def feed(self, data: Buffer) -> list[bytes]:
        """Take the next bytes of the stream, of any number.

        Returns:
            The plaintext of every chunk that is now complete. It is authentic; that
            nothing is missing behind it is known only after `finish`.

        Raises:
            EncapsulationError: the framing is broken, or a limit passed.
            DecryptionError: a chunk does not authenticate.
            SealgateError: what the key lookup of a `RequestOpener` raises.
        """
        self._check_open()
        self._over = True
        chunks = self._feed(data)
        self._over = False
        return chunks

    def finish(self) -> bytes:
        """Say that the stream ended; open the final chunk.

        Returns:
            The rest of the message, which may be empty.

        Raises:
            EncapsulationError: there is no final chunk: something was cut off.
            DecryptionError: it does not authenticate.
        """
        self._check_open()
        self._over = True
        if self._stream is None:
            raise EncapsulationError("the stream ends before its final chunk")
        return self._stream.finish()

    def _feed(self, data: Buffer) -> list[bytes]:
        if self._stream is None:
            self._head += data
            self._stream = self._start(self._head)
            if self._stream is None:
                return []
            data, self._head = self._head, bytearray()
        return self._stream.feed(data)

    def _start(self, head: bytearray) -> _Stream | None:
        """Take the front from ``head`` if it is complete."""
        raise NotImplementedError

    def _check_open(self) -> None:
        if self._over:
            raise EncapsulationError("the stream is over")


class RequestOpener(_Opener):
    """Opens a chunked request at the gateway.

    Attributes:
        enc: the encapsulated key, once it has arrived; it identifies the request.
    """

    def __init__(
        self,
        find: Callable[[RequestHeader], KemPrivateKey],
        limits: ChunkLimits = ChunkLimits(),
    ) -> None:
        """Prepare to open one request.

        Args:
            find: the private key for a header; raises `UnknownKeyError` without one.
            limits: bounds on what will come.
        """
        super().__init__(limits)
        self._find = find
        self._chosen: tuple[RequestHeader, KemPrivateKey, Suite] | None = None
        self._context: Context | None = None
        self.enc = b""

    def seal_response(self, *, nonce: bytes | None = None) -> ChunkSealer:
        """What seals the one response.

        Args:
            nonce: for published test vectors only; fresh if absent.

        Raises:
            EncapsulationError: the request has not arrived.
        """
        if self._context is None:
            raise EncapsulationError("the stream ends before its final chunk")
        size = _response_nonce_bytes(self._context.suite)
        nonce = nonce or secrets.token_bytes(size)
        keys = _ResponseKeys(self._context.suite, _response_secret(self._context))
        return ChunkSealer(nonce, keys.sealer(self.enc + nonce))

    def _start(self, head: bytearray) -> _Stream | None:
        if len(head) < HEADER_BYTES:
            return None
        if self._chosen is None:
            header = RequestHeader.decode(bytes(head[:HEADER_BYTES]))
            self._chosen = header, self._find(header), choose_suite(header)
        header, key, suite = self._chosen
        end = HEADER_BYTES + suite.nenc
        if len(head) < end:
            return None
        self.enc = bytes(head[HEADER_BYTES:end])
        info = _REQUEST_LABEL + header.encode()
        self._context = context = hpke.setup_receiver(suite, key, self.enc, info)
        del head[:end]
        return _Stream(lambda data, aad: context.open(data, aad=aad), self._limits)


class ResponseOpener(_Opener):
    """Opens a chunked response at the client."""

    def __init__(self, context: Context, enc: bytes, limits: ChunkLimits) -> None:
        super().__init__(limits)
        self._suite = context.suite
        self._secret = _response_secret(context)
        self._enc = enc

    def __repr__(self) -> str:
        return f"<ResponseOpener {self._suite}>"

    def _start(self, head: bytearray) -> _Stream | None:
        size = _response_nonce_bytes(self._suite)
        if len(head) < size:
            return None
        keys = _ResponseKeys(self._suite, self._secret)
        unprotect = keys.opener(self._enc + bytes(head[:size]))
        del head[:size]
        return _Stream(unprotect, self._limits)


def seal_chunked_request(
    config: KeyConfig,
    *,
    ephemeral: PrivateKey | None = None,
    limits: ChunkLimits = ChunkLimits(),
) -> tuple[ChunkSealer, ResponseOpener]:
    """Begin a chunked request to a gateway's key.

    Args:
        config: the gateway's key configuration.
        ephemeral: for published test vectors only; fresh if absent.
        limits: bounds on the response.

    Raises:
        KeyConfigError: no supported suite is offered.
        DecryptionError: the configured public key is not valid.
    """
    suite = config.choose()
    header = RequestHeader(
        config.key_id, suite.kem_id, suite.kdf_id, suite.aead_id
    ).encode()
    enc, context = hpke.setup_sender(
        suite, config.public_key, _REQUEST_LABEL + header, ephemeral=ephemeral
    )
    opener = ResponseOpener(context, enc, limits)
    protect = lambda data, aad: context.seal(data, aad=aad)  # noqa: E731
    return ChunkSealer(header + enc, protect), opener


class _ResponseKeys:
    """Key and nonces of one response (section 4.2)."""

    def __init__(self, suite: Suite, secret: bytes) -> None:
        self._suite = suite
        self._secret = secret
        self._counter = 0

    def sealer(self, salt: bytes) -> _Protect:
        aead, base_nonce = self._derive(salt)
        return lambda data, aad: aead.encrypt(self._nonce(base_nonce), data, aad)

    def opener(self, salt: bytes) -> _Protect:
        aead, base_nonce = self._derive(salt)

        def unprotect(data: Buffer, aad: bytes) -> bytes:
            try:
                return aead.decrypt(self._nonce(base_nonce), data, aad)
            except InvalidTag:
                raise DecryptionError("response does not authenticate") from None

        return unprotect

    def _derive(self, salt: bytes) -> tuple[hpke.Aead, int]:
        prk = hpke.hkdf_extract(salt, self._secret)
        aead = self._suite.aead(hpke.hkdf_expand(prk, b"key", self._suite.nk))
        nonce = hpke.hkdf_expand(prk, b"nonce", self._suite.nn)
        return aead, int.from_bytes(nonce, "big")

    def _nonce(self, base_nonce: int) -> bytes:
        nonce = base_nonce ^ self._counter
        self._counter += 1
        return nonce.to_bytes(self._suite.nn, "big")


def _response_secret(context: Context) -> bytes:
    return context.export(_RESPONSE_LABEL, _response_nonce_bytes(context.suite))


def _response_nonce_bytes(suite: Suite) -> int:
    return max(suite.nn, suite.nk)


def _encode_varint(value: int) -> bytes:
    """RFC 9000, section 16; a chunk is never longer than four bytes can say."""
    for prefix, size in enumerate((1, 2, 4)):
        if value < 1 << (8 * size - 2):
            return (value | prefix << (8 * size - 2)).to_bytes(size, "big")
    raise EncapsulationError("a chunk is too long")


def _decode_varint(data: bytearray, position: int) -> tuple[int, int]:
    """A value and how many bytes it took; no bytes while it is incomplete."""
    if position == len(data):
        return 0, 0
    size = 1 << (data[position] >> 6)
    field = data[position : position + size]
    if len(field) < size:
        return 0, 0
    return int.from_bytes(field, "big") & ((1 << (8 * size - 2)) - 1), size
