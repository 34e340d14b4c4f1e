"""Bodies of requests that come or go in portions, for `sealgate.async_client`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

from sealgate.errors import TransportError
from sealgate.steps import Fetch
from sealgate.streams import StreamExchange

__all__ = ["content", "gather", "sealed"]

_MAX_WHOLE_BYTES = 64 << 20


async def sealed(
    exchange: StreamExchange, body: bytes | AsyncIterator[bytes]
) -> AsyncIterator[bytes]:
    """A request's sealed portions, as the body comes."""
    yield exchange.start()
    if isinstance(body, bytes):
        if body:
            yield exchange.seal(body)
    else:
        async for portion in body:
            # Whoever sends nothing yet sends no empty chunk either.
            if chunk := exchange.seal(portion):
                yield chunk
    for rest in exchange.finish():
        yield rest


async def gather(body: AsyncIterator[bytes]) -> bytes:
    """A body that must be sent whole, within a bound."""
    whole = bytearray()
    async for portion in body:
        whole += portion
        if len(whole) > _MAX_WHOLE_BYTES:
            raise TransportError("too long for a gateway that takes no chunks")
    return bytes(whole)


def content(step: Fetch) -> bytes | AsyncIterator[bytes] | None:
    """What a step sends, as the transport takes it."""
    sent = step.content
    return sent if sent is None or isinstance(sent, bytes) else _aiter(sent)


async def _aiter(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece
