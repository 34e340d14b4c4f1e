"""Headers of a layer's archive, read in one way only.

Engines unpack layers by Go's archive/tar, and Python's tarfile reads some archives
otherwise: other names, other lengths, another end. What was looked at would not be what
runs. So whatever the two read differently is refused (POSIX.1-2008, pax and ustar).
"""

from __future__ import annotations

import tarfile
from typing import Self

from security.admission.contents import refused

__all__ = ["strict_headers"]

_USTAR = b"ustar\x0000"
# Where a header has its numbers, and its time of change.
_NUMBERS = (
    *((100, 108), (108, 116), (116, 124), (124, 136), (136, 148), (148, 156)),
    *((329, 337), (337, 345)),
)
_PREFIX = slice(345, 500)
_LONG = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
# Kinds that only one of both knows, or that hold for more than one file.
_REFUSED = (tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_SPARSE)
# As Go's.
_MAX_EXTENSION_BYTES = 1 << 20


def strict_headers() -> type[tarfile.TarInfo]:
    """A class of headers for one archive.

    Its `frombuf` raises AdmissionRefused for a header that can be read in two ways.
    """
    extending: list[bytes] = []

    class Header(tarfile.TarInfo):
        """One header."""

        @classmethod
        def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
            """Parse a block."""
            block = bytes(buf)
            try:
                info = super().frombuf(block, encoding, errors)
            except tarfile.HeaderError:
                if not block.strip(b"\0"):
                    raise
                # Here tarfile would say that the archive ends.
                raise refused("a layer with a broken header") from None
            _refuse_ambiguous(block, info)
            if info.type in (*_LONG, tarfile.XHDTYPE):
                # Which of two counts is the reader's choice.
                if info.type in extending or (
                    extending and tarfile.XHDTYPE in (*extending, info.type)
                ):
                    raise refused("a layer with an extension of an extension")
                extending.append(info.type)
            else:
                extending.clear()
            return info

    return Header


def _refuse_ambiguous(block: bytes, info: tarfile.TarInfo) -> None:
    if info.type in _REFUSED:
        raise refused(f"a layer with a header of type {info.type!r}")
    if info.type in (*_LONG, tarfile.XHDTYPE) and info.size > _MAX_EXTENSION_BYTES:
        raise refused("a layer with an extension of more than 1 MiB")
    # Only here a prefix is part of the name; star keeps times in it.
    posix = block[257:265] == _USTAR and block[508:512] != b"tar\0"
    if not posix and any(block[_PREFIX]):
        raise refused("a layer with a prefix that may be part of a name")
    for start, end in _NUMBERS:
        field = block[start:end].lstrip(b" ")
        # Nothing to one, the number behind it to the other.
        if field.startswith(b"\0") and field.strip(b" \0"):
            raise refused("a layer with a number that can be read in two ways")
