"""One https answer, within bounds on bytes and on the whole time it takes.

No redirects, no proxies, nothing from the environment. HTTP libraries bound each read;
a host that sends a byte now and then could hold such a reader for days.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import httpcore

from sealgate.exchange import retry_after_seconds
from security.errors import KeyFileError

__all__ = ["StatusError", "fetch", "trusting"]

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
        super().__init__(f"{url}: answered {status}")


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
    backend = _Backend(time.monotonic() + timeout_s)
    body = bytearray()
    try:
        with (
            httpcore.ConnectionPool(
                ssl_context=context, network_backend=backend, http2=False
            ) as pool,
            pool.stream(
                "GET" if form is None else "POST", url, headers=headers, content=form
            ) as response,
        ):
            if response.status not in statuses:
                raise StatusError(url, response.status, _wait_s(response.headers))
            for chunk in response.iter_stream():
                body += chunk
                if len(body) > max_bytes:
                    raise KeyFileError(f"{url}: over {max_bytes} bytes")
    except (*_ERRORS, OSError, ValueError) as error:
        raise KeyFileError(f"{url}: {type(error).__name__}") from None
    return bytes(body)


def _wait_s(headers: Sequence[tuple[bytes, bytes]]) -> float | None:
    names = {
        name.decode("latin-1").lower(): value.decode("latin-1")
        for name, value in headers
    }
    return retry_after_seconds(names)


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
        left = _left(self._deadline)
        stream = super().connect_tcp(host, port, left, local_address, socket_options)
        return _Stream(stream, self._deadline)


class _Stream(httpcore.NetworkStream):
    def __init__(self, inner: httpcore.NetworkStream, deadline: float) -> None:
        self._inner = inner
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, _left(self._deadline))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, _left(self._deadline))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        left = _left(self._deadline)
        inner = self._inner.start_tls(ssl_context, server_hostname, left)
        return _Stream(inner, self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise httpcore.ReadTimeout
    return left
