"""How a client's bytes leave this process: httpcore's connections, and a closed list.

The clients use httpcore rather than httpx: instrumentation that an application installs
for httpx adds fields to each request, ``traceparent`` and ``baggage`` among them, and
on a sealed request they would stand in clear. What is sent is what `sent_fields` says.

A client's certificate is shown on connections of their own: who may not use it, because
a proxy serves others too, shares none of them.
"""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Generic, TypeVar
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import certifi
import httpcore

from sealgate.errors import ProfileError, TransportError
from sealgate.options import Options

__all__ = ["FAILURES", "Pools", "failed", "received_fields", "sent_fields"]

# Compressed answers would be bounded before, not after, they are unpacked.
_ALWAYS = ((b"accept-encoding", b"identity"), (b"user-agent", b"sealgate"))
# What a request may say of itself beside them; Host and framing are httpcore's.
_ALLOWED = frozenset(("content-type", "incremental"))
_PROXIES = ("http", "https", "socks5", "socks5h")
_KEEPALIVE_S = 5.0
_MAX_IDLE = 20
_MAX_CONNECTIONS = 100

FAILURES = (
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.ProxyError,
    httpcore.TimeoutException,
    httpcore.UnsupportedProtocol,
)

P = TypeVar("P", httpcore.ConnectionPool, httpcore.AsyncConnectionPool)


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
        address, own = _proxy_of(url, self._proxy), self._own if certified else None
        if (address, own is not None) not in self._pools:
            self._pools[address, own is not None] = self._make(address, own)
        return self._pools[address, own is not None]

    def all(self) -> Iterable[P]:
        """Every pool that was made, to close it."""
        return self._pools.values()

    def _make(self, address: str, own: ssl.SSLContext | None) -> P:
        if self._context is None:
            self._context = _tls(self._authorities)
        try:
            pool: P = self._kind(
                ssl_context=own or self._context,
                max_connections=_MAX_CONNECTIONS,
                max_keepalive_connections=_MAX_IDLE,
                keepalive_expiry=_KEEPALIVE_S,
                proxy=_proxy(address) if address else None,
            )
            return pool
        except (ImportError, ValueError) as error:
            # Not the address: it may hold a password.
            which = "the environment's " if self._proxy is None else ""
            raise ProfileError(f"{which}proxy: {error}") from None


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
    fields: dict[str, str] = {}
    for raw, value in response.headers:
        name, text = raw.decode("latin-1").lower(), value.decode("latin-1")
        fields[name] = f"{fields[name]}, {text}" if name in fields else text
    return fields


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
