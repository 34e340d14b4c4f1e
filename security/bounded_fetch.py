"""Answers over https, within bounds on bytes and on the whole time they take.

No redirects, no proxies, nothing from the environment. HTTP libraries bound each read;
a host that sends a byte now and then could hold such a reader for days.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import httpcore

from sealgate.exchange import retry_after_seconds
from security.errors import KeyFileError

__all__ = ["Answer", "Exchanges", "StatusError", "fetch", "trusting"]

_HEADERS = [(b"accept", b"application/json"), (b"accept-encoding", b"identity")]
_FORM = b"application/x-www-form-urlencoded"


class StatusError(KeyFileError):
    """An answer of a status that was not asked for.

    Attributes:
        status: which.
        retry_after_s: how long its host asks to wait, if it says so.
    """

    def __init__(
        self, url: str, status: int, retry_after_s: float | None = None
    ) -> None:
        self.status = status
        self.retry_after_s = retry_after_s
        super().__init__(f"{_shown(url)}: answered {status}")


def trusting(authorities: Path | None) -> ssl.SSLContext:
    """The context that believes a file of authorities, or else the system's.

    Raises:
        KeyFileError: it is no such file.
    """
    try:
        context = ssl.create_default_context(cafile=authorities)
    except (OSError, ssl.SSLError):
        raise KeyFileError(f"{authorities}: no file of certificates") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def fetch(
    url: str,
    *,
    context: ssl.SSLContext,
    max_bytes: int,
    timeout_s: float,
    form: bytes | None = None,
    content_type: bytes = _FORM,
    statuses: Collection[int] = (200,),
    authorization: bytes | None = None,
    fields: Sequence[tuple[bytes, bytes]] = (),
) -> bytes:
    """Get a document, or send a form and get the answer.

    Args:
        url: as `security.settings.issuers.https_url` takes it.
        context: whom to believe that it is the URL's host.
        max_bytes: of the document.
        timeout_s: for all of it, name resolution aside.
        form: sent by POST; without one it is GET.
        content_type: of the form, which is urlencoded unless this says otherwise.
        statuses: of answers that are one.
        authorization: content of that field.
        fields: further ones.

    Raises:
        KeyFileError: no such answer within the bounds; says no more than that
            of what the host sent, and nothing of what was sent to it.
    """
    headers = [*_HEADERS, *fields]
    if form is not None:
        length = b"%d" % len(form)
        headers += [(b"content-type", content_type), (b"content-length", length)]
    if authorization is not None:
        headers.append((b"authorization", authorization))
    method = "GET" if form is None else "POST"
    with (
        Exchanges(context=context, timeout_s=timeout_s) as exchanges,
        exchanges.send(method, url, headers=headers, content=form) as answer,
    ):
        if answer.status not in statuses:
            wait_s = retry_after_seconds(answer.headers)
            raise StatusError(url, answer.status, wait_s)
        return answer.read(max_bytes)


@dataclass(frozen=True)
class Answer:
    """An answer whose body has yet to be read.

    Attributes:
        url: what answered.
        status: its status.
        headers: its fields, by their names in lower case; several joined by commas.
    """

    url: str
    status: int
    headers: Mapping[str, str] = field(repr=False)
    _response: httpcore.Response = field(repr=False)

    def chunks(self) -> Iterator[bytes]:
        """The body in parts; whoever reads them bounds their sum.

        Raises:
            KeyFileError: it broke off, or takes too long.
        """
        try:
            yield from self._response.iter_stream()
        except (*_ERRORS, OSError, ValueError) as error:
            raise _failed(self.url, error) from None

    def read(self, max_bytes: int) -> bytes:
        """The whole body.

        Raises:
            KeyFileError: it is longer than that, broke off, or takes too long.
        """
        body = bytearray()
        for chunk in self.chunks():
            body += chunk
            if len(body) > max_bytes:
                raise KeyFileError(f"{_shown(self.url)}: over {max_bytes} bytes")
        return bytes(body)


class Exchanges:
    """Requests over connections that are kept, all of which end at one time.

    Args:
        context: whom to believe that it is a URL's host.
        timeout_s: for all of them together, name resolution aside.
        stall_s: until a host that neither takes nor gives a byte is given up.
    """

    def __init__(
        self,
        *,
        context: ssl.SSLContext,
        timeout_s: float,
        stall_s: float | None = None,
    ) -> None:
        self._pool = httpcore.ConnectionPool(
            ssl_context=context,
            network_backend=_Backend(time.monotonic() + timeout_s),
            http2=False,
        )
        names = ("connect", "read", "write")
        self._timeouts = {} if stall_s is None else dict.fromkeys(names, stall_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.close()

    @contextmanager
    def send(
        self,
        method: str,
        url: str,
        *,
        headers: Iterable[tuple[bytes, bytes]] = (),
        content: bytes | Iterator[bytes] | None = None,
    ) -> Iterator[Answer]:
        """Send a request; the answer is valid inside the block.

        Raises:
            KeyFileError: no answer; says nothing of what was sent.
        """
        with ExitStack() as stack:
            try:
                response = stack.enter_context(
                    self._pool.stream(
                        method,
                        url,
                        headers=[*headers],
                        content=content,
                        extensions={"timeout": self._timeouts},
                    )
                )
            except (*_ERRORS, OSError, ValueError) as error:
                raise _failed(url, error) from None
            yield Answer(url, response.status, _joined(response.headers), response)


def _joined(fields: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for raw, value in fields:
        name, text = raw.decode("latin-1").lower(), value.decode("latin-1")
        found[name] = f"{found[name]}, {text}" if name in found else text
    return found


def _failed(url: str, error: Exception) -> KeyFileError:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return KeyFileError(f"{_shown(url)}: TLS: {cause.verify_message}")
        cause = cause.__cause__ or cause.__context__
    return KeyFileError(f"{_shown(url)}: {type(error).__name__}")


def _shown(url: str) -> str:
    """A URL without its query: what is signed for one download has its secret there."""
    return url.partition("?")[0]


_ERRORS = (
    httpcore.NetworkError,
    httpcore.TimeoutException,
    httpcore.ProtocolError,
    httpcore.UnsupportedProtocol,
)


class _Backend(httpcore.SyncBackend):
    """The library's sockets, all of whose operations end at one time."""

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        left = _left(self._deadline, timeout)
        stream = super().connect_tcp(host, port, left, local_address, socket_options)
        return _Stream(stream, self._deadline)


class _Stream(httpcore.NetworkStream):
    def __init__(self, inner: httpcore.NetworkStream, deadline: float) -> None:
        self._inner = inner
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, _left(self._deadline, timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, _left(self._deadline, timeout))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        left = _left(self._deadline, timeout)
        inner = self._inner.start_tls(ssl_context, server_hostname, left)
        return _Stream(inner, self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


def _left(deadline: float, at_most: float | None) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise httpcore.ReadTimeout
    return left if at_most is None else min(left, at_most)
