"""The asynchronous client: `sealgate.client` for asyncio, over the same core."""

from __future__ import annotations

import asyncio
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
)
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from inspect import isawaitable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpcore

from sealgate.answers import (
    StreamedAnswer,
    check_clock,
    content_of,
    gather,
    once,
    read_head,
    sealed,
    send_again,
)
from sealgate.attestation import Attested
from sealgate.core import Core
from sealgate.direct import AsyncConnections
from sealgate.errors import (
    ClientError,
    ClockError,
    KeyRefusedError,
    TransportError,
)
from sealgate.exchange import Answer, check_token, refusal
from sealgate.explanation import Explanation, question_for
from sealgate.feedback import Label
from sealgate.offers import OfferedLog
from sealgate.options import Options, options_of
from sealgate.passport import Passport
from sealgate.profile import Profile
from sealgate.protocol.bhttp import Headers, Response
from sealgate.protocol.bhttp_stream import Event
from sealgate.protocol.receipts import Proven
from sealgate.receipt_numbers import Answers, ReceiptNumber
from sealgate.receipts import check_receipt, fetch_receipt
from sealgate.retry import Attempts
from sealgate.steps import AskToken, Fetch, Steps, Wait
from sealgate.streams import StreamExchange
from sealgate.transport import (
    FAILURES,
    Direct,
    Pools,
    failed,
    head_of,
    received_fields,
    sent_fields,
)

__all__ = ["AsyncClient"]

# Sealed, and answered without a token.
_PROBE = "/v2/health/live"
_MAX_REFUSAL_BYTES = 64 << 10

T = TypeVar("T")


