"""Opens sealed requests, seals the answers (RFC 9458, section 5; chunked: draft-08).

Up to decapsulation an error is a plain answer; from then on every answer, 401 and 403
included, is sealed (section 5.2). The outer status of a sealed answer is always 200.

1. the header names a key and a suite that are offered; lengths fit (section 4.3);
2. the request opens, to its last chunk; failures of 1 and 2 are one answer;
3. it is Binary HTTP (RFC 9292), within the limits;
4. its Date is in the window (section 6.5.2);
5. `Routes` asks the replay store once its token is verified (section 6.5), and only
   then is anything done for it. Answers are padded (section 6.3 of RFC 9458).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace

from sealgate.errors import DecryptionError, SealgateError, UnknownKeyError
from sealgate.protocol import bhttp, ohttp
from sealgate.protocol.bhttp import BhttpLimits, Body, Request, Response
from sealgate.protocol.drafts import chunked
from sealgate.protocol.drafts.chunked import ChunkLimits, ChunkSealer, RequestOpener
from sealgate.protocol.hpke import KemPrivateKey
from sealgate.protocol.ohttp import RequestHeader, ResponseContext
from sealgate.protocol.ohttp_stream import RequestReceiver
from sealgate.protocol.padding import padded_size
from security.errors import DateError
from security.sealing.freshness import Freshness, Unseen, http_date
from security.sealing.keyring import KeyRing
from security.sealing.publish import Document, Publication
from service.http.exchange import StreamedResponse
from service.http.intake import step
from service.problems import Problem
from service.routes import Routes

__all__ = [
    "GATEWAY_PATH",
    "ChunkedRequest",
    "Gateway",
    "LargeRequest",
    "Opened",
]

# RFC 9540, section 3: where a client finds the gateway of a target.
GATEWAY_PATH = b"/.well-known/ohttp-gateway"

_NO_STORE = (b"cache-control", b"no-store")
_OUTER_HEADERS = ((b"content-type", ohttp.RESPONSE_MEDIA_TYPE.encode()), _NO_STORE)
_STREAMED_HEADERS = (
    (b"content-type", chunked.CHUNKED_RESPONSE_MEDIA_TYPE.encode()),
    (b"incremental", b"?1"),
    _NO_STORE,
)


class Gateway:
    """An Oblivious Gateway whose only target is this server (section 6.3)."""

    def __init__(
        self,
        ring: Callable[[], KeyRing],
        routes: Routes,
        *,
        max_body_bytes: int,
        freshness: Freshness,
        publication: Publication,
        published: Callable[[KeyRing], KeyRing] = lambda ring: ring,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Wire a gateway.

        Args:
            ring: asked once per request; `LiveRing.current`, for example.
            routes: what answers the inner requests.
            max_body_bytes: of an inner request's content.
            freshness: lets each request pass once.
            publication: what clients may fetch about the keys.
            published: of which ring, given the one in use.
            clock: Unix seconds.
        """
        self._ring = ring
        self._routes = routes
        self._freshness = freshness
        self._publication = publication
        self._published = published
        self._clock = clock
        # Who asks while evidence is made waits for it, and takes no thread.
        self._attesting: asyncio.Task[Document | None] | None = None
        self._limits = BhttpLimits(max_body_bytes=max_body_bytes)
        self._opened, self._sealing = (
            routes.metrics.histogram("sealgate_stage_seconds", stage, "", "")
            for stage in ("open", "seal")
        )

    @property
    def keys(self) -> bytes:
        """The ``application/ohttp-keys`` document."""
        return self._ring().document

    def published(self) -> Document:
        """The key configurations to serve."""
        return self._publication.plain(self._published(self._ring()))

    def published_signed(self) -> Document:
        """The signed key configurations to serve.

        Raises:
            Problem: this deployment has no identity key.
        """
        return _offered(self._publication.signed(self._published(self._ring())))

    async def published_signed_v2(self) -> Document:
        """The signed key configurations of the second version.

        Raises:
            Problem: this deployment has no identity key.
            AttesterError: it offers evidence, and there is none now.
        """
        publication, ring = self._publication, self._published(self._ring())
        if not publication.attests:
            return _offered(publication.signed_v2(ring))
        if self._attesting is None or self._attesting.done():
            making = asyncio.to_thread(publication.signed_v2, ring)
            self._attesting = asyncio.create_task(making)
            self._attesting.add_done_callback(_looked_at)
        # Who leaves is cancelled: the thread goes on, so nobody may start another.
        return _offered(await asyncio.shield(self._attesting))

    async def answer(self, body: Body) -> Response:
        """Open an encapsulated request, answer it, seal the answer.

        Raises:
            SealgateError: it was refused before it was open: malformed, no such key,
                or it does not authenticate.
        """
        opened = self.open(body)
        del body  # of a large request only the opened copy is kept
        return await self.answer_opened(opened)

    def open(self, body: Body) -> Opened:
        """Open an encapsulated request.

        Raises:
            SealgateError: as `answer`.
        """
        began = time.perf_counter()
        ring = self._ring()
        header = ohttp.parse_header(body)
        try:
            message, context = ohttp.open_request(body, ring.find(header))
        except (UnknownKeyError, DecryptionError):
            raise Problem("ohttp-key") from None
        self._opened(time.perf_counter() - began)
        step("open", began)
        enc = context.encapsulated_key
        return Opened(message, enc, context, key_id=header.key_id, live_ids=ring.ids)

    async def answer_opened(self, opened: Opened) -> Response:
        """Answer what was opened, and perhaps read, and seal the answer."""
        return await self.sealing(opened, self._inner(opened))

    async def sealing(self, opened: Opened, work: Awaitable[Response]) -> Response:
        """Seal the answer that some work gives."""
        return self.seal(opened, await work)

    def seal(self, opened: Opened, inner: Response) -> Response:
        """Seal an answer."""
        if opened.context is None:
            raise TypeError("chunks are sealed one by one")
        began = time.perf_counter()
        sealed = opened.context.seal_parts(_padded(inner))
        self._sealing(time.perf_counter() - began)
        step("seal", began)
        return Response(200, _OUTER_HEADERS, sealed)

    def read(self, opened: Opened) -> Request:
        """Checks 3 and 4 of a request; its message is kept only as this.

        Raises:
            SealgateError: it does not pass.
        """
        request = bhttp.decode_request(opened.message, self._limits)
        opened.unseen = self._freshness.check(
            request.headers, opened.enc, key_id=opened.key_id, live_ids=opened.live_ids
        )
        opened.request, opened.message = request, b""
        return request

    def remember_at_once(
        self, group: Sequence[tuple[Opened, str]]
    ) -> list[SealgateError | None] | None:
        """Check 5 of requests that `read` has read, each with the account that asks.

        Returns:
            As `Freshness.remember_at_once`; `answer_opened` will not ask again.
        """
        asked = [(one.unseen, who) for one, who in group if one.unseen is not None]
        outcomes = self._freshness.remember_at_once(asked)
        for (one, _), outcome in zip(group, outcomes or ()):
            one.outcome, one.is_asked = outcome, True
        return outcomes

    def begin(self, size: int) -> LargeRequest:
        """Prepare to take a request of ``size`` bytes as it arrives."""
        return LargeRequest(self._ring(), size)

    async def answer_large(self, request: LargeRequest) -> Response:
        """Answer a request that has arrived.

        Raises:
            SealgateError: as `answer`.
        """
        opened = request.finish()
        self._opened(request.seconds)
        step("open", time.perf_counter() - request.seconds)
        del request
        return await self.answer_opened(opened)

    def begin_chunked(self) -> ChunkedRequest:
        """Prepare to take a chunked request as it arrives."""
        return ChunkedRequest(self._ring(), self._limits.max_body_bytes)

    async def answer_chunked(self, request: ChunkedRequest) -> StreamedResponse:
        """Answer a chunked request that has arrived.

        Raises:
            SealgateError: as `answer`; also if the request was cut short.
        """
        opened, sealer = request.finish()
        self._opened(request.seconds)
        step("open", time.perf_counter() - request.seconds)
        del request
        inner = await self._inner(opened)
        del opened
        parts = _chunks(sealer, _padded(inner), self._sealing)
        return StreamedResponse(200, _STREAMED_HEADERS, parts)

    async def _inner(self, opened: Opened) -> Response:
        """Checks 3 and 4, where they are still to be done, and the answer."""
        try:
            request = opened.request or self.read(opened)
        except DateError:
            ours = ((b"date", http_date(self._clock())), _NO_STORE)
            return await self._routes.refuse(Problem("date", headers=ours), sealed=True)
        except SealgateError as error:
            return await self._routes.refuse(error, sealed=True)
        opened.request = None
        answer = await self._routes.answer(
            request, sealed=True, remember=opened.remember
        )
        if request.method == b"HEAD":
            return replace(answer, body=b"")
        return answer


