"""Binary HTTP messages (RFC 9292) as they arrive, in both framings.

A decoder takes bytes in any portions and gives the message's head as soon as it is
complete, then content, then trailers. What it holds is bounded by the limits of
`bhttp`, whatever the portions are; the checks are those of `bhttp` too.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

from sealgate.errors import BinaryHttpError
from sealgate.protocol.bhttp import (
    Body,
    Headers,
    Request,
    Response,
)
from sealgate.protocol.bhttp_fields import (
    BhttpLimits,
    FieldBudget,
    check_control,
    check_padding,
)

__all__ = ["Event", "RequestDecoder", "ResponseDecoder", "Trailers"]


@dataclass(frozen=True)
class Trailers:
    """The end of a message.

    Attributes:
        fields: as `Request.trailers`.
    """

    fields: Headers


# A head without content and trailers, a piece of content, the end.
Event = Request | Response | bytes | Trailers
# Suspends where bytes are missing.
_Steps = Generator[None, None, None]


class _Decoder:
    """The steps that requests and responses share.

    Attributes:
        known: whether the message says its content's length; None until it did.
        content_bytes: that length, once it has arrived.
    """

    def __init__(self, limits: BhttpLimits = BhttpLimits()) -> None:
        self._limits = limits
        self.known: bool | None = None
        self.content_bytes: int | None = None
        self._budget = FieldBudget(limits)
        self._buffer = bytearray()
        self._position = 0
        self._events: list[Event] = []
        self._content = bytearray()
        self._body_bytes = 0
        # Where the message may end: before a section (section 3.8), or behind it all.
        self._may_end = False
        self._broken = False
        # Read, but for its fields.
        self._head: Request | Response | None = None
        self._ended = False
        self._consumed = 0
        self._steps = self._message()
        next(self._steps)

    def feed(self, data: Body) -> list[Event]:
        """Take the next bytes.

        Returns:
            What they complete, in order; the content in at most one piece.

        Raises:
            BinaryHttpError: malformed, or over a limit; the decoder is of no more use.
        """
        if self._broken:
            raise BinaryHttpError("message is malformed")
        self._broken = True
        self._buffer += data
        next(self._steps)
        del self._buffer[: self._position]
        self._position = 0
        self._broken = False
        self._flush_content()
        events, self._events = self._events, []
        return events

    def finish(self) -> list[Event]:
        """Say that the message ended.

        Returns:
            The events of sections that were left out at its end.

        Raises:
            BinaryHttpError: it ends in the middle.
        """
        if self._broken or not self._may_end or self._buffer:
            raise BinaryHttpError("message is truncated")
        self._broken = True
        head: list[Event] = [] if self._head is None else [self._head]
        return head if self._ended else [*head, Trailers(())]

    def _message(self) -> _Steps:
        raise NotImplementedError

    def _sections(self, *, known: bool) -> _Steps:
        """Content, trailers, padding."""
        yield from self._boundary()
        if known:
            yield from self._known_content()
        else:
            yield from self._chunked_content()
        yield from self._boundary()
        trailers = yield from self._fields(known=known)
        self._flush_content()
        self._events.append(Trailers(trailers))
        self._may_end = self._ended = True
        while True:
            with memoryview(self._buffer) as view:
                check_padding(view[self._position :])
            self._position = len(self._buffer)
            yield

    def _known_content(self) -> _Steps:
        self.content_bytes = yield from self._body_size()
        yield from self._piece(self.content_bytes)

    def _chunked_content(self) -> _Steps:
        for _ in range(self._limits.max_chunks + 1):
            size = yield from self._body_size()
            if not size:
                return
            yield from self._piece(size)
        raise BinaryHttpError("content has too many chunks")

    def _body_size(self) -> Generator[None, None, int]:
        size = yield from self._varint()
        self._body_bytes += size
        if self._body_bytes > self._limits.max_body_bytes:
            raise BinaryHttpError("content is too long")
        return size

    def _piece(self, size: int) -> _Steps:
        while True:
            end = min(self._position + size, len(self._buffer))
            with memoryview(self._buffer) as view:
                self._content += view[self._position : end]
            size -= end - self._position
            self._position = end
            if not size:
                return
            yield

    def _flush_content(self) -> None:
        if self._content:
            self._events.append(bytes(self._content))
            self._content.clear()

    def _fields(self, *, known: bool) -> Generator[None, None, Headers]:
        fields: list[tuple[bytes, bytes]] = []
        left = (yield from self._section_size()) if known else None
        while left is None or left > 0:
            before = self._consumed
            name_size = yield from self._varint()
            if not name_size and left is None:
                break
            fields.append((yield from self._field(name_size)))
            if left is not None:
                left -= self._consumed - before
        if left is not None and left < 0:
            raise BinaryHttpError("field section overruns its length")
        return tuple(fields)

    def _section_size(self) -> Generator[None, None, int]:
        size = yield from self._varint()
        if size > self._limits.max_header_bytes + 8 * self._limits.max_headers:
            raise BinaryHttpError("field section is too long")
        return size

    def _field(self, name_size: int) -> Generator[None, None, tuple[bytes, bytes]]:
        self._budget.spend(name_size, fields=1)
        name = yield from self._take(name_size)
        value_size = yield from self._varint()
        self._budget.spend(value_size)
        value = yield from self._take(value_size)
        return self._budget.check(name, value)

    def _take(self, size: int) -> Generator[None, None, bytes]:
        while len(self._buffer) - self._position < size:
            yield
        part = bytes(self._buffer[self._position : self._position + size])
        self._position += size
        self._consumed += size
        return part

    def _varint(self) -> Generator[None, None, int]:
        first = (yield from self._take(1))[0]
        size = 1 << (first >> 6)
        rest = (yield from self._take(size - 1)) if size > 1 else b""
        return int.from_bytes(bytes([first & 0x3F]) + rest, "big")

    def _boundary(self) -> _Steps:
        self._may_end = True
        while self._position == len(self._buffer):
            yield
        self._may_end = False


class RequestDecoder(_Decoder):
    r"""Reads one request.

    >>> decoder = RequestDecoder()
    >>> decoder.feed(b"\x00\x03GET\x05https\x00\x01/\x00\x02h")[1]
    b'h'
    >>> decoder.feed(b"i"), decoder.finish()
    ([b'i'], [Trailers(fields=())])
    """

    def _message(self) -> _Steps:
        framing = yield from self._varint()
        if framing not in (0, 2):
            raise BinaryHttpError("not a request")
        self.known = framing == 0
        texts = []
        for _ in range(4):
            size = yield from self._varint()
            if size > self._limits.max_control_bytes:
                raise BinaryHttpError("control data is too long")
            texts.append((yield from self._take(size)))
        self._head = Request(*check_control(texts))
        yield from self._boundary()
        headers = yield from self._fields(known=framing == 0)
        self._events.append(Request(*check_control(texts), headers))
        self._head = None
        yield from self._sections(known=framing == 0)


class ResponseDecoder(_Decoder):
    """Reads one response, and passes over informational ones before it."""

    def _message(self) -> _Steps:
        framing = yield from self._varint()
        if framing not in (1, 3):
            raise BinaryHttpError("not a response")
        self.known = known = framing == 1
        status = yield from self._varint()
        for _ in range(self._limits.max_headers):
            if not 100 <= status <= 199:
                break
            yield from self._fields(known=known)
            status = yield from self._varint()
        if not 200 <= status <= 599:
            raise BinaryHttpError("status is out of range")
        self._head = Response(status)
        yield from self._boundary()
        headers = yield from self._fields(known=known)
        self._events.append(Response(status, headers))
        self._head = None
        yield from self._sections(known=known)
