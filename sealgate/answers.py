"""An answer that is read while it arrives."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

from sealgate.errors import ClockError, OverloadedError, TransportError
from sealgate.exchange import refusal_of
from sealgate.protocol.bhttp import Headers, Response
from sealgate.protocol.bhttp_stream import Event
from sealgate.steps import Fetch
from sealgate.streams import StreamExchange

__all__ = [
    "StreamedAnswer",
    "check_clock",
    "content_of",
    "gather",
    "once",
    "read_head",
    "sealed",
    "send_again",
]

_MAX_REFUSAL_BYTES = 64 << 10
_MAX_WHOLE_BYTES = 64 << 20


class StreamedAnswer:
    """An answer that is read while it arrives.

    Attributes:
        status: of the response.
        headers: its fields.
        length: of its content in bytes; None if it does not say.
    """

    def __init__(
        self,
        status: int,
        headers: Headers,
        length: int | None,
        pieces: AsyncIterator[bytes],
    ) -> None:
        self.status = status
        self.headers = headers
        self.length = length
        self._pieces = pieces

    def __repr__(self) -> str:
        return f"<StreamedAnswer {self.status}>"

    def pieces(self) -> AsyncIterator[bytes]:
        """The content; read once. It is whole only if this ends without an error.

        Raises:
            TransportError: it is cut short, or not authentic.
        """
        return self._pieces


async def read_head(
    exchange: StreamExchange, events: AsyncIterator[Event]
) -> StreamedAnswer:
    """The answer as soon as its head is there; its content comes from ``events``.

    Raises:
        TransportError: it has no head.
    """
    head: Response | None = None
    ahead: list[bytes] = []
    async for event in events:
        match event:
            case Response():
                head = event
            case bytes():
                ahead.append(event)
        if head is not None and not exchange.length_comes:
            break
    if head is None:
        raise TransportError("the sealed answer is unusable: it has no head")
    pieces = _pieces(ahead, events)
    return StreamedAnswer(head.status, head.headers, exchange.length, pieces)


async def _pieces(
    ahead: list[bytes], events: AsyncIterator[Event]
) -> AsyncIterator[bytes]:
    for piece in ahead:
        yield piece
    async for event in events:
        if isinstance(event, bytes):
            yield event


async def check_clock(answer: StreamedAnswer) -> StreamedAnswer:
    """The answer again, if it is not that our Date is off.

    Raises:
        ClockError: it is.
    """
    content = b""
    async for piece in answer.pieces():
        content += piece
        if len(content) > _MAX_REFUSAL_BYTES:
            raise TransportError("the answer is too long")
    error = refusal_of(Response(answer.status, answer.headers, content))
    if isinstance(error, ClockError):
        raise error
    return StreamedAnswer(answer.status, answer.headers, len(content), once(content))


async def once(content: bytes) -> AsyncIterator[bytes]:
    """Content that is there already."""
    if content:
        yield content


async def gather(body: AsyncIterator[bytes]) -> bytes:
    """A body that must be sent whole, within a bound.

    Raises:
        TransportError: it is longer than 64 MiB.
    """
    content = bytearray()
    async for portion in body:
        content += portion
        if len(content) > _MAX_WHOLE_BYTES:
            raise TransportError("too long for a gateway that takes no chunks")
    return bytes(content)


def send_again() -> OverloadedError:
    """Says that a request whose content is gone may be sent anew."""
    problem = {"type": "about:blank", "title": "a key or clock was put right just now"}
    return OverloadedError(503, problem, retry_after_s=1.0)


def content_of(step: Fetch) -> bytes | AsyncIterator[bytes] | None:
    """The content that a step sends, as an asynchronous connection takes it."""
    content = step.content
    return content if content is None or isinstance(content, bytes) else _aiter(content)


async def _aiter(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def sealed(
    exchange: StreamExchange, body: bytes | AsyncIterator[bytes]
) -> AsyncIterator[bytes]:
    """What a streamed request sends: its content, sealed as it comes."""
    yield exchange.start()
    if isinstance(body, bytes):
        if body:
            yield exchange.seal(body)
    else:
        async for portion in body:
            # Whoever sends nothing yet sends no empty chunk either.
            if full := exchange.seal(portion):
                yield full
    for rest in exchange.finish():
        yield rest