class Opened:
    """A request that was opened, on its way to its answer.

    Attributes:
        message: the Binary HTTP, until it has been read.
        enc: its encapsulated key.
        context: seals the response; None of one that came in chunks.
        key_id: of the key that opened it.
        live_ids: of all keys that open requests.
        request: what was read.
        unseen: what asks the replay store about it.
        is_asked: whether that was done, outside of `remember`.
        outcome: what came of that.
    """

    __slots__ = (
        "context", "enc", "is_asked", "key_id", "live_ids", "message", "outcome",
        "request", "unseen",
    )  # fmt: skip

    def __init__(
        self,
        message: Body,
        enc: bytes,
        context: ResponseContext | None = None,
        *,
        key_id: int,
        live_ids: Sequence[int],
    ) -> None:
        self.message, self.enc, self.context = message, enc, context
        self.key_id, self.live_ids = key_id, live_ids
        self.request: Request | None = None
        self.unseen: Unseen | None = None
        self.is_asked = False
        self.outcome: SealgateError | None = None

    async def remember(self, account: str) -> None:
        """Check 5, once.

        Raises:
            SealgateError: as `Freshness.check` says.
        """
        if self.outcome is not None:
            raise self.outcome
        if not self.is_asked and self.unseen is not None:
            await self.unseen(account)