class AsyncClient:
    """Talks to one Sealgate server; close it, or use ``async with``.

    What each method takes, gives and raises is in `sealgate.client.Client`.

    >>> client = AsyncClient("https://models.example", token="…")  # doctest: +SKIP
    >>> (await client.infer("m", {"x": [[1, 2]]}))["label"]  # doctest: +SKIP
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | Callable[[], str | Awaitable[str]],
        options: Options = Options(),
        timeout_s: float = 30.0,
    ) -> None:
        """Nothing is sent yet.

        Args:
            url: base URL; https, or http on this machine.
            token: access token, or a callable that gives a fresh one per request, or an
                awaitable of it.
            options: what to trust, what to allow.
            timeout_s: for connecting, and for each read and write.

        Raises:
            ProfileError: the URL is not allowed, or the certificate cannot be used.
            TransportError: pinned key configurations are malformed.
        """
        self._core = Core(url, options)
        self._token = token
        self._pools = Pools(httpcore.AsyncConnectionPool, timeout_s, options)
        self._direct = Direct(AsyncConnections, self._pools)

    def __repr__(self) -> str:
        return f"<AsyncClient {self._core.url}>"

    @property
    def url(self) -> str:
        """The server's base URL."""
        return self._core.url

    @classmethod
    def from_profile(
        cls, profile: Profile | Path | str, *, timeout_s: float = 30.0
    ) -> Self:
        """A client for the server of a profile, or of a profile's file.

        Raises:
            ProfileError: the profile cannot be used.
        """
        if not isinstance(profile, Profile):
            profile = Profile.load(profile)
        return cls(
            profile.url,
            token=profile.token,
            options=options_of(profile),
            timeout_s=timeout_s,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        for pool in self._pools.all():
            await pool.aclose()
        for direct in self._direct.all():
            await direct.aclose()

    async def health(self) -> bool:
        """Whether the server is ready. Asked in the open, without the token."""
        try:
            return await self._run(self._core.health())
        except ClientError:
            return False

    async def ready(self, model: str) -> bool:
        """Whether a model is loaded.

        Raises:
            ServerRefusedError: no right to it.
            TransportError: no usable answer.
        """
        return await self._run(self._core.ready(model))

    async def server_metadata(self) -> dict[str, Any]:
        """The server's name, version and the protocol extensions it has.

        Raises:
            ServerRefusedError: no valid token.
            TransportError: no usable answer.
        """
        return await self._run(self._core.server_metadata())

    async def metadata(self, model: str) -> dict[str, Any]:
        """The model's v2 metadata: tensors, and its columns and labels.

        Raises:
            ServerRefusedError: no such model, or no right to it.
            PassportError: as `infer`.
            TransportError: no usable answer.
        """
        return await self._run(self._core.metadata(model))

    async def infer(
        self,
        model: str,
        inputs: Any,
        *,
        traceparent: str | None = None,
        batched: bool = True,
        progress: Callable[[int, int], None] | None = None,
        tickets: bool = False,
    ) -> Answers:
        """Run a model; arguments, answer and errors are those of `Client.infer`."""
        return await self._run(
            self._core.infer(
                model,
                inputs,
                traceparent=traceparent,
                batched=batched,
                progress=progress,
                tickets=tickets,
            )
        )

    async def explain(
        self,
        model: str,
        inputs: Any,
        *,
        of: str | int | None = None,
        method: str = "shapley",
        pairs: int | None = None,
        samples: int | None = None,
        version: str | None = None,
        traceparent: str | None = None,
    ) -> Explanation:
        """Run a model, and ask why it answers so."""
        question = question_for(method, of, pairs, samples)
        return await self._run(
            self._core.explain(
                model, inputs, question, version=version, traceparent=traceparent
            )
        )

    async def feedback(self, model: str, labels: Iterable[Label]) -> list[str]:
        """Send labels of earlier answers. Takes the scope ``feedback:MODEL``."""
        return await self._run(self._core.feedback(model, labels))

    async def passport(self, model: str) -> Passport:
        """Fetch the model's verdict and evidence, and verify them; as `Client`."""
        return await self._run(self._core.passport(model))

    async def receipt(self, number: ReceiptNumber | str) -> bytes:
        """The receipt for an answer; as `Client`."""
        return await self._run(fetch_receipt(self._core.call, number))

    def verify_receipt(
        self,
        receipt: bytes,
        number: ReceiptNumber | None,
        *,
        model_sha256: str | None = None,
    ) -> Proven:
        """Verify a receipt; nothing is sent. As `Client`."""
        options = self._core.options
        return check_receipt(receipt, options, number, model_sha256=model_sha256)

    async def offers(self) -> list[dict[str, Any]]:
        """All of the deployment's public log of offers, verified; as `Client`."""
        core = self._core
        return await self._run(OfferedLog(core.url, core.options).entries())

    async def monitoring(
        self, model: str, version: str | None = None
    ) -> dict[str, Any]:
        """What monitoring found of a version. Takes ``monitoring:MODEL``."""
        return await self._run(self._core.monitoring(model, version))

    @property
    def attested(self) -> Attested | None:
        """What is attested of the machine behind the keys that were fetched last.

        None without a policy, and without evidence where the policy can do so.
        """
        return self._core.key_source.attested

    async def keys(self) -> bytes:
        """The ``application/ohttp-keys`` document that the server offers now."""
        return await self._run(self._core.keys())

    async def forward(
        self,
        method: str,
        path: str,
        *,
        headers: Headers = (),
        body: bytes = b"",
        own_token: bool = True,
        own_certificate: bool = True,
    ) -> Response:
        """Send any request sealed, and give its answer, whatever its status.

        Args:
            method: of the request.
            path: with query.
            headers: lower-case names; Date is added, and Authorization if asked.
            body: content.
            own_token: add this client's token.
            own_certificate: show its certificate, if it has one.

        Raises:
            ServerRefusedError: refused before the gateway could open it.
            TransportError: no usable answer.
        """
        return await self._run(
            self._core.forward(
                method,
                path,
                headers,
                body,
                own_token=own_token,
                own_certificate=own_certificate,
            )
        )

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        path: str,
        *,
        headers: Headers = (),
        body: bytes | AsyncIterator[bytes] = b"",
        length: int | None = None,
        own_token: bool = True,
        own_certificate: bool = True,
    ) -> AsyncIterator[StreamedAnswer]:
        """As `forward`, with content that is sealed and opened as it comes.

        Of neither direction is the whole held, where the gateway takes chunks. A body
        of bytes can be sent again, after a key or a clock was put right; of another
        one nothing is kept, so keys and clock are checked first by a small request.

        Args:
            method: of the request.
            path: with query.
            headers: as for `forward`.
            body: content, whole or in portions.
            length: of a body in portions, in bytes, if known.
            own_token: add this client's token.
            own_certificate: show its certificate, if it has one.

        Raises:
            ServerRefusedError: as `forward`.
            TransportError: no usable answer; also while it is read, if it is cut short.
        """
        whole = isinstance(body, bytes)
        if not whole and self._core.speaks_chunked and not self._core.in_touch:
            async with self.stream(
                "GET", _PROBE, own_token=False, own_certificate=own_certificate
            ):
                pass
        attempts = Attempts(self._core.options.retry)
        token = check_token(await self._ask_token()) if own_token else None
        size = len(body) if isinstance(body, bytes) else length
        while self._core.speaks_chunked:
            exchange = await self._run(
                self._core.begin_stream(method, path, headers, token=token, length=size)
            )
            async with AsyncExitStack() as stack:
                try:
                    answer = await self._begin(stack, exchange, body, own_certificate)
                except (KeyRefusedError, ClockError) as error:
                    if not self._core.recover(error, attempts):
                        raise
                    if not whole:
                        raise send_again() from None
                    continue
                if answer is not None:
                    yield answer
                    return
                if not whole:
                    raise TransportError("the gateway takes no chunked requests")
        content = body if isinstance(body, bytes) else await gather(body)
        response = await self.forward(
            method,
            path,
            headers=headers,
            body=content,
            own_token=own_token,
            own_certificate=own_certificate,
        )
        yield StreamedAnswer(
            response.status,
            response.headers,
            len(response.body),
            once(bytes(response.body)),
        )

    async def _begin(
        self,
        stack: AsyncExitStack,
        exchange: StreamExchange,
        body: bytes | AsyncIterator[bytes],
        certified: bool,
    ) -> StreamedAnswer | None:
        """Send a request; the answer when its head is there, None without chunks."""
        outer = await stack.enter_async_context(
            self._http_stream(exchange, sealed(exchange, body), certified)
        )
        kind = received_fields(outer).get("content-type", "")
        if outer.status == 415:
            self._core.refused_chunks()
            return None
        if outer.status != 200 or kind != exchange.response_media_type:
            raise refusal(await self._whole(outer, _MAX_REFUSAL_BYTES))
        events = self._opened(exchange, outer)
        stack.push_async_callback(events.aclose)
        answer = await read_head(exchange, events)
        if answer.status == 400:
            answer = await check_clock(answer)
        self._core.answered()
        return answer

    @asynccontextmanager
    async def _http_stream(
        self,
        exchange: StreamExchange,
        content: AsyncIterator[bytes],
        certified: bool,
    ) -> AsyncIterator[httpcore.Response]:
        headers = {"content-type": exchange.media_type, "incremental": "?1"}
        pool = self._pools.to(self._core.gateway, certified=certified)
        with self._translated():
            async with pool.stream(
                "POST",
                self._core.gateway,
                headers=sent_fields(headers),
                content=content,
                extensions=self._pools.extensions,
            ) as response:
                yield response

    async def _opened(
        self, exchange: StreamExchange, outer: httpcore.Response
    ) -> AsyncGenerator[Event, None]:
        with self._translated():
            async for data in outer.aiter_stream():
                for event in exchange.open(data):
                    yield event
        for event in exchange.end():
            yield event

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except FAILURES as error:
            raise failed(self.url, error) from None

    async def _run(self, steps: Steps[T]) -> T:
        reply: Answer | str | None = None
        while True:
            try:
                step = steps.send(reply)
            except StopIteration as stop:
                result: T = stop.value
                return result
            reply = await self._perform(step)

    async def _perform(self, step: Fetch | Wait | AskToken) -> Answer | str | None:
        match step:
            case Fetch():
                return await self._fetch(step)
            case AskToken():
                return await self._ask_token()
            case Wait():
                await asyncio.sleep(step.seconds)
        return None

    async def _ask_token(self) -> str:
        token = self._token() if callable(self._token) else self._token
        return await token if isawaitable(token) else token

    async def _fetch(self, step: Fetch) -> Answer:
        content = step.content
        with self._translated():
            if isinstance(content, bytes | None) and (to := self._direct.to(step)):
                return await to.fetch(head_of(step), content, step.max_bytes)
            async with self._pools.to(step.url, certified=step.certified).stream(
                step.method,
                step.url,
                headers=sent_fields(step.headers),
                content=content_of(step),
                extensions=self._pools.extensions,
            ) as response:
                return await self._whole(response, step.max_bytes)

    async def _whole(self, response: httpcore.Response, max_bytes: int) -> Answer:
        chunks: list[bytes] = []
        size = 0
        async for chunk in response.aiter_stream():
            size += len(chunk)
            if size > max_bytes:
                raise TransportError("the answer is too long")
            chunks.append(chunk)
        return Answer(response.status, received_fields(response), b"".join(chunks))
