"""Which pages of other origins may read an answer: CORS, of the Fetch standard.

It covers the gateway and the documents about its keys, where no token is ever sent in
plaintext. No cookie or other credential is asked for: a page that may read these holds
its own token, inside what it seals. Every other path answers as if this were not here,
so that a browser shows its answers to no page of another origin.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from sealgate.protocol.bhttp import Headers, Request, Response
from sealgate.protocol.signedkeys import SIGNED_KEYS_PATH, SIGNED_KEYS_V2_PATH

__all__ = ["Cors"]

_SIGNED_KEYS = (SIGNED_KEYS_PATH.encode(), SIGNED_KEYS_V2_PATH.encode())
_VARY = (b"vary", b"origin")
# Beside those that any page may read: our clock, and when to come back.
_EXPOSE = (b"access-control-expose-headers", b"date, retry-after")
# Longer than that no browser keeps the answer to a preflight (Chromium: two hours).
_MAX_AGE = (b"access-control-max-age", b"7200")


class Head(Protocol):
    """What is read of a request, whichever way it takes."""

    @property
    def path(self) -> bytes:
        """As it was asked."""

    @property
    def headers(self) -> Headers:
        """Its fields."""


class Cors:
    """Adds the fields of CORS to answers, for exact origins.

    >>> page = (b"origin", b"https://app.example")
    >>> asked = Request(b"GET", b"https", b"", b"/keys", (page,))
    >>> cors = Cors(["https://app.example"], gateway=b"/keys")
    >>> cors.fields(asked)[1]
    (b'access-control-allow-origin', b'https://app.example')
    >>> Cors([], gateway=b"/keys").fields(asked)
    ()
    """

    def __init__(self, origins: Collection[str], *, gateway: bytes) -> None:
        """Nothing is allowed that is not named.

        Args:
            origins: as browsers send them; none switches all of this off.
            gateway: its path.
        """
        self._origins = frozenset(origin.encode() for origin in origins)
        # What a page may ask, by path: nothing that takes a token in plaintext.
        self._methods = {gateway: b"GET, POST"} | dict.fromkeys(_SIGNED_KEYS, b"GET")
        if not origins:
            self._methods.clear()

    def fields(self, head: Head) -> Headers:
        """The fields of the answer to this request, whatever its status.

        ``Vary`` stands on all answers of such a path, so that no cache gives one
        origin what was made for another.
        """
        if head.path not in self._methods:
            return ()
        origin = self._allowed(head)
        if origin is None:
            return (_VARY,)
        return (_VARY, (b"access-control-allow-origin", origin), _EXPOSE)

    def preflight(self, head: Request) -> Response | None:
        """The answer to a browser's question about a request; None if this is none."""
        if head.method != b"OPTIONS" or head.path not in self._methods:
            return None
        asks = any(name == b"access-control-request-method" for name, _ in head.headers)
        if not asks or self._allowed(head) is None:
            return None
        methods = (b"access-control-allow-methods", self._methods[head.path])
        headers = (b"access-control-allow-headers", b"content-type")
        return Response(204, (methods, headers, _MAX_AGE))

    def _allowed(self, head: Head) -> bytes | None:
        """The origin that asks, if it is one of ours to the byte."""
        given = [value for name, value in head.headers if name == b"origin"]
        return given[0] if len(given) == 1 and given[0] in self._origins else None
