"""The asynchronous client: `sealgate.client` for asyncio, over the same core."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
import numpy.typing as npt

from sealgate.core import AskToken, Core, Fetch, Options, Steps, Wait, options_of
from sealgate.errors import ClientError, TransportError
from sealgate.exchange import Answer
from sealgate.passport import Passport
from sealgate.profile import Profile
from sealgate.protocol.bhttp import Headers, Response

__all__ = ["AsyncClient"]

T = TypeVar("T")
# Compressed answers would be bounded before, not after, they are unpacked.
_HEADERS = {"accept-encoding": "identity", "user-agent": "sealgate"}


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
            ProfileError: the URL is not allowed.
            TransportError: pinned key configurations are malformed.
        """
        self._core = Core(url, options)
        self._token = token
        self._http = httpx.AsyncClient(
            timeout=timeout_s, follow_redirects=False, headers=_HEADERS
        )

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
        await self._http.aclose()

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

    async def infer(self, model: str, inputs: Any) -> dict[str, npt.NDArray[Any]]:
        """Run a model.

        Values are converted to the model's dtypes where none changes beyond float
        rounding; the model's metadata is fetched once for that.

        Args:
            model: its name.
            inputs: arrays, lists or data frames by tensor name; or a data frame, whose
                columns are matched by name with the model's. Further columns are not
                sent.

        Returns:
            Arrays by output name.

        Raises:
            TensorError: an input cannot be sent as the model's dtype.
            ServerRefusedError: the server's problem details, for instance which tensor
                it expected otherwise.
            PassportError: one is required, and does not verify.
            TransportError: no usable answer.
        """
        return await self._run(self._core.infer(model, inputs))

    async def passport(self, model: str) -> Passport:
        """Fetch the model's verdict and evidence, and verify them.

        Raises:
            PassportError: they do not verify, or no trusted key was given.
            ServerRefusedError: no such model, or no right to it.
            TransportError: no usable answer.
        """
        return await self._run(self._core.passport(model))

    async def keys(self) -> bytes:
        """The ``application/ohttp-keys`` document that the server offers now.

        Raises:
            TransportError: there is none.
        """
        return await self._run(self._core.keys())

    async def forward(
        self,
        method: str,
        path: str,
        *,
        headers: Headers = (),
        body: bytes = b"",
        own_token: bool = True,
    ) -> Response:
        """Send any request sealed, and give its answer, whatever its status.

        Args:
            method: of the request.
            path: with query.
            headers: lower-case names; Date is added, and Authorization if asked.
            body: content.
            own_token: add this client's token.

        Raises:
            ServerRefusedError: refused before the gateway could open it.
            TransportError: no usable answer.
        """
        return await self._run(
            self._core.forward(method, path, headers, body, own_token=own_token)
        )

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
        token = self._token if isinstance(self._token, str) else self._token()
        return token if isinstance(token, str) else await token

    async def _fetch(self, step: Fetch) -> Answer:
        chunks: list[bytes] = []
        size = 0
        try:
            async with self._http.stream(
                step.method, step.url, content=_content(step), headers=step.headers
            ) as response:
                async for chunk in response.aiter_raw():
                    size += len(chunk)
                    if size > step.max_bytes:
                        raise TransportError("the answer is too long")
                    chunks.append(chunk)
        except httpx.HTTPError as error:
            kind = type(error).__name__
            raise TransportError(f"{self.url} does not answer: {kind}") from None
        headers = {name.lower(): value for name, value in response.headers.items()}
        return Answer(response.status_code, headers, b"".join(chunks))


def _content(step: Fetch) -> bytes | AsyncIterator[bytes] | None:
    content = step.content
    return content if content is None or isinstance(content, bytes) else _aiter(content)


async def _aiter(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece
