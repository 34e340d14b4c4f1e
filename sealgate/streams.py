"""One sealed exchange as two streams, without I/O (draft-ietf-ohai-chunked-ohttp).

The request is sealed as it comes, the answer opened as it comes; of neither more is
held than a chunk. What was opened is authentic, and complete only after `end`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

from sealgate.errors import ProtocolError, TransportError
from sealgate.exchange import tensors_at
from sealgate.protocol import bhttp
from sealgate.protocol.bhttp import BhttpLimits, Body, Request
from sealgate.protocol.bhttp_stream import Event, ResponseDecoder
from sealgate.protocol.drafts import chunked
from sealgate.protocol.drafts.chunked import CHUNK_BYTES, ChunkLimits
from sealgate.protocol.keyconfig import KeyConfig
from sealgate.protocol.padding import padded_size

__all__ = ["StreamExchange"]

# Whoever reads a stream bounds it: nothing here grows with its length.
_ANY_BYTES = 1 << 60
_CHUNKS = ChunkLimits(max_message_bytes=_ANY_BYTES)
_MESSAGE = BhttpLimits(max_body_bytes=_ANY_BYTES, max_chunks=_ANY_BYTES)

T = TypeVar("T")


class StreamExchange:
    """Seals one request, opens its response.

    Attributes:
        media_type: of what is sent.
        response_media_type: of what must come back.
    """

    media_type = chunked.CHUNKED_REQUEST_MEDIA_TYPE
    response_media_type = chunked.CHUNKED_RESPONSE_MEDIA_TYPE

    def __init__(
        self, config: KeyConfig, request: Request, *, length: int | None
    ) -> None:
        """Begin a request.

        Args:
            config: the key configuration to seal to.
            request: without its content.
            length: of the content; None if nobody knows.

        Raises:
            TransportError: the configuration's public key is not a valid one.
        """
        try:
            self._sealer, self._opener = chunked.seal_chunked_request(
                config, limits=_CHUNKS
            )
        except ProtocolError as error:
            raise TransportError(f"the server's key configuration: {error}") from None
        self._known = length is not None
        front = bhttp.request_front(request, length=length, align=tensors_at(request))
        self._text = bytearray(front)
        self._content = bytearray()
        self._sealed_bytes = 0
        self._decoder = ResponseDecoder(_MESSAGE)

    def start(self) -> bytes:
        """What goes in front of all chunks."""
        return self._sealer.head

    def seal(self, data: Body) -> bytes:
        """Take the next of the content; the chunks that are now full."""
        if self._known:
            self._text += data
        else:
            # Few chunks inside, whatever it came in: a receiver counts them.
            self._content += data
            if len(self._content) >= CHUNK_BYTES:
                self._flush_content()
        return b"".join(self._full_chunks())

    def finish(self) -> Iterator[bytes]:
        """The rest: what is left of the content, padding, and the final chunk."""
        self._flush_content()
        self._text += b"\0" if self._known else b"\0\0"
        yield from self._full_chunks()
        size = self._sealed_bytes + len(self._text)
        left = padded_size(size) - size
        while left:
            zeros = min(left, CHUNK_BYTES)
            self._text += bytes(zeros)
            left -= zeros
            yield from self._full_chunks()
        yield self._sealer.finish(self._text)

    def open(self, data: bytes) -> list[Event]:
        """Take the next bytes of the answer; what they complete.

        Raises:
            TransportError: it is not the protocol's, or not authentic.
        """
        return _checked(
            lambda: [
                event
                for chunk in self._opener.feed(data)
                for event in self._decoder.feed(chunk)
            ]
        )

    def end(self) -> list[Event]:
        """Say that the answer has ended.

        Raises:
            TransportError: something is missing.
        """
        return _checked(
            lambda: [
                *self._decoder.feed(self._opener.finish()),
                *self._decoder.finish(),
            ]
        )

    @property
    def length(self) -> int | None:
        """The length of the answer's content, where the answer says it."""
        return self._decoder.content_bytes

    @property
    def length_comes(self) -> bool:
        """Whether that length is said, and has not arrived."""
        return bool(self._decoder.known) and self._decoder.content_bytes is None

    def _flush_content(self) -> None:
        if self._content:
            self._text += bhttp.chunk_front(len(self._content))
            self._text += self._content
            self._content.clear()

    def _full_chunks(self) -> Iterator[bytes]:
        """All but the last are full, so that they do not show what is in them."""
        end = len(self._text) // CHUNK_BYTES * CHUNK_BYTES
        with memoryview(self._text) as view:
            for start in range(0, end, CHUNK_BYTES):
                yield self._sealer.seal(view[start : start + CHUNK_BYTES])
        self._sealed_bytes += end
        del self._text[:end]


def _checked(steps: Callable[[], T]) -> T:
    try:
        return steps()
    except ProtocolError as error:
        raise TransportError(f"the sealed answer is unusable: {error}") from None
