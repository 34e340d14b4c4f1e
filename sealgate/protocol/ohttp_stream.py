"""Encapsulated requests (RFC 9458) of a known size, decrypted as they arrive.

What comes from the network is decrypted from where it lies into the one buffer that
the message will be read from: the ciphertext is never whole in memory, and the pass
that would copy it there is the one that decrypts it. Nothing of the message is looked
at before its tag has been checked.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sealgate.errors import EncapsulationError
from sealgate.protocol import hpke
from sealgate.protocol.hpke import Buffer, Context, KemPrivateKey, PieceOpener
from sealgate.protocol.kem import ENC_BYTES
from sealgate.protocol.ohttp import (
    HEADER_BYTES,
    REQUEST_LABEL,
    TAG_BYTES,
    RequestHeader,
    ResponseContext,
    choose_suite,
)

__all__ = ["RequestReceiver"]

# The header and the longest encapsulated key.
_MOST_HEAD_BYTES = HEADER_BYTES + max(ENC_BYTES.values())


class RequestReceiver:
    """Receives one request.

    Attributes:
        header: which key and suite it names, once that has arrived.
        enc: its encapsulated key, once that has arrived; it identifies the request.
    """

    def __init__(
        self, size: int, find: Callable[[RequestHeader], KemPrivateKey]
    ) -> None:
        """Prepare to receive.

        Args:
            size: of the encapsulated request in bytes, within the caller's bounds. As
                much memory is taken once the first bytes are there.
            find: the private key for a header; raises `UnknownKeyError` without one.
        """
        self._size = size
        self._find = find
        self._head = bytearray()
        self._key: KemPrivateKey | None = None
        self._context: Context | None = None
        self._pieces: PieceOpener | None = None
        self._buffer = memoryview(b"")
        # The ciphertext without its tag, how much of both has arrived, the tag.
        self._text_bytes = 0
        self._arrived = 0
        self._tag = bytearray()
        self.header: RequestHeader | None = None
        self.enc = b""

    def feed(self, data: Buffer) -> None:
        """Take the next bytes.

        Raises:
            EncapsulationError: an impossible size, a suite that is not supported, or
                more bytes than announced.
            UnknownKeyError: what ``find`` raises.
            DecryptionError: the encapsulated key is not valid.
        """
        rest = memoryview(data)
        if self._context is None:
            known = len(self._head)
            self._head += rest[:_MOST_HEAD_BYTES]
            end = self._start()
            if end is None:
                return
            rest, self._head = rest[end - known :], bytearray()
        self._take(rest)

    def finish(self) -> tuple[memoryview, ResponseContext]:
        """Say that all of it has arrived.

        Returns:
            The Binary HTTP request, and the context that seals its response.

        Raises:
            EncapsulationError: it is shorter than announced.
            DecryptionError: it does not authenticate.
        """
        context, buffer = self._context, self._buffer
        self._buffer = memoryview(b"")
        if context is None or len(self._tag) != TAG_BYTES:
            raise EncapsulationError("encapsulated request is too short")
        if self._pieces is None:
            buffer = memoryview(context.open(buffer))
        else:
            self._pieces.finish(bytes(self._tag))
        return buffer, ResponseContext(context, self.enc)

    def _start(self) -> int | None:
        """Read what is in front of the ciphertext, once it is there."""
        if len(self._head) < HEADER_BYTES:
            return None
        if self.header is None or self._key is None:
            self.header = RequestHeader.decode(bytes(self._head[:HEADER_BYTES]))
            self._key = self._find(self.header)
        suite = choose_suite(self.header)
        end = HEADER_BYTES + suite.nenc
        if self._size < end + TAG_BYTES:
            raise EncapsulationError("encapsulated request is too short")
        if len(self._head) < end:
            return None
        self.enc = bytes(self._head[HEADER_BYTES:end])
        info = REQUEST_LABEL + self.header.encode()
        self._context = hpke.setup_receiver(suite, self._key, self.enc, info)
        self._text_bytes = self._size - end - TAG_BYTES
        room = self._text_bytes
        if suite.aead_id == hpke.AEAD_AES_128_GCM:
            self._pieces = self._context.open_in_pieces()
        else:  # opened whole, by the library's only way
            room += TAG_BYTES
        # Not zeroed: only what has been written is ever read.
        self._buffer = np.empty(room, np.uint8).data
        return end

    def _take(self, data: memoryview) -> None:
        begin, end = self._arrived, self._arrived + len(data)
        if end > self._text_bytes + TAG_BYTES:
            raise EncapsulationError("encapsulated request is too long")
        self._arrived = end
        text = data[: max(0, self._text_bytes - begin)]
        self._tag += data[len(text) :]
        if self._pieces is None:
            self._buffer[begin:end] = data
        elif text:
            self._pieces.write(text, self._buffer[begin : begin + len(text)])
