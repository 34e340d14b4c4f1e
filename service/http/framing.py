"""Where a message ends: the fields that say so, and what two servers could read apart.

A proxy and the server behind it must agree on where each request ends, or one caller's
bytes become the next one's request. The parser is strict about most of it (a length
twice or beside chunks, folded lines, bare line ends). Here is the rest (RFC 9112): one
host (section 3.2), no coding but chunked (6.1), no body behind an upgrade (RFC 9110,
section 7.8).
"""

from __future__ import annotations

import functools
import re

from service.problems import Problem

__all__ = ["FIELDS", "HEAD_END", "Framing"]

HEAD_END = b"\r\n\r\n"
# What is to be noted of a head.
FIELDS = frozenset({b"host", b"content-length", b"transfer-encoding"})

# So many chunks of a body may be smaller, on average, than so many bytes. Each costs as
# much as some kilobytes of a larger one, and no client that has a body to send cuts it
# so.
_CHUNKS, _CHUNK_BYTES = 4096, 16

# RFC 3986, section 3.2.2, a port included; what is in brackets is not looked at.
_AUTHORITY = re.compile(rb"[A-Za-z0-9._~!$&'()*+,;=:%\[\]-]*")


@functools.lru_cache(maxsize=64)  # most requests name the same one
def _is_authority(value: bytes) -> bool:
    return _AUTHORITY.fullmatch(value) is not None


class Framing:
    """What one head says of its message.

    Attributes:
        authority: the host.
        length: bytes of the body, where that is declared.
        chunked: whether the body says itself where it ends.
    """

    __slots__ = (
        "_chunks", "_codings", "_hosts", "_spare", "authority", "chunked", "length",
    )  # fmt: skip

    def __init__(self) -> None:
        self.authority = b""
        self.length = 0
        self.chunked = False
        self._hosts = 0
        self._codings: list[bytes] = []
        self._chunks = self._spare = 0

    def note(self, name: bytes, value: bytes) -> None:
        """Note one of `FIELDS`, whose length the parser has found to be a number."""
        if name == b"host":
            self.authority, self._hosts = value, self._hosts + 1
        elif name == b"content-length":
            self.length = int(value)
        else:
            self._codings.append(value.lower())
            self.chunked = True

    def count_chunk(self, size: int) -> None:
        """Count a part of a body in chunks.

        Raises:
            Problem: many of them are tiny.
        """
        self._chunks += 1
        self._spare += size - _CHUNK_BYTES
        if self._chunks > _CHUNKS and self._spare < 0:
            raise Problem("malformed-http", "the chunks are too small")

    def check(self, version: str, *, upgrade: bool) -> None:
        """Refuse what another server might read in another way.

        Args:
            version: of HTTP.
            upgrade: whether another protocol is asked for behind this message.

        Raises:
            Problem: names what it is.
        """
        if version not in ("1.1", "1.0"):
            raise Problem("malformed-http", "expected HTTP/1.1")
        if self._hosts > 1 or (self._hosts == 0 and version == "1.1"):
            raise Problem("malformed-http", "expected one Host field")
        if not _is_authority(self.authority):
            raise Problem("malformed-http", "Host is not a host")
        if self._codings and (self._codings != [b"chunked"] or version == "1.0"):
            raise Problem("transfer-coding", "expected chunked, of HTTP/1.1")
        if upgrade and (self.length or self._codings):
            raise Problem("malformed-http", "an upgrade has no body")
