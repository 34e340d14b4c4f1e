"""How a client's bytes leave this process: by which connections, and a closed list.

The clients use httpcore rather than httpx: instrumentation that an application installs
for httpx adds fields to each request, ``traceparent`` and ``baggage`` among them, and
on a sealed request they would stand in clear. What is sent is what `sent_fields` says.

A whole request that goes through no proxy takes `sealgate.direct`, which leaves most of
httpcore out; others take its pools.

A client's certificate is shown on connections of their own: who may not use it, because
a proxy serves others too, shares none of them.
"""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Generic, TypeVar
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import certifi
import httpcore

from sealgate import direct
from sealgate.direct import AsyncConnections, Connections, Origin, front, origin_of
from sealgate.errors import ProfileError, TransportError
from sealgate.options import Options
from sealgate.steps import Fetch

__all__ = [
    "FAILURES",
    "Direct",
    "Pools",
    "failed",
    "head_of",
    "received_fields",
    "sent_fields",
]

# Compressed answers would be bounded before, not after, they are unpacked.
_ALWAYS = ((b"accept-encoding", b"identity"), (b"user-agent", b"sealgate"))
# What a request may say of itself beside them; Host and framing are httpcore's.
_ALLOWED = frozenset(("content-type", "incremental"))
_PROXIES = ("http", "https", "socks5", "socks5h")

FAILURES = (
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.ProxyError,
    httpcore.TimeoutException,
    httpcore.UnsupportedProtocol,
)

P = TypeVar("P", httpcore.ConnectionPool, httpcore.AsyncConnectionPool)
C = TypeVar("C", Connections, AsyncConnections)


class Pools(Generic[P]):
    """Connections to the hosts that a client talks to, through a proxy if need be.

    Unless one is given, proxies are those of the environment (HTTPS_PROXY, ALL_PROXY,
    NO_PROXY). Plain http is for this machine, where nobody is in between: it never goes
    through one.
    """

    def __init__(
        self,
        kind: Callable[..., P],
        timeout_s: float,
        options: Options = Options(),
    ) -> None:
        """Nothing is connected yet.

        Args:
            kind: httpcore's pool to make.
            timeout_s: for connecting, and for each read and write.
            options: a certificate to show, authorities to trust, a proxy.

        Raises:
            ProfileError: a file cannot be used.
        """
        self._kind: Callable[..., P] = kind
        self._authorities, self._proxy = options.authorities, options.proxy
        self._pools: dict[tuple[str, bool], P] = {}
        self._own = (
            None
            if options.client_certificate is None
            else _certified(
                options.client_certificate, options.client_key, options.authorities
            )
        )
        self._context: ssl.SSLContext | None = None
        self.timeout_s = timeout_s
        names = ("connect", "read", "write", "pool")
        self.extensions = {"timeout": dict.fromkeys(names, timeout_s)}

    def to(self, url: str, *, certified: bool = True) -> P:
        """The pool whose connections reach a URL.

        Args:
            url: of the request.
            certified: show the certificate, if there is one.

        Raises:
            ProfileError: the proxy is none, or the authorities cannot be read.
        """
        address, shown = self.proxy_of(url), certified and self._own is not None
        if (address, shown) not in self._pools:
            self._pools[address, shown] = self._make(address, certified=certified)
        return self._pools[address, shown]

    def proxy_of(self, url: str) -> str:
        """The address of the proxy that a URL is reached through; empty for none."""
        return _proxy_of(url, self._proxy)

    def context(self, *, certified: bool) -> ssl.SSLContext:
        """What TLS is spoken with; it shows the certificate, if asked and there is one.

        Raises:
            ProfileError: the authorities cannot be read.
        """
        if certified and self._own is not None:
            return self._own
        if self._context is None:
            self._context = _tls(self._authorities)
        return self._context

    def all(self) -> Iterable[P]:
        """Every pool that was made, to close it."""
        return self._pools.values()

    def _make(self, address: str, *, certified: bool) -> P:
        try:
            pool: P = self._kind(
                ssl_context=self.context(certified=certified),
                max_connections=direct.MAX_CONNECTIONS,
                max_keepalive_connections=direct.MAX_IDLE,
                keepalive_expiry=direct.KEEPALIVE_S,
                proxy=_proxy(address) if address else None,
            )
            return pool
        except (ImportError, ValueError) as error:
            # Not the address: it may hold a password.
            which = "the environment's " if self._proxy is None else ""
            raise ProfileError(f"{which}proxy: {error}") from None