class _Search:
    """Finds one request's key, and knows then which one that was.

    It is no method of the request: the request would hold itself, and whatever arrived
    of one that was given up would be left to the collector of garbage.
    """

    def __init__(self, ring: KeyRing) -> None:
        self._ring = ring
        self.key_id = -1

    def find(self, header: RequestHeader) -> KemPrivateKey:
        key = self._ring.find(header)
        self.key_id = header.key_id
        return key


class LargeRequest:
    """A large request on its way in: it is decrypted as it arrives.

    Attributes:
        ring: the keys it is opened with.
        seconds: spent on opening it so far.
    """

    def __init__(self, ring: KeyRing, size: int) -> None:
        self.ring = ring
        self.seconds = 0.0
        self._search = _Search(ring)
        self._receiver = RequestReceiver(size, self._search.find)
        self._error: SealgateError | None = None

    def feed(self, data: Body) -> None:
        """Take the next bytes of the body.

        After an error they are only counted: the refusal comes when all have arrived,
        whatever was wrong, and the client is there to read it.
        """
        if self._error is None:
            began = time.perf_counter()
            try:
                self._receiver.feed(data)
            except SealgateError as error:
                # Its traceback would hold the request, and what it was given.
                self._error = error.with_traceback(None)
            self.seconds += time.perf_counter() - began

    def finish(self) -> Opened:
        """What was opened.

        Raises:
            SealgateError: as `Gateway.answer`.
        """
        try:
            if self._error is not None:
                raise self._error
            message, context = self._receiver.finish()
        except (UnknownKeyError, DecryptionError):
            raise Problem("ohttp-key") from None
        return Opened(
            message,
            self._receiver.enc,
            context,
            key_id=self._search.key_id,
            live_ids=self.ring.ids,
        )


class ChunkedRequest:
    """A chunked request on its way in: each chunk is opened when it is complete.

    Attributes:
        ring: the keys it is opened with.
        seconds: spent on opening it so far.
    """

    def __init__(self, ring: KeyRing, max_body_bytes: int) -> None:
        self.ring = ring
        self.seconds = 0.0
        self._search = _Search(ring)
        self._message = bytearray()
        # A message is its content, at most as many fields as fit, and its padding.
        limits = ChunkLimits(max_message_bytes=padded_size(max_body_bytes + (64 << 10)))
        self._opener = RequestOpener(self._search.find, limits)

    def feed(self, data: Body) -> None:
        """Take the next bytes of the body.

        Raises:
            SealgateError: as `Gateway.answer`.
        """
        began = time.perf_counter()
        try:
            for chunk in self._opener.feed(data):
                self._message += chunk
        except (UnknownKeyError, DecryptionError):
            raise Problem("ohttp-key") from None
        self.seconds += time.perf_counter() - began

    def finish(self) -> tuple[Opened, ChunkSealer]:
        """What was opened, and what seals the response."""
        began = time.perf_counter()
        try:
            self._message += self._opener.finish()
        except DecryptionError:
            raise Problem("ohttp-key") from None
        self.seconds += time.perf_counter() - began
        message, self._message = self._message, bytearray()
        opened = Opened(
            message,
            self._opener.enc,
            key_id=self._search.key_id,
            live_ids=self.ring.ids,
        )
        return opened, self._opener.seal_response()


def _looked_at(task: asyncio.Task[Document | None]) -> None:
    """An error is no surprise to the loop if all who waited for it have left."""
    if not task.cancelled():
        task.exception()


def _offered(document: Document | None) -> Document:
    if document is None:
        raise Problem("not-found", "this deployment does not sign its keys")
    return document


def _padded(inner: Response) -> list[Body]:
    """A Binary HTTP response with its padding, the content not copied."""
    parts = bhttp.response_parts(inner)
    size = sum(map(len, parts))
    return [*parts, bytes(padded_size(size) - size)]


def _chunks(
    sealer: ChunkSealer, parts: Sequence[Body], observe: Callable[[float], None]
) -> Iterator[bytes]:
    """All chunks but the last are full, so that they do not show what is in them.

    ``observe`` is told the seconds that sealing took, before the last chunk is given.
    """
    message = memoryview(b"".join(parts))
    del parts
    yield sealer.head
    size = chunked.CHUNK_BYTES
    last = (len(message) - 1) // size * size
    seconds = 0.0
    for start in range(0, last, size):
        began = time.perf_counter()
        sealed = sealer.seal(message[start : start + size])
        seconds += time.perf_counter() - began
        yield sealed
    began = time.perf_counter()
    sealed = sealer.finish(message[last:])
    seconds += time.perf_counter() - began
    observe(seconds)
    step("seal", time.perf_counter() - seconds)
    yield sealed
