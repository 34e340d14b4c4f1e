"""Heads of requests that have been parsed before.

A client that goes on asking sends the same head again and again, to the byte: only its
content changes. What such a head says is known, so that the parser has not to be asked.
Kept are heads of requests that somebody stood for and that left the connection open;
the oldest go first. They are looked up by a keyed hash (Python's, of bytes), so that
how long a look takes tells nothing about the token in another one.
"""

from __future__ import annotations

from typing import Any

from sealgate.protocol.bhttp import Body, Headers, Request
from service.http.framing import HEAD_END

__all__ = ["Head", "Heads"]

MAX_HEADS = 512
# A longer one is parsed each time.
MAX_KEPT_BYTES = 2048


class Head:
    """What one head says, of a request whose content has a length or none.

    Attributes:
        raw: its bytes, with the empty line.
        method, path, authority, headers: as in a `Request`.
        length: of the content.
        note: what whoever answers has found out about it; None before that.
    """

    __slots__ = ("authority", "headers", "length", "method", "note", "path", "raw")

    def __init__(
        self,
        raw: bytes,
        *,
        method: bytes,
        path: bytes,
        authority: bytes,
        headers: Headers,
        length: int,
    ) -> None:
        self.raw = raw
        self.method, self.path, self.authority = method, path, authority
        self.headers, self.length = headers, length
        self.note: Any = None

    def request(self, scheme: bytes, body: Body) -> Request:
        """The request with a content."""
        return Request(
            self.method, scheme, self.authority, self.path, self.headers, body
        )


class Heads:
    r"""The heads that one server remembers.

    >>> heads = Heads()
    >>> raw = b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 2\r\n\r\n"
    >>> fields = {"method": b"POST", "path": b"/", "authority": b"h", "headers": ()}
    >>> heads.remember(Head(raw, length=2, **fields))
    >>> heads.find(raw + b"{}").length
    2
    >>> heads.find(raw + b"{") is None  # some of its content is still on its way
    True
    """

    def __init__(self) -> None:
        self._known: dict[bytes, Head] = {}

    def find(self, data: bytes) -> Head | None:
        """The head of a message, if it is known and these bytes are all of it."""
        size = data.find(HEAD_END) + len(HEAD_END)
        head = self._known.get(data[:size])
        if head is None or size + head.length != len(data):
            return None
        return head

    def remember(self, head: Head) -> None:
        """Keep one, if its bytes are a head and no more."""
        raw = head.raw
        if len(raw) > MAX_KEPT_BYTES or not raw[:1].isalpha():
            return
        if not raw.endswith(HEAD_END) or raw.index(HEAD_END) + len(HEAD_END) < len(raw):
            return
        if len(self._known) >= MAX_HEADS and raw not in self._known:
            del self._known[next(iter(self._known))]
        self._known[raw] = head