class Direct(Generic[C]):
    """Connections without a proxy, for requests that are there as a whole.

    Which proxy there is for a host, if any, is asked when the host is first.
    """

    def __init__(
        self, kind: Callable[[Origin, ssl.SSLContext, float], C], pools: Pools[Any]
    ) -> None:
        """Nothing is connected yet.

        Args:
            kind: of the connections to make.
            pools: with the proxies, the TLS and the timeout that they share.
        """
        self._kind: Callable[[Origin, ssl.SSLContext, float], C] = kind
        self._pools = pools
        self._made: dict[tuple[Origin, bool], C | None] = {}

    def to(self, step: Fetch) -> C | None:
        """The connections for a whole request; None if it must take a pool.

        Raises:
            ProfileError: the authorities cannot be read.
        """
        key = origin_of(step.url), step.certified
        if key not in self._made:
            self._made.setdefault(key, self._make(step))
        return self._made[key]

    def all(self) -> Iterable[C]:
        """Every one that was made, to close it."""
        return [made for made in self._made.values() if made is not None]

    def _make(self, step: Fetch) -> C | None:
        if self._pools.proxy_of(step.url):
            return None
        context = self._pools.context(certified=step.certified)
        return self._kind(origin_of(step.url), context, self._pools.timeout_s)


def head_of(step: Fetch) -> bytes:
    """A request's line and fields, all but the length of its content.

    Raises:
        TransportError: a field is not on the closed list.
    """
    return _head(step.method, step.url, tuple(step.headers.items()))


# A client sends the same few over and over; they hold nothing that is sealed.
@lru_cache(maxsize=256)
def _head(method: str, url: str, fields: tuple[tuple[str, str], ...]) -> bytes:
    return front(method, url, sent_fields(dict(fields)))


def sent_fields(fields: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    """The fields of an outer request: these, if they are on the closed list.

    Raises:
        TransportError: one is not.
    """
    for name in fields.keys() - _ALLOWED:
        raise TransportError(f"{name} is no field of a sealed request")
    own = [(name.encode(), value.encode("ascii")) for name, value in fields.items()]
    return [*_ALWAYS, *own]


def received_fields(response: httpcore.Response) -> dict[str, str]:
    """An answer's fields by lower-case name; of a repeated one, all values."""
    return direct.fields_of(response.headers)


def failed(url: str, error: Exception) -> TransportError:
    """What a failure of the connection is to the caller: the server, and why."""
    return TransportError(f"{url} does not answer: {_why(error)}")


def _why(error: Exception) -> str:
    """In words where the cause is a usual one; a library's own name says little."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"TLS: {cause.verify_message}"
        if isinstance(cause, ssl.SSLError):
            return f"TLS: {cause.reason or cause}"
        if isinstance(cause, socket.gaierror):
            return f"its name is not known to DNS ({cause.strerror})"
        if isinstance(cause, ConnectionRefusedError):
            return "the connection was refused; does it run there?"
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, httpcore.TimeoutException):
        stage = type(error).__name__.removesuffix("Timeout").lower()
        return f"no {'connection' if stage == 'connect' else stage} in time"
    reason = str(error).strip()
    return type(error).__name__ + (f" ({reason})" if reason else "")


def _tls(authorities: Path | None = None) -> ssl.SSLContext:
    """The caller's authorities, or the environment's where it names some, or certifi's.

    Raises:
        ProfileError: the caller's cannot be read.
    """
    if authorities is not None:
        try:
            return ssl.create_default_context(cafile=authorities)
        except OSError as error:  # ssl.SSLError is one
            raise ProfileError(
                f"authorities: {authorities}: {error.strerror or 'no certificate'}"
            ) from None
    named = os.environ.keys() & {"SSL_CERT_FILE", "SSL_CERT_DIR"}
    return ssl.create_default_context(cafile=None if named else certifi.where())


def _certified(
    certificate: Path, key: Path | None, authorities: Path | None
) -> ssl.SSLContext:
    """One that shows a certificate, and only in TLS 1.3: 1.2 sends it in clear."""
    context = _tls(authorities)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        # Without a passphrase OpenSSL would ask on the terminal.
        context.load_cert_chain(certificate, key, password=lambda: b"")
    except OSError as error:  # ssl.SSLError is one
        reason = error.reason if isinstance(error, ssl.SSLError) else error.strerror
        why = reason or "no certificate and its key in PEM, without a passphrase"
        raise ProfileError(f"client_certificate, client_key: {why}") from None
    return context


def _proxy_of(url: str, given: str | None) -> str:
    parts = urlsplit(url)
    if parts.scheme == "http":
        return ""
    if given is not None:
        return given
    proxies = getproxies()
    address = proxies.get(parts.scheme) or proxies.get("all") or ""
    if not address or proxy_bypass(parts.netloc):
        return ""
    return address if "://" in address else f"http://{address}"


def _proxy(address: str) -> httpcore.Proxy:
    parts = urlsplit(address)
    if parts.scheme not in _PROXIES:
        raise ValueError(f"its scheme must be one of {', '.join(_PROXIES)}")
    auth = (unquote(parts.username or ""), unquote(parts.password or ""))
    plain = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    return httpcore.Proxy(plain, auth=auth if parts.username else None)
